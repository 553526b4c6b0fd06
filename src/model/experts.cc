// Routed experts and their backward in two halves.
//
//   P pages   D model width   F hidden width of an expert
// SPDX-License-Identifier: Apache-2.0
#include "model/experts.h"

#include <utility>

#include "model/bytes.h"
#include "ops/activation.h"
#include "ops/gemm.h"

namespace hadal::experts {
namespace {

ops::PagedRows cols(const ops::PagedRows& rows, int64_t begin, int64_t count) {
  return {.slab = rows.slab.cols(begin, count), .page = rows.page};
}

}  // namespace

void forward(Context& ctx, const Config& c, const Weights& w, const Rows& r, Saved& saved,
             const ops::PagedRows& y) {
  const int64_t F = c.moe_intermediate_size;
  const ops::PagedRows x = saved.rows.x(), gate_up = saved.rows.gate_up();
  ops::grouped_gemm_nt(ctx, r.layout, x, w.w1, cols(gate_up, 0, F));  // [rows, F]
  ops::grouped_gemm_nt(ctx, r.layout, x, w.w3, cols(gate_up, F, F));  // [rows, F]
  ops::PagedRows hidden;
  const Block memory =
      ctx.memory.take_tensor(x.slab.dtype(), {r.num_pages, ops::kPageRows, F}, &hidden.slab);
  ops::grouped_swiglu_forward(ctx, r.layout, gate_up, r.row_weight, hidden);  // [rows, F]
  ops::grouped_gemm_nt(ctx, r.layout, hidden, w.w2, y);                       // [rows, D]
}

Deferred make_deferred(Context& ctx, const Config& c, const ops::ExpertLayout& layout,
                       int64_t num_pages, DType act) {
  const int64_t D = c.hidden_size, F = c.moe_intermediate_size, R = ops::kPageRows;
  Deferred d;
  d.layout = layout;
  d.memory = ctx.memory.take(ByteCount()
                                 .add(act, {num_pages, R, D})
                                 .add(act, {num_pages, R, F})
                                 .add(act, {num_pages, R, 2 * F})
                                 .total());
  d.dy.slab = d.memory.tensor(act, {num_pages, R, D});
  d.hidden.slab = d.memory.tensor(act, {num_pages, R, F});
  d.dgate_up.slab = d.memory.tensor(act, {num_pages, R, 2 * F});
  return d;
}

void backward_input(Context& ctx, const Config& c, const Weights& w, const Rows& r, Saved&& saved,
                    Deferred& d, const ops::PagedRows& dx, Out drow_weight) {
  d.rows = std::move(saved.rows);
  const int64_t F = c.moe_intermediate_size;
  ops::PagedRows dhidden;
  const Block memory =
      ctx.memory.take_tensor(dx.slab.dtype(), {r.num_pages, ops::kPageRows, F}, &dhidden.slab);
  ops::grouped_gemm_nn(ctx, r.layout, d.dy, w.w2, dhidden);  // [rows, F]
  ops::grouped_swiglu_backward(ctx, r.layout, d.rows.gate_up(), r.row_weight, dhidden, d.dgate_up,
                               d.hidden, drow_weight);                        // [rows, 2F]
  ops::grouped_gemm_nn(ctx, r.layout, cols(d.dgate_up, 0, F), w.w1, dx);      // [rows, D]
  ops::grouped_gemm_nn_acc(ctx, r.layout, cols(d.dgate_up, F, F), w.w3, dx);  // [rows, D]
}

void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw) {
  const Deferred d = std::move(deferred);
  const int64_t F = d.hidden.slab.dim(2);
  const ops::PagedRows x = d.rows.x();
  ops::grouped_gemm_tn_acc(ctx, d.layout, cols(d.dgate_up, 0, F), x, dw.w1);  // [F, D] each
  ops::grouped_gemm_tn_acc(ctx, d.layout, cols(d.dgate_up, F, F), x, dw.w3);  // [F, D]
  ops::grouped_gemm_tn_acc(ctx, d.layout, d.dy, d.hidden, dw.w2);             // [D, F]
}

}  // namespace hadal::experts
