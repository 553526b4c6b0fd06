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

void tell_done(const Stage& stage, int64_t layer) {
  if (stage.layer_done) stage.layer_done(layer);
}
void tell_begin(const Stage& stage, int64_t layer) {
  if (stage.layer_begins) stage.layer_begins(layer);
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
    if (grads != nullptr) {
      mtp::backward_weight(ctx, std::move(d), grads->mtp[k], grads->embed);
      tell_done(stage, stage.config.num_hidden_layers + static_cast<int64_t>(k));
    } else {
      deferred->mtp[k] = std::move(d);
    }
  }
  void block(block::Deferred&& d, int64_t layer) const {
    if (grads != nullptr) {
      block::backward_weight(ctx, std::move(d), grads->layers[static_cast<size_t>(layer)]);
      tell_done(stage, layer);
    } else {
      deferred->blocks[static_cast<size_t>(layer - stage.first_layer)] = std::move(d);
    }
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

// The gradient of the residual stream on its way through backward's layers.
struct Gradient {
  Block memory, copy_memory;
  Tensor dx;     // [T, D]   of the output of the layer that is next
  Tensor dnorm;  // [D]
  Tensor dy;     // [T, D]   room for a copy of dx
};

Gradient make_gradient(Context& ctx, const Stage& stage, const Saved& s) {
  const DType act = s.x[0].dtype(), stat = stat_dtype(act);
  const Shape shape = s.x[0].shape();
  const int64_t D = stage.config.hidden_size;
  Gradient g;
  g.memory = ctx.memory.take(ByteCount().add(act, shape).add(stat, {D}).total());
  g.dx = g.memory.tensor(act, shape);
  g.dnorm = g.memory.tensor(stat, {D});
  g.copy_memory = ctx.memory.take_tensor(act, shape, &g.dy);
  return g;
}

// The gradient of the last layer's output: of the loss, or from the stage after.
void begin_backward(const Sink& sink, Saved& s, const BackwardArgs& args, Gradient& g) {
  if (!sink.stage.is_last()) return ops::cast(sink.ctx, args.dy_in, g.dx);
  loss_backward(sink, s, args.scale, g.dy);
  ops::rmsnorm_backward(sink.ctx, s.x.back(), sink.stage.w.norm.data, s.rstd, g.dy, g.dx, g.dnorm);
  sink.norm(g.dnorm);
}

void layer_backward(const Sink& sink, Saved& s, int64_t layer, double balance, Gradient& g) {
  block::Saved& saved = s.blocks[static_cast<size_t>(layer - sink.stage.first_layer)];
  ops::cast(sink.ctx, g.dx, g.dy);
  const block::Layer l = layer_of(sink.stage, layer);
  if (sink.grads == nullptr)
    return sink.block(block::backward_input(sink.ctx, l, std::move(saved), balance, g.dy, g.dx),
                      layer);
  block::backward(sink.ctx, l, std::move(saved), balance, g.dy, g.dx,
                  sink.grads->layers[static_cast<size_t>(layer)]);
  tell_done(sink.stage, layer);
}

// The gradient of the first layer's input: to the embedding, or to the stage before.
void end_backward(const Sink& sink, const BackwardArgs& args, const Gradient& g) {
  if (sink.stage.is_first())
    sink.embed(g.dx);
  else
    ops::cast(sink.ctx, g.dx, args.dx_out);
}

void run_backward(const Sink& sink, Saved& s, const BackwardArgs& args, Gradient& g) {
  begin_backward(sink, s, args, g);
  for (int64_t l = sink.stage.last_layer; l-- > sink.stage.first_layer;)
    layer_backward(sink, s, l, args.scale.balance, g);
  end_backward(sink, args, g);
}

// Room for the residual stream, and its beginning: the embedding, or what the stage before sent.
Saved begin_forward(Context& ctx, const Stage& stage, const Batch& batch, In x_in) {
  const int64_t T = stage.tensor.num_tokens(batch.seq.num_tokens), D = stage.config.hidden_size;
  const int64_t L = stage.last_layer - stage.first_layer;
  const DType act = stage.is_first() ? stage.w.embed.data.dtype() : x_in.dtype();
  const DType stat = stat_dtype(act);
  Saved s;
  ByteCount bytes;
  for (int64_t l = 0; l <= L; ++l) bytes.add(act, {T, D});
  if (stage.is_last()) bytes.add(act, {T, D}).add(stat, {T});
  s.memory = ctx.memory.take(bytes.total());
  for (int64_t l = 0; l <= L; ++l) s.x.push_back(s.memory.tensor(act, {T, D}));
  if (stage.is_first())
    embed::forward(ctx, stage.w.embed, stage.tensor.own(batch.ids), s.x[0]);  // [T, D]
  else
    ops::cast(ctx, x_in, s.x[0]);  // [T, D]
  return s;
}

// What layer i of the stage adds to the meter.
void measure_layer(Context& ctx, const Stage& stage, const Saved& s, size_t i, Meter& meter) {
  if (!stage.config.is_moe_layer(stage.first_layer + static_cast<int64_t>(i))) return;
  int64_t moe_idx = 0;
  for (int64_t l = 0; l < static_cast<int64_t>(i); ++l)
    moe_idx += stage.config.is_moe_layer(stage.first_layer + l) ? 1 : 0;
  measure(ctx, stage, s.blocks[i].moe, moe_idx, meter);
}

void layer_forward(Context& ctx, const Stage& stage, const Batch& batch, Saved& s, Meter& meter) {
  const size_t i = s.blocks.size();
  tell_begin(stage, stage.first_layer + static_cast<int64_t>(i));
  const block::Layer layer = layer_of(stage, stage.first_layer + static_cast<int64_t>(i));
  s.blocks.push_back(block::forward(ctx, layer, batch.seq, s.x[i], s.x[i + 1]));  // [T, D]
  measure_layer(ctx, stage, s, i, meter);
}

// Of the last stage: final norm, head, and the chain of MTP modules.
void end_forward(Context& ctx, const Stage& stage, const Batch& batch, Saved& s, Meter& meter) {
  if (!stage.is_last()) return;
  const Config& c = stage.config;
  const DType act = s.x[0].dtype();
  s.h = s.memory.tensor(act, s.x[0].shape());
  s.rstd = s.memory.tensor(stat_dtype(act), {s.x[0].dim(0)});
  ops::rmsnorm_forward(ctx, s.x.back(), stage.w.norm.data, c.rms_norm_eps, s.h, s.rstd);
  const Operand& w_head = stage.w.head_of(c);
  s.head = head::forward(ctx, c, w_head, s.h, stage.tensor.own(batch.targets));
  ops::sum_acc(ctx, s.head.loss, meter.main);
  int64_t moe_idx = num_moe_layers(stage) - stage.num_mtp;
  for (size_t k = 0; k < static_cast<size_t>(stage.num_mtp); ++k) {
    const Tensor& h_prev = k == 0 ? s.h : s.mtp[k - 1].out;
    tell_begin(stage, c.num_hidden_layers + static_cast<int64_t>(k));
    s.mtp.push_back(mtp::forward(ctx, module_of(stage, k), batch.mtp[k], h_prev));  // [Tk, D]
    s.mtp_head.push_back(
        head::forward(ctx, c, w_head, s.mtp[k].out, stage.tensor.own(batch.mtp[k].targets)));
    ops::sum_acc(ctx, s.mtp_head[k].loss, meter.mtp.rows(static_cast<int64_t>(k), 1));
    measure(ctx, stage, s.mtp[k].block.moe, moe_idx++, meter);
  }
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
  Saved s = begin_forward(ctx, stage, batch, x_in);
  for (int64_t l = stage.first_layer; l < stage.last_layer; ++l)
    layer_forward(ctx, stage, batch, s, meter);
  end_forward(ctx, stage, batch, s, meter);
  return s;
}

Deferred backward_input(Context& ctx, const Stage& stage, Saved&& saved, const BackwardArgs& args) {
  Deferred d;
  d.saved = std::move(saved);
  d.blocks.resize(d.saved.blocks.size());
  d.mtp.resize(d.saved.mtp.size());
  d.mtp_head.resize(d.saved.mtp.size());
  Gradient g = make_gradient(ctx, stage, d.saved);
  const Sink sink{ctx, stage, args.batch, nullptr, &d};
  run_backward(sink, d.saved, args, g);
  d.dx = g.dx;
  d.dnorm = g.dnorm;
  d.memory = std::move(g.memory);
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
  Gradient g = make_gradient(ctx, stage, s);
  const Sink sink{ctx, stage, args.batch, &grads, nullptr};
  run_backward(sink, s, args, g);
}

Saved overlap(Context& ctx, const ForwardArgs& f, const Stage& stage, Saved&& saved,
              const BackwardArgs& args, hadal::Grads& grads) {
  Saved behind = std::move(saved);
  Gradient g = make_gradient(ctx, stage, behind);
  const Sink sink{ctx, stage, args.batch, &grads, nullptr};
  begin_backward(sink, behind, args, g);
  Saved s = begin_forward(ctx, f.stage, f.batch, f.x_in);
  const int64_t pairs =
      std::min(f.stage.last_layer - f.stage.first_layer, stage.last_layer - stage.first_layer);
  int64_t ahead = f.stage.first_layer, back = stage.last_layer - 1;
  Context beside = ctx;
  beside.spare_sms += stage.spare_sms;
  const auto saved_of = [&](int64_t layer) -> block::Saved& {
    return behind.blocks[static_cast<size_t>(layer - stage.first_layer)];
  };
  block::Deferred d;
  const auto start = [&](int64_t layer) {
    d = block::combine_backward(beside, layer_of(stage, layer), saved_of(layer), g.dx);
  };
  if (pairs > 0) start(back);
  for (int64_t i = 0; i < pairs; ++i, ++ahead, --back) {
    const auto at = static_cast<size_t>(i);
    const block::Layer layer = layer_of(f.stage, ahead), layer_back = layer_of(stage, back);
    tell_begin(f.stage, ahead);
    s.blocks.push_back(
        block::overlap(beside, {.layer = layer, .seq = f.batch.seq, .x = s.x[at], .y = s.x[at + 1]},
                       {.layer = layer_back,
                        .saved = std::move(saved_of(back)),
                        .deferred = std::move(d),
                        .balance_scale = args.scale.balance,
                        .dx = g.dx,
                        .dw = grads.layers[static_cast<size_t>(back)],
                        .next = [&] {
                          if (i + 1 < pairs) start(back - 1);
                        }}));
    measure_layer(ctx, f.stage, s, at, f.meter);
    tell_done(stage, back);
  }
  for (; back >= stage.first_layer; --back)
    layer_backward(sink, behind, back, args.scale.balance, g);
  end_backward(sink, args, g);
  for (; ahead < f.stage.last_layer; ++ahead) layer_forward(ctx, f.stage, f.batch, s, f.meter);
  end_forward(ctx, f.stage, f.batch, s, f.meter);
  return s;
}

}  // namespace hadal::stage
