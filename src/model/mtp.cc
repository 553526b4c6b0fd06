// One multi-token-prediction module, its backward in two halves, and its decode form.
//
//   Tk tokens of this depth, T of the depth before, both of this rank   D model width
// SPDX-License-Identifier: Apache-2.0
#include "model/mtp.h"

#include <utility>

#include "model/bytes.h"
#include "model/embed.h"
#include "ops/gemm.h"
#include "ops/norm.h"

namespace hadal::mtp {
namespace {

block::Layer layer_of(const Module& m) {
  return {.config = m.config,
          .w = m.w.block,
          .exchange = m.exchange,
          .is_moe = true,
          .tensor = m.tensor,
          .tokens = m.tokens};
}

// Gradients of rows of the depth before, on whatever rank they are: dh_prev [T, D] += ...
void scatter_rows(Context& ctx, const TensorGroup& group, const Batch::Depth& depth, In dh,
                  Acc dh_prev) {
  const Tensor rows = group.own(depth.rows);
  if (group.is_alone()) return ops::embed_backward_acc(ctx, dh, rows, dh_prev);
  Tensor own;
  const Block memory = ctx.memory.take_tensor(dh.dtype(), dh_prev.shape(), &own);
  PartialSums sum(ctx, group, depth.num_before, {own});
  ops::fill(ctx, 0.0, sum.all(0));
  ops::embed_backward_acc(ctx, dh, rows, sum.all(0));
  sum.finish(ctx);
  ops::add_acc(ctx, own, dh_prev);
}

}  // namespace

Saved forward(Context& ctx, const Module& m, const Batch::Depth& depth, In h_prev) {
  const int64_t T = m.tensor.num_tokens(depth.seq.num_tokens), D = m.config.hidden_size;
  const double eps = m.config.rms_norm_eps;
  const DType act = h_prev.dtype(), stat = stat_dtype(act);
  Saved s;
  ByteCount bytes;
  for (int i = 0; i < 4; ++i) bytes.add(act, {T, D});
  for (int i = 0; i < 3; ++i) bytes.add(stat, {T});
  s.memory = ctx.memory.take(bytes.total());
  s.h = s.memory.tensor(act, {T, D});
  s.x = s.memory.tensor(act, {T, D});
  s.y = s.memory.tensor(act, {T, D});
  s.out = s.memory.tensor(act, {T, D});
  s.z_rstd_e = s.memory.tensor(stat, {T});
  s.z_rstd_h = s.memory.tensor(stat, {T});
  s.rstd = s.memory.tensor(stat, {T});

  Tensor e, z;
  const Block e_memory = ctx.memory.take_tensor(act, {T, D}, &e);
  const Block z_memory = ctx.memory.take_tensor(act, {T, 2 * D}, &z);
  const Gathered before = gather(ctx, m.tensor, depth.num_before, {h_prev});
  embed::forward(ctx, m.embed, m.tensor.own(depth.ids), e);                       // [Tk, D]
  ops::embed_forward(ctx, before.rows[0], m.tensor.own(depth.rows), s.h);         // [Tk, D]
  ops::rmsnorm_forward(ctx, e, m.w.enorm.data, eps, z.cols(0, D), s.z_rstd_e);    // [Tk, D]
  ops::rmsnorm_forward(ctx, s.h, m.w.hnorm.data, eps, z.cols(D, D), s.z_rstd_h);  // [Tk, D]
  ops::gemm_nt(ctx, z, m.w.eh_proj, s.x);                                         // [Tk, D]
  s.block = block::forward(ctx, layer_of(m), depth.seq, s.x, s.y);                // [Tk, D]
  ops::rmsnorm_forward(ctx, s.y, m.w.norm.data, eps, s.out, s.rstd);              // [Tk, D]
  return s;
}

Deferred backward_input(Context& ctx, const Module& m, const Batch::Depth& depth, Saved&& saved,
                        const BackwardArgs& args, Acc dh_prev) {
  Saved s = std::move(saved);
  const int64_t T = s.x.dim(0), D = m.config.hidden_size;
  const DType act = s.x.dtype(), stat = stat_dtype(act);
  Deferred d;
  d.memory = ctx.memory.take(ByteCount()
                                 .add(act, {T, 2 * D})
                                 .add(act, {T, D})
                                 .add(act, {T, D})
                                 .add(stat, {D})
                                 .add(stat, {D})
                                 .add(stat, {D})
                                 .total());
  d.z = d.memory.tensor(act, {T, 2 * D});
  d.dx = d.memory.tensor(act, {T, D});
  d.de = d.memory.tensor(act, {T, D});
  d.denorm = d.memory.tensor(stat, {D});
  d.dhnorm = d.memory.tensor(stat, {D});
  d.dnorm = d.memory.tensor(stat, {D});

  // Through the norm and the block.
  Tensor dy, dz, e;
  const Block dy_memory = ctx.memory.take_tensor(act, {T, D}, &dy);
  const Block dz_memory = ctx.memory.take_tensor(act, {T, 2 * D}, &dz);
  const Block e_memory = ctx.memory.take_tensor(act, {T, D}, &e);
  ops::rmsnorm_backward(ctx, s.y, m.w.norm.data, s.rstd, args.dout, dy, d.dnorm);  // [Tk, D]
  d.block =
      block::backward_input(ctx, layer_of(m), std::move(s.block), args.balance_scale, dy, d.dx);

  // Through eh_proj and the two norms; z is recomputed.
  d.ids = m.tensor.own(depth.ids);
  embed::forward(ctx, m.embed, d.ids, e);
  ops::rmsnorm_recompute(ctx, e, m.w.enorm.data, s.z_rstd_e, d.z.cols(0, D));
  ops::rmsnorm_recompute(ctx, s.h, m.w.hnorm.data, s.z_rstd_h, d.z.cols(D, D));
  ops::gemm_nn(ctx, d.dx, m.w.eh_proj, dz);  // [Tk, 2D]
  ops::rmsnorm_backward(ctx, e, m.w.enorm.data, s.z_rstd_e, dz.cols(0, D), d.de, d.denorm);
  ops::rmsnorm_backward(ctx, s.h, m.w.hnorm.data, s.z_rstd_h, dz.cols(D, D), dy, d.dhnorm);
  scatter_rows(ctx, m.tensor, depth, dy, dh_prev);  // [T, D] +=
  d.saved = std::move(s.memory);
  return d;
}

void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw, Acc dembed) {
  Deferred d = std::move(deferred);
  block::backward_weight(ctx, std::move(d.block), dw.block);
  ops::gemm_tn_acc(ctx, d.dx, d.z, dw.eh_proj);      // [D, 2D] += [Tk, D]^T [Tk, 2D]
  ops::add_acc(ctx, d.dnorm, dw.norm);               // [D]
  ops::add_acc(ctx, d.denorm, dw.enorm);             // [D]
  ops::add_acc(ctx, d.dhnorm, dw.hnorm);             // [D]
  embed::backward_weight(ctx, d.de, d.ids, dembed);  // [V, D]
}

void decode(Context& ctx, const Module& m, const Step& step, const ops::LatentPages& cache, In h,
            Out out) {
  const auto [T, D] = HADAL_SHAPE(h, 2);
  const double eps = m.config.rms_norm_eps;
  const DType act = h.dtype();
  Tensor e, z, x, rstd;
  const Block e_memory = ctx.memory.take_tensor(act, {T, D}, &e);
  const Block z_memory = ctx.memory.take_tensor(act, {T, 2 * D}, &z);
  const Block x_memory = ctx.memory.take_tensor(act, {T, D}, &x);
  const Block rstd_memory = ctx.memory.take_tensor(stat_dtype(act), {T}, &rstd);
  if (T > 0) {
    embed::forward(ctx, m.embed, step.ids, e);                              // [T, D]
    ops::rmsnorm_forward(ctx, e, m.w.enorm.data, eps, z.cols(0, D), rstd);  // [T, D]
    ops::rmsnorm_forward(ctx, h, m.w.hnorm.data, eps, z.cols(D, D), rstd);  // [T, D]
    ops::gemm_nt(ctx, z, m.w.eh_proj, x);                                   // [T, D]
  }
  block::decode(ctx, layer_of(m), step.seq, cache, x);                     // [T, D]
  if (T > 0) ops::rmsnorm_forward(ctx, x, m.w.norm.data, eps, out, rstd);  // [T, D]
}

}  // namespace hadal::mtp
