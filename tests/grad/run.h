// Runs the whole model on micro-batches: forward, both halves of backward, joint or delayed.
//
//   Dm MTP depths
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/exchange.h"
#include "model/stage.h"
#include "tests/grad/harness.h"

namespace hadal::test {

enum class BackwardOrder : uint8_t {
  kJoint,             // stage::backward of each micro-batch
  kDelayed,           // every micro-batch's forward and backward_input, then every backward_weight
  kTwoStages,         // two pipeline stages, delayed in each
  kOverlapped,        // each micro-batch's backward beside the next one's forward
  kOverlappedStages,  // the same, where the backward is of a stage with another number of layers
};

struct Objective {
  double lambda = 0.3, alpha = 0.05;
};

// Sequences of a step, cut into micro-batches.
using MicroBatches = std::vector<std::vector<Sequence>>;

inline std::vector<Sequence> all_sequences(const MicroBatches& micro_batches) {
  std::vector<Sequence> all;
  for (const auto& part : micro_batches) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// Factors of the mean losses over the whole step.
inline stage::LossScale loss_scale(const MicroBatches& micro_batches, int64_t num_mtp,
                                   const Objective& o) {
  const std::vector<ref::Sequence> all = as_reference(all_sequences(micro_batches));
  stage::LossScale scale;
  for (int64_t k = 0; k <= num_mtp; ++k) {
    const ref::Positions p = ref::positions_of(all, k);
    const double targets = ref::num_targets(p.targets),
                 seqs = static_cast<double>(p.lengths.size());
    if (k == 0) {
      scale.main = 1.0 / targets;
      scale.balance = o.alpha / seqs;
    } else {
      scale.mtp.push_back(o.lambda / static_cast<double>(num_mtp) / targets);
      scale.mtp_balance.push_back(o.alpha / seqs);
    }
  }
  return scale;
}

// Adds the step's gradients to product.grads; returns what it measured.
inline stage::Meter run_step(Machine& machine, const Config& c, Product& product,
                             const MicroBatches& micro_batches, BackwardOrder order,
                             const Objective& objective) {
  Context& ctx = machine.ctx;
  const DType act = product.w.embed.data.dtype();
  const int64_t num_mtp = c.num_nextn_predict_layers;
  const stage::LossScale scale = loss_scale(micro_batches, num_mtp, objective);
  int64_t num_pages = 0;
  std::vector<Batch> batches;
  for (const auto& part : micro_batches) {
    batches.push_back(make_batch(ctx, c, part, num_mtp, act));
    num_pages +=
        ops::max_pages(batches.back().seq.num_tokens * c.num_experts_per_tok, c.n_routed_experts) *
        c.num_moe_layers();
  }
  RowPool pool(ctx, c, act, num_pages);
  LocalExchange exchange(pool, c.n_routed_experts);
  const stage::Stage whole = stage::whole_model(c, product.w, exchange, num_mtp);
  stage::Meter meter = stage::make_meter(ctx, whole);

  if (order == BackwardOrder::kJoint) {
    for (const Batch& batch : batches) {
      stage::Saved saved = stage::forward(ctx, whole, batch, In(), meter);
      stage::backward(ctx, whole, std::move(saved),
                      {.batch = batch, .scale = scale, .dy_in = In(), .dx_out = Out()},
                      product.grads);
    }
  } else if (order == BackwardOrder::kDelayed) {
    std::vector<stage::Deferred> deferred;
    for (const Batch& batch : batches) {
      stage::Saved saved = stage::forward(ctx, whole, batch, In(), meter);
      deferred.push_back(
          stage::backward_input(ctx, whole, std::move(saved),
                                {.batch = batch, .scale = scale, .dy_in = In(), .dx_out = Out()}));
    }
    for (size_t i = 0; i < batches.size(); ++i)
      stage::backward_weight(ctx, whole, batches[i], std::move(deferred[i]), product.grads);
  } else if (order == BackwardOrder::kOverlapped) {
    stage::Saved saved = stage::forward(ctx, whole, batches[0], In(), meter);
    for (size_t i = 0; i < batches.size(); ++i) {
      const stage::BackwardArgs args{
          .batch = batches[i], .scale = scale, .dy_in = In(), .dx_out = Out()};
      if (i + 1 == batches.size())
        stage::backward(ctx, whole, std::move(saved), args, product.grads);
      else
        saved = stage::overlap(
            ctx, {.stage = whole, .batch = batches[i + 1], .x_in = In(), .meter = meter}, whole,
            std::move(saved), args, product.grads);
    }
  } else if (order == BackwardOrder::kOverlappedStages) {
    // The second stage's backward beside the next micro-batch's first stage, and the other way
    // round.
    stage::Stage first = whole, last = whole;
    first.last_layer = last.first_layer = 1;
    first.num_mtp = 0;
    stage::Meter first_meter = stage::make_meter(ctx, first);
    stage::Saved a = stage::forward(ctx, first, batches[0], In(), first_meter);
    stage::Saved b = stage::forward(ctx, last, batches[0], a.x.back(), meter);
    for (size_t i = 0; i < batches.size(); ++i) {
      Tensor dx;
      const Shape shape{batches[i].seq.num_tokens, c.hidden_size};
      const Block memory = ctx.memory.take_tensor(act, shape, &dx);
      const stage::BackwardArgs of_last{
          .batch = batches[i], .scale = scale, .dy_in = In(), .dx_out = dx};
      const stage::BackwardArgs of_first{
          .batch = batches[i], .scale = scale, .dy_in = dx, .dx_out = Out()};
      if (i + 1 == batches.size()) {
        stage::backward(ctx, last, std::move(b), of_last, product.grads);
        stage::backward(ctx, first, std::move(a), of_first, product.grads);
        break;
      }
      const Batch& next = batches[i + 1];
      stage::Saved next_a =
          stage::overlap(ctx, {.stage = first, .batch = next, .x_in = In(), .meter = first_meter},
                         last, std::move(b), of_last, product.grads);
      b = stage::overlap(ctx,
                         {.stage = last, .batch = next, .x_in = next_a.x.back(), .meter = meter},
                         first, std::move(a), of_first, product.grads);
      a = std::move(next_a);
    }
  } else {
    stage::Stage first = whole, last = whole;
    first.last_layer = last.first_layer = 1;
    first.num_mtp = 0;
    stage::Meter first_meter = stage::make_meter(ctx, first);
    std::vector<stage::Deferred> first_deferred, last_deferred;
    for (const Batch& batch : batches) {
      Tensor dx;
      const Shape shape{batch.seq.num_tokens, c.hidden_size};
      const Block memory = ctx.memory.take_tensor(act, shape, &dx);
      stage::Saved a = stage::forward(ctx, first, batch, In(), first_meter);
      stage::Saved b = stage::forward(ctx, last, batch, a.x.back(), meter);
      last_deferred.push_back(stage::backward_input(
          ctx, last, std::move(b), {.batch = batch, .scale = scale, .dy_in = In(), .dx_out = dx}));
      first_deferred.push_back(
          stage::backward_input(ctx, first, std::move(a),
                                {.batch = batch, .scale = scale, .dy_in = dx, .dx_out = Out()}));
    }
    for (size_t i = 0; i < batches.size(); ++i) {
      stage::backward_weight(ctx, last, batches[i], std::move(last_deferred[i]), product.grads);
      stage::backward_weight(ctx, first, batches[i], std::move(first_deferred[i]), product.grads);
    }
  }
  EXPECT_EQ(pool.num_free_pages(), num_pages);
  return meter;
}

}  // namespace hadal::test
