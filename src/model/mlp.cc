// Dense SwiGLU MLP and its backward in two halves.
//
//   T tokens   D model width   F hidden width
// SPDX-License-Identifier: Apache-2.0
#include "model/mlp.h"

#include <utility>

#include "model/bytes.h"
#include "ops/activation.h"
#include "ops/copy.h"
#include "ops/few_tokens.h"
#include "ops/gemm.h"

namespace hadal::mlp {

Saved forward(Context& ctx, const Weights& w, In x, Out y) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  const int64_t F = w.w1.data.dim(0);
  Saved s;
  s.memory = ctx.memory.take(saved_bytes(F, T, x.dtype()));
  s.gate_up = s.memory.tensor(x.dtype(), {T, 2 * F});
  ops::gemm_nt(ctx, x, w.w1, s.gate_up.cols(0, F));  // [T, F]
  ops::gemm_nt(ctx, x, w.w3, s.gate_up.cols(F, F));  // [T, F]
  Tensor hidden;
  const Block memory = ctx.memory.take_tensor(x.dtype(), {T, F}, &hidden);
  ops::swiglu_forward(ctx, s.gate_up, hidden);  // [T, F]
  ops::gemm_nt(ctx, hidden, w.w2, y);           // [T, D]
  return s;
}

void decode(Context& ctx, const Weights& w, In x, Acc y) {
  const ops::MoeWeights weights{
      .w1 = {}, .w3 = {}, .w2 = {}, .shared_w1 = w.w1, .shared_w3 = w.w3, .shared_w2 = w.w2};
  bool pays = false;
  ops::moe_of_few_pays(ctx, weights, x, &pays);
  if (pays) {
    Tensor no_idx, no_weight;
    const Block idx_memory = ctx.memory.take_tensor(DType::kI32, {x.dim(0), 0}, &no_idx);
    const Block weight_memory =
        ctx.memory.take_tensor(stat_dtype(x.dtype()), {x.dim(0), 0}, &no_weight);
    return ops::moe_of_few(ctx, weights, x, no_idx, no_weight, y);
  }
  Tensor out;
  const Block memory = ctx.memory.take_tensor(x.dtype(), x.shape(), &out);
  static_cast<void>(forward(ctx, w, x, out));  // [T, D]
  ops::add_acc(ctx, out, y);                   // [T, D]
}

Deferred backward_input(Context& ctx, const Weights& w, Saved&& saved, In x, In dy, Out dx) {
  const Saved s = std::move(saved);
  const auto [T, D] = HADAL_SHAPE(x, 2);
  const int64_t F = w.w1.data.dim(0);
  Deferred d;
  d.x = x;
  d.dy = dy;
  d.memory = ctx.memory.take(deferred_bytes(F, T, x.dtype()));
  d.dgate_up = d.memory.tensor(x.dtype(), {T, 2 * F});
  d.hidden = d.memory.tensor(x.dtype(), {T, F});
  Tensor dhidden;
  const Block memory = ctx.memory.take_tensor(x.dtype(), {T, F}, &dhidden);
  ops::gemm_nn(ctx, dy, w.w2, dhidden);                                 // [T, F]
  ops::swiglu_backward(ctx, s.gate_up, dhidden, d.dgate_up, d.hidden);  // [T, 2F]
  ops::gemm_nn(ctx, d.dgate_up.cols(0, F), w.w1, dx);                   // [T, D]
  ops::gemm_nn_acc(ctx, d.dgate_up.cols(F, F), w.w3, dx);               // [T, D]
  return d;
}

void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw) {
  const Deferred d = std::move(deferred);
  const int64_t F = d.hidden.dim(1);
  ops::gemm_tn_acc(ctx, d.dgate_up.cols(0, F), d.x, dw.w1);  // [F, D] += [T, F]^T [T, D]
  ops::gemm_tn_acc(ctx, d.dgate_up.cols(F, F), d.x, dw.w3);  // [F, D]
  ops::gemm_tn_acc(ctx, d.dy, d.hidden, dw.w2);              // [D, F]
}

}  // namespace hadal::mlp
