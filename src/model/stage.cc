// A pipeline stage: the model's forward as one visible list, and its mirror.
//
//   T tokens   D model width   L layers of the stage
// SPDX-License-Identifier: Apache-2.0
#include "model/stage.h"

#include <algorithm>
#include <utility>

#include "model/bytes.h"
#include "model/embed.h"
#include "ops/copy.h"
#include "ops/loss.h"
#include "ops/norm.h"
#include "ops/routing.h"

namespace hadal::stage {
namespace {

block::Layer layer_of(const Stage& s, int64_t layer) {
  return {.config = s.config,
          .w = s.w.layers[static_cast<size_t>(layer)],
          .exchange = s.exchange,
          .is_moe = s.config.is_moe_layer(layer),
          .tensor = s.tensor};
}

mtp::Module module_of(const Stage& s, size_t k) {
  return {.config = s.config,
          .w = s.w.mtp[k],
          .embed = s.w.embed,
          .exchange = s.exchange,
          .tensor = s.tensor};
}

int64_t num_moe_layers(const Stage& s) {
  int64_t count = s.num_mtp;
  for (int64_t l = s.first_layer; l < s.last_layer; ++l) count += s.config.is_moe_layer(l) ? 1 : 0;
  return count;
}

// Adds one MoE layer's counts and balance loss to row `moe_idx` of the meter. Of a tensor group
// every rank knows the balance loss of all tokens, and one adds it.
void measure(Context& ctx, const Stage& s, const moe::Saved& saved, int64_t moe_idx, Meter& meter) {
  ops::count_choices(ctx, saved.gate.topk_idx, meter.counts.row(moe_idx));
  if (s.tensor.rank() == 0) ops::sum_acc(ctx, saved.gate.balance, meter.balance.rows(moe_idx, 1));
}

// Where backward's second half goes: at once, or into a Deferred.
struct Sink {
  Context& ctx;
  const Stage& stage;
  const Batch& batch;
  hadal::Grads* grads;  // null: keep
  Deferred* deferred;

  void head(head::Deferred&& d, int64_t depth) const {
    if (grads != nullptr) {
      head::backward_weight(ctx, stage.config, stage.w.head_of(stage.config), std::move(d),
                            grads->head_of(stage.config));
    } else if (depth < 0) {
      deferred->head = std::move(d);
    } else {
      deferred->mtp_head[static_cast<size_t>(depth)] = std::move(d);
    }
  }
  void mtp(mtp::Deferred&& d, size_t k) const {
    if (grads != nullptr)
      mtp::backward_weight(ctx, std::move(d), grads->mtp[k], grads->embed);
    else
      deferred->mtp[k] = std::move(d);
  }
  void block(block::Deferred&& d, int64_t layer) const {
    if (grads != nullptr)
      block::backward_weight(ctx, std::move(d), grads->layers[static_cast<size_t>(layer)]);
    else
      deferred->blocks[static_cast<size_t>(layer - stage.first_layer)] = std::move(d);
  }
  void norm(In dnorm) const {
    if (grads != nullptr) ops::add_acc(ctx, dnorm, grads->norm);
  }
  void embed(In dx) const {
    if (grads != nullptr)
      embed::backward_weight(ctx, dx, stage.tensor.own(batch.ids), grads->embed);
  }
};

// Gradient of the final state from the head and the MTP chain, deepest depth first: dh [T, D].
void loss_backward(const Sink& sink, Saved& s, const LossScale& scale, Out dh) {
  Context& ctx = sink.ctx;
  const Stage& stage = sink.stage;
  const Config& c = stage.config;
  const Operand& w_head = stage.w.head_of(c);
  sink.head(head::backward_input(ctx, c, w_head, std::move(s.head), scale.main, s.h, dh), -1);
  const DType act = s.h.dtype();
  Tensor dstate;  // gradient of the state of depth k, filled by its head and by depth k+1
  Block dstate_memory;
  for (size_t k = s.mtp.size(); k-- > 0;) {
    Tensor dout;
    Block dout_memory = ctx.memory.take_tensor(act, s.mtp[k].out.shape(), &dout);
    sink.head(head::backward_input(ctx, c, w_head, std::move(s.mtp_head[k]), scale.mtp[k],
                                   s.mtp[k].out, dout),
              static_cast<int64_t>(k));
    if (!dstate.empty()) ops::add_acc(ctx, dstate, dout);  // [Tk, D]
    // The state that this depth read: the final state for the first, else the depth before's.
    Tensor dprev = dh;
    Block dprev_memory;
    if (k > 0) {
      dprev_memory = ctx.memory.take_tensor(act, s.mtp[k - 1].out.shape(), &dprev);
      ops::fill(ctx, 0.0, dprev);
    }
    sink.mtp(mtp::backward_input(ctx, module_of(stage, k), sink.batch.mtp[k], std::move(s.mtp[k]),
                                 {.dout = dout, .balance_scale = scale.mtp_balance[k]}, dprev),
             k);
    dstate = dprev;
    dstate_memory = std::move(dprev_memory);
  }
}

void run_backward(const Sink& sink, Saved& s, const BackwardArgs& args, Out dx, Out dnorm) {
  Context& ctx = sink.ctx;
  const Stage& stage = sink.stage;
  Tensor dy;
  const Block dy_memory = ctx.memory.take_tensor(s.x[0].dtype(), s.x[0].shape(), &dy);
  if (stage.is_last()) {
    loss_backward(sink, s, args.scale, dy);
    ops::rmsnorm_backward(ctx, s.x.back(), stage.w.norm.data, s.rstd, dy, dx, dnorm);  // [T, D]
    sink.norm(dnorm);
  } else {
    ops::cast(ctx, args.dy_in, dx);
  }
  for (int64_t l = stage.last_layer; l-- > stage.first_layer;) {
    const auto i = static_cast<size_t>(l - stage.first_layer);
    ops::cast(ctx, dx, dy);
    sink.block(block::backward_input(ctx, layer_of(stage, l), std::move(s.blocks[i]),
                                     args.scale.balance, dy, dx),
               l);
  }
  if (stage.is_first())
    sink.embed(dx);
  else
    ops::cast(ctx, dx, args.dx_out);
}

}  // namespace

Stage whole_model(const Config& config, const hadal::Weights& w, Exchange& exchange,
                  int64_t num_mtp) {
  return {.config = config,
          .w = w,
          .exchange = exchange,
          .first_layer = 0,
          .last_layer = config.num_hidden_layers,
          .num_mtp = num_mtp};
}

Meter make_meter(Context& ctx, const Stage& s) {
  const int64_t M = num_moe_layers(s), E = s.config.n_routed_experts, depths = s.num_mtp;
  Meter meter;
  meter.memory = ctx.memory.take(
      ByteCount().add(DType::kF64, {1 + depths + M}).add(DType::kI64, {M, E}).total());
  meter.sums = meter.memory.tensor(DType::kF64, {1 + depths + M});
  meter.main = meter.sums.rows(0, 1);
  meter.mtp = meter.sums.rows(1, depths);
  meter.balance = meter.sums.rows(1 + depths, M);
  meter.counts = meter.memory.tensor(DType::kI64, {M, E});
  reset(ctx, meter);
  return meter;
}

void reset(Context& ctx, Meter& meter) {
  ops::fill(ctx, 0.0, meter.sums);
  ops::fill(ctx, 0.0, meter.counts);
}

Meter part_of(const Meter& whole, const Stage& s) {
  int64_t before = 0;
  for (int64_t l = 0; l < s.first_layer; ++l) before += s.config.is_moe_layer(l) ? 1 : 0;
  const int64_t M = num_moe_layers(s);
  Meter part;
  part.main = whole.main;
  part.mtp = whole.mtp.rows(0, s.num_mtp);
  part.balance = whole.balance.rows(before, M);
  part.counts = whole.counts.rows(before, M);
  return part;
}

Saved forward(Context& ctx, const Stage& stage, const Batch& batch, In x_in, Meter& meter) {
  const Config& c = stage.config;
  const int64_t T = stage.tensor.num_tokens(batch.seq.num_tokens), D = c.hidden_size;
  const int64_t L = stage.last_layer - stage.first_layer;
  const DType act = stage.is_first() ? stage.w.embed.data.dtype() : x_in.dtype();
  const DType stat = stat_dtype(act);
  Saved s;
  ByteCount bytes;
  for (int64_t l = 0; l <= L; ++l) bytes.add(act, {T, D});
  if (stage.is_last()) bytes.add(act, {T, D}).add(stat, {T});
  s.memory = ctx.memory.take(bytes.total());
  for (int64_t l = 0; l <= L; ++l) s.x.push_back(s.memory.tensor(act, {T, D}));

  // Embedding, layers.
  if (stage.is_first())
    embed::forward(ctx, stage.w.embed, stage.tensor.own(batch.ids), s.x[0]);  // [T, D]
  else
    ops::cast(ctx, x_in, s.x[0]);  // [T, D]
  int64_t moe_idx = 0;
  for (int64_t l = 0; l < L; ++l) {
    const auto i = static_cast<size_t>(l);
    const block::Layer layer = layer_of(stage, stage.first_layer + l);
    s.blocks.push_back(block::forward(ctx, layer, batch.seq, s.x[i], s.x[i + 1]));  // [T, D]
    if (layer.is_moe) measure(ctx, stage, s.blocks.back().moe, moe_idx++, meter);
  }
  if (!stage.is_last()) return s;

  // Final norm, head, and the chain of MTP modules.
  s.h = s.memory.tensor(act, {T, D});
  s.rstd = s.memory.tensor(stat, {T});
  ops::rmsnorm_forward(ctx, s.x.back(), stage.w.norm.data, c.rms_norm_eps, s.h, s.rstd);
  const Operand& w_head = stage.w.head_of(c);
  s.head = head::forward(ctx, c, w_head, s.h, stage.tensor.own(batch.targets));
  ops::sum_acc(ctx, s.head.loss, meter.main);
  for (size_t k = 0; k < static_cast<size_t>(stage.num_mtp); ++k) {
    const Tensor& h_prev = k == 0 ? s.h : s.mtp[k - 1].out;
    s.mtp.push_back(mtp::forward(ctx, module_of(stage, k), batch.mtp[k], h_prev));  // [Tk, D]
    s.mtp_head.push_back(
        head::forward(ctx, c, w_head, s.mtp[k].out, stage.tensor.own(batch.mtp[k].targets)));
    ops::sum_acc(ctx, s.mtp_head[k].loss, meter.mtp.rows(static_cast<int64_t>(k), 1));
    measure(ctx, stage, s.mtp[k].block.moe, moe_idx++, meter);
  }
  return s;
}

Deferred backward_input(Context& ctx, const Stage& stage, Saved&& saved, const BackwardArgs& args) {
  Deferred d;
  d.saved = std::move(saved);
  const DType act = d.saved.x[0].dtype(), stat = stat_dtype(act);
  const int64_t D = stage.config.hidden_size;
  d.memory = ctx.memory.take(ByteCount().add(act, d.saved.x[0].shape()).add(stat, {D}).total());
  d.dx = d.memory.tensor(act, d.saved.x[0].shape());
  d.dnorm = d.memory.tensor(stat, {D});
  d.blocks.resize(d.saved.blocks.size());
  d.mtp.resize(d.saved.mtp.size());
  d.mtp_head.resize(d.saved.mtp.size());
  const Sink sink{ctx, stage, args.batch, nullptr, &d};
  run_backward(sink, d.saved, args, d.dx, d.dnorm);
  return d;
}

void backward_weight(Context& ctx, const Stage& stage, const Batch& batch, Deferred&& deferred,
                     hadal::Grads& grads) {
  Deferred d = std::move(deferred);
  const Sink sink{ctx, stage, batch, &grads, nullptr};
  // NOTE: the order of backward(), since shared tensors (embedding, head) are added to in turn.
  if (stage.is_last()) {
    sink.head(std::move(d.head), -1);
    for (size_t k = d.mtp.size(); k-- > 0;) {
      sink.head(std::move(d.mtp_head[k]), static_cast<int64_t>(k));
      sink.mtp(std::move(d.mtp[k]), k);
    }
    sink.norm(d.dnorm);
  }
  for (int64_t l = stage.last_layer; l-- > stage.first_layer;)
    sink.block(std::move(d.blocks[static_cast<size_t>(l - stage.first_layer)]), l);
  if (stage.is_first()) sink.embed(d.dx);
}

void backward(Context& ctx, const Stage& stage, Saved&& saved, const BackwardArgs& args,
              hadal::Grads& grads) {
  Saved s = std::move(saved);
  Tensor dx, dnorm;
  const DType act = s.x[0].dtype();
  const Block dx_memory = ctx.memory.take_tensor(act, s.x[0].shape(), &dx);
  const Block dnorm_memory =
      ctx.memory.take_tensor(stat_dtype(act), {stage.config.hidden_size}, &dnorm);
  const Sink sink{ctx, stage, args.batch, &grads, nullptr};
  run_backward(sink, s, args, dx, dnorm);
}

}  // namespace hadal::stage
