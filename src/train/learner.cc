// Learner: the training step.
// SPDX-License-Identifier: Apache-2.0
#include "train/learner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/env.h"
#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/copy.h"
#include "ops/optim.h"
#include "ops/routing.h"

namespace hadal::train {
namespace {

// Pages for the MoE layers of one micro-batch, all saved at once.
int64_t pool_pages(const Config& c, int64_t max_tokens) {
  return std::max<int64_t>(1, c.num_moe_layers() * experts::max_pages(c, max_tokens));
}

std::vector<std::vector<int64_t>> read_counts(Context& ctx, const Tensor& counts) {
  const std::vector<int64_t> flat = download<int64_t>(ctx, counts);
  std::vector<std::vector<int64_t>> all;
  for (int64_t m = 0; m < counts.dim(0); ++m) {
    const auto row = flat.begin() + m * counts.dim(1);
    all.emplace_back(row, row + counts.dim(1));
  }
  return all;
}

// Targets and sequences of a whole step, by depth: index 0 is the main model.
struct Totals {
  std::vector<int64_t> targets, sequences;
};

Totals count_totals(const std::vector<std::vector<Sequence>>& micro_batches, int64_t num_mtp) {
  Totals totals;
  for (int64_t k = 0; k <= num_mtp; ++k) {
    int64_t targets = 0, sequences = 0;
    for (const auto& batch : micro_batches)
      for (const Sequence& s : batch) {
        int64_t positions = 0;
        for (int64_t d = 0; d < s.num_documents(); ++d) {
          const int64_t first = s.begin_of(d) + k, last = s.end_of(d);
          if (last <= first) continue;
          positions += last - first;
          targets +=
              last - first - std::count(s.targets.begin() + first, s.targets.begin() + last, -1);
        }
        if (positions > 0) ++sequences;
      }
    totals.targets.push_back(targets);
    totals.sequences.push_back(sequences);
  }
  return totals;
}

double share(double weight, int64_t count) {
  return count > 0 ? weight / static_cast<double>(count) : 0.0;
}

// The planted fault "counts": what bf16 counters would hold.
void round_counts_to_bf16(Context& ctx, const Tensor& counts) {
  std::vector<int64_t> values = download<int64_t>(ctx, counts);
  for (int64_t& v : values) v = static_cast<int64_t>(to_f32(to_bf16(static_cast<float>(v))));
  upload(ctx, values, counts);
}

}  // namespace

double StepResult::max_violation() const {
  double sum = 0.0;
  for (const auto& layer : counts) {
    int64_t total = 0, largest = 0;
    for (int64_t count : layer) {
      total += count;
      largest = std::max(largest, count);
    }
    if (total > 0)
      sum += static_cast<double>(largest) * static_cast<double>(layer.size()) /
                 static_cast<double>(total) -
             1.0;
  }
  return counts.empty() ? 0.0 : sum / static_cast<double>(counts.size());
}

Learner::Learner(Context& ctx, const Config& config, DType compute, int64_t max_tokens,
                 const LearnerOptions& options)
    : ctx_(ctx),
      config_(config),
      compute_(compute),
      ema_decay_(options.ema_decay),
      masters_(ctx, config, stat_dtype(compute), ParamStore::Extent::kAll),
      grads_(ctx, config, stat_dtype(compute), ParamStore::Extent::kTrained),
      m_(ctx, config, options.moments.value_or(stat_dtype(compute)), ParamStore::Extent::kTrained),
      v_(ctx, config, options.moments.value_or(stat_dtype(compute)), ParamStore::Extent::kTrained),
      copies_(compute == DType::kBF16 ? std::make_unique<ParamStore>(ctx, config, compute,
                                                                     ParamStore::Extent::kMatrices)
                                      : nullptr),
      average_(options.ema_decay > 0.0
                   ? std::make_unique<ParamStore>(ctx, config, stat_dtype(compute),
                                                  ParamStore::Extent::kAll)
                   : nullptr),
      weights_(weights_of(config_, masters_.tree, copies_ ? &copies_->tree : nullptr)),
      rows_(ctx, config_, compute, pool_pages(config_, max_tokens)),
      exchange_(rows_, config_.n_routed_experts),
      stage_(stage::whole_model(config_, weights_, exchange_, config_.num_nextn_predict_layers)),
      meter_(stage::make_meter(ctx, stage_)) {
  HADAL_CHECK(compute == DType::kF64 || compute == DType::kF32 || compute == DType::kBF16,
              "training computes in f64, f32 or bf16, not ", dtype_name(compute));
}

void Learner::masters_changed() {
  if (copies_) ops::cast(ctx_, masters_.matrices(), copies_->matrices());
}

void Learner::start_average() {
  if (average_) ops::cast(ctx_, masters_.flat(), average_->flat());
}

StepResult Learner::compute_gradients(const std::vector<std::vector<Sequence>>& micro_batches,
                                      const Recipe& recipe) {
  const int64_t depths = stage_.num_mtp;
  const Totals totals = count_totals(micro_batches, depths);
  stage::LossScale scale;
  scale.main = share(1.0, totals.targets[0]);
  scale.balance = share(recipe.balance_alpha, totals.sequences[0]);
  for (size_t k = 1; k < totals.targets.size(); ++k) {
    scale.mtp.push_back(share(recipe.mtp_weight / static_cast<double>(depths), totals.targets[k]));
    scale.mtp_balance.push_back(share(recipe.balance_alpha, totals.sequences[k]));
  }

  stage::reset(ctx_, meter_);
  ops::fill(ctx_, 0.0, grads_.flat());
  const bool drop_last = env::sabotage() == "microbatch";
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    const Batch batch = make_batch(ctx_, config_, micro_batches[i], depths, compute_);
    stage::Saved saved = stage::forward(ctx_, stage_, batch, In(), meter_);
    if (drop_last && i + 1 == micro_batches.size()) continue;
    stage::backward(ctx_, stage_, std::move(saved),
                    {.batch = batch, .scale = scale, .dy_in = In(), .dx_out = Out()}, grads_.tree);
  }

  StepResult result;
  result.num_targets = totals.targets[0];
  result.main = share(download<double>(ctx_, meter_.main)[0], totals.targets[0]);
  const std::vector<double> mtp = download<double>(ctx_, meter_.mtp);
  for (size_t k = 0; k < mtp.size(); ++k)
    result.mtp.push_back(share(mtp[k], totals.targets[k + 1]));
  const std::vector<double> balance = download<double>(ctx_, meter_.balance);
  const int64_t num_moe = meter_.balance.num_elements(), main_moe = num_moe - depths;
  for (int64_t m = 0; m < num_moe; ++m)
    result.balance +=
        share(balance[static_cast<size_t>(m)],
              totals.sequences[static_cast<size_t>(std::max<int64_t>(0, m - main_moe + 1))]);
  result.counts = read_counts(ctx_, meter_.counts);
  Tensor norm;
  const Block memory = ctx_.memory.take_tensor(DType::kF64, {1}, &norm);
  ops::fill(ctx_, 0.0, norm);
  ops::sum_squares_acc(ctx_, grads_.flat(), norm);
  result.grad_norm = std::sqrt(download<double>(ctx_, norm)[0]);
  return result;
}

void Learner::update(const Recipe& recipe, int64_t step, const StepResult& measured) {
  HADAL_CHECK(std::isfinite(measured.grad_norm), "step ", step, ": the gradient norm is ",
              measured.grad_norm, "; lower the learning rate or go on from an earlier checkpoint");
  ops::AdamW rule{.lr = recipe.lr,
                  .beta1 = recipe.beta1,
                  .beta2 = recipe.beta2,
                  .eps = recipe.eps,
                  .weight_decay = recipe.weight_decay,
                  .step = step,
                  .grad_scale = 1.0};
  if (recipe.clip_norm > 0.0)
    rule.grad_scale = std::min(1.0, recipe.clip_norm / (measured.grad_norm + 1e-6));
  ops::adamw(ctx_, rule, grads_.decayed(), masters_.decayed(), m_.decayed(), v_.decayed());
  rule.weight_decay = 0.0;
  ops::adamw(ctx_, rule, grads_.norms(), masters_.norms(), m_.norms(), v_.norms());
  masters_changed();
  if (recipe.bias_gamma > 0.0) move_biases(recipe.bias_gamma);
  if (!average_) return;
  const auto trained = masters_.trained().num_elements(), all = masters_.flat().num_elements();
  ops::ema_update(ctx_, ema_decay_, masters_.trained(), average_->trained());
  ops::cast(ctx_, masters_.flat().rows(trained, all - trained),
            average_->flat().rows(trained, all - trained));
}

void Learner::move_biases(double gamma) {
  if (env::sabotage() == "counts") round_counts_to_bf16(ctx_, meter_.counts);
  int64_t moe_idx = 0;
  const auto move_bias = [&](block::Params<Tensor>& b) {
    ops::bias_update(ctx_, meter_.counts.row(moe_idx++), gamma, b.moe.gate.bias);
  };
  for (int64_t l = 0; l < config_.num_hidden_layers; ++l)
    if (config_.is_moe_layer(l)) move_bias(masters_.tree.layers[static_cast<size_t>(l)]);
  for (auto& module : masters_.tree.mtp) move_bias(module.block);
}

StepResult Learner::step(const std::vector<std::vector<Sequence>>& micro_batches,
                         const Recipe& recipe, int64_t step) {
  StepResult result = compute_gradients(micro_batches, recipe);
  update(recipe, step, result);
  return result;
}

Learner::Evaluation Learner::evaluate(const std::vector<std::vector<Sequence>>& micro_batches) {
  stage::Meter meter = stage::make_meter(ctx_, stage_);
  Evaluation e;
  e.mtp_targets.resize(static_cast<size_t>(stage_.num_mtp));
  for (const auto& sequences : micro_batches) {
    const Batch batch = make_batch(ctx_, config_, sequences, stage_.num_mtp, compute_);
    static_cast<void>(stage::forward(ctx_, stage_, batch, In(), meter));
    e.num_targets += batch.num_targets;
    for (size_t k = 0; k < batch.mtp.size(); ++k) e.mtp_targets[k] += batch.mtp[k].num_targets;
  }
  e.main_sum = download<double>(ctx_, meter.main)[0];
  e.mtp_sum = download<double>(ctx_, meter.mtp);
  e.counts = read_counts(ctx_, meter.counts);
  return e;
}

}  // namespace hadal::train
