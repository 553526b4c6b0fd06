// Dense SwiGLU MLP and its backward in two halves.
//
//   T tokens   D model width   F hidden width
// SPDX-License-Identifier: Apache-2.0
#include "model/mlp.h"

#include <utility>

#include "model/bytes.h"
#include "model/linear.h"
#include "ops/activation.h"
#include "ops/copy.h"
#include "ops/few_tokens.h"
#include "ops/swiglu_tiles.h"

namespace hadal::mlp {

Saved first_forward(Context& ctx, const Weights& w, In x, const Precision& precision,
                    const ops::TileRows& x_tiles, Half* half) {
  const int64_t T = x.dim(0), F = w.w1.data.dim(0);
  const DType act = x.dtype();
  Saved s;
  s.memory = ctx.memory.take(saved_bytes(F, T, act, precision));
  if (precision.e4m3_swiglu) {
    half->memory = ctx.memory.take_tensor(act, {T, 2 * F}, &half->gate_up);
    s.gate_up_e4m3 = linear::tile_rows(s.memory, T, 2 * F);
  } else {
    s.gate_up = half->gate_up = s.memory.tensor(act, {T, 2 * F});
  }
  linear::forward_both(ctx, linear::Rows::of(ctx, x, linear::is_fp8(w.w1), x_tiles), w.w1, w.w3,
                       half->gate_up.cols(0, F), half->gate_up.cols(F, F));  // [T, F] each
  return s;
}

void second_forward(Context& ctx, const Weights& w, Saved& s, Half&& first, Out y) {
  const Half half = std::move(first);
  const int64_t T = y.dim(0), F = half.gate_up.dim(1) / 2;
  Block memory;
  if (linear::is_fp8(w.w2)) {
    memory = ctx.memory.take(ByteCount().add_tile_rows(T, F).total());
    const ops::TileRows hidden = linear::tile_rows(memory, T, F);
    ops::swiglu_forward_tiles(ctx, half.gate_up, s.gate_up_e4m3, hidden);  // [T, F]
    linear::forward(ctx, linear::Rows(hidden), w.w2, y);                   // [T, D]
  } else {
    Tensor hidden;
    memory = ctx.memory.take_tensor(y.dtype(), {T, F}, &hidden);
    ops::swiglu_forward(ctx, half.gate_up, hidden);                   // [T, F]
    linear::forward(ctx, linear::Rows(ctx, hidden, false), w.w2, y);  // [T, D]
  }
}

Saved forward(Context& ctx, const Weights& w, In x, Out y, const Precision& precision,
              const ops::TileRows& x_tiles) {
  Half half;
  Saved s = first_forward(ctx, w, x, precision, x_tiles, &half);
  second_forward(ctx, w, s, std::move(half), y);  // [T, D]
  return s;
}

namespace {

// y += ... in one op, with the ranks of `sums`, where that pays; false where it does not.
bool decode_few(Context& ctx, const Weights& w, const ops::PeerSums* sums, In x, Acc y) {
  const ops::MoeWeights weights{.w1 = {},
                                .w3 = {},
                                .w2 = {},
                                .shared_w1 = w.w1,
                                .shared_w3 = w.w3,
                                .shared_w2 = w.w2,
                                .sums = sums};
  bool pays = false;
  ops::moe_of_few_pays(ctx, weights, x, &pays);
  if (!pays) return false;
  Tensor no_idx, no_weight;
  const Block idx_memory = ctx.memory.take_tensor(DType::kI32, {x.dim(0), 0}, &no_idx);
  const Block weight_memory =
      ctx.memory.take_tensor(stat_dtype(x.dtype()), {x.dim(0), 0}, &no_weight);
  ops::moe_of_few(ctx, weights, x, no_idx, no_weight, y);
  return true;
}

}  // namespace

void decode(Context& ctx, const Weights& w, const DecodeGroup& group, In x, Acc y) {
  if (group.sums_in_ops() && decode_few(ctx, w, group.tensor.sums(), x, y)) return;
  add_sum(ctx, group, x, y, [&](In all, Acc part) {
    if (!group.has_all_tokens() && decode_few(ctx, w, nullptr, all, part)) return;
    Tensor out;
    const Block memory = ctx.memory.take_tensor(all.dtype(), all.shape(), &out);
    static_cast<void>(forward(ctx, w, all, out));  // [T, D]
    ops::add_acc(ctx, out, part);                  // [T, D]
  });
}

Deferred backward_input(Context& ctx, const Weights& w, Saved&& saved, In x, In dy, Out dx,
                        const Precision& precision) {
  const Saved s = std::move(saved);
  const auto [T, D] = HADAL_SHAPE(x, 2);
  const int64_t F = w.w1.data.dim(0);
  const DType act = x.dtype();
  const ops::TileRule rule = linear::gradient_rule(precision);
  Deferred d;
  d.fp8 = linear::is_fp8(w.w1);
  d.x = x;
  d.dy = dy;
  d.memory = ctx.memory.take(deferred_bytes(F, T, act));
  d.dgate_up = d.memory.tensor(act, {T, 2 * F});
  d.hidden = d.memory.tensor(act, {T, F});
  Tensor dhidden;
  const Block memory = ctx.memory.take_tensor(act, {T, F}, &dhidden);
  linear::backward_input(ctx, linear::Rows(ctx, dy, d.fp8, rule), w.w2, dhidden);  // [T, F]
  const auto through_gate_and_up = [&](const linear::Rows& dgate, const linear::Rows& dup) {
    linear::backward_input(ctx, dgate, w.w1, dx);         // [T, D]
    linear::backward_input_acc(ctx, dup, w.w3, Acc(dx));  // [T, D]
  };
  if (d.fp8) {
    const ops::TileRows gate_up = s.gate_up.empty() ? s.gate_up_e4m3 : ops::TileRows{s.gate_up, {}};
    Block tiles = ctx.memory.take(ByteCount().add_tile_rows(T, F).add_tile_rows(T, F).total());
    const ops::TileRows dgate = linear::tile_rows(tiles, T, F),
                        dup = linear::tile_rows(tiles, T, F);
    ops::swiglu_backward_tiles(ctx, gate_up, dhidden, rule, d.dgate_up, dgate, dup,
                               d.hidden);  // [T, 2F]
    through_gate_and_up(linear::Rows(dgate), linear::Rows(dup));
  } else {
    ops::swiglu_backward(ctx, s.gate_up, dhidden, d.dgate_up, d.hidden);  // [T, 2F]
    through_gate_and_up(linear::Rows(ctx, d.dgate_up.cols(0, F), false),
                        linear::Rows(ctx, d.dgate_up.cols(F, F), false));
  }
  return d;
}

void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw) {
  const Deferred d = std::move(deferred);
  const int64_t F = d.hidden.dim(1);
  {
    const linear::Columns x(ctx, d.x, d.fp8);
    const linear::Columns dgate(ctx, d.dgate_up.cols(0, F), d.fp8);
    const linear::Columns dup(ctx, d.dgate_up.cols(F, F), d.fp8);
    linear::backward_weight(ctx, dgate, x, dw.w1);  // [F, D] += [T, F]^T [T, D]
    linear::backward_weight(ctx, dup, x, dw.w3);    // [F, D]
  }
  const linear::Columns dy(ctx, d.dy, d.fp8), hidden(ctx, d.hidden, d.fp8);
  linear::backward_weight(ctx, dy, hidden, dw.w2);  // [D, F]
}

}  // namespace hadal::mlp
