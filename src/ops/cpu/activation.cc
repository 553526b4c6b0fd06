// SwiGLU on the CPU.
//
//   T rows   F hidden width
// SPDX-License-Identifier: Apache-2.0
#include "ops/activation.h"

#include "ops/cpu/pages.h"

namespace hadal::ops::cpu {
namespace {

// One row of each tensor at its offset in elements.
struct RowOffsets {
  int64_t gate_up, dy, dgate_up, y;
};

template <class R>
void forward_row(const Tensor& gate_up, const Tensor& y, const RowOffsets& at, int64_t F, R weight,
                 const ScratchRows<R>& scratch, int thread) {
  const R* from = read_row(gate_up, at.gate_up, 2 * F, scratch.row(thread, 0));
  R* to = begin_row(y, at.y, scratch.row(thread, 1));
  row_kernels().of<R>().swiglu(from, from + F, weight, to, F);
  end_row(to, y, at.y, F);
}

// Returns the gradient of the row's weight.
template <class R>
R backward_row(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up, const Tensor& y,
               const RowOffsets& at, int64_t F, R weight, const ScratchRows<R>& scratch,
               int thread) {
  const R* from = read_row(gate_up, at.gate_up, 2 * F, scratch.row(thread, 0));
  const R* dy_row = read_row(dy, at.dy, F, scratch.row(thread, 1));
  R* dfrom = begin_row(dgate_up, at.dgate_up, scratch.row(thread, 2));
  R* to = begin_row(y, at.y, scratch.row(thread, 3));
  const R dweight = row_kernels().of<R>().swiglu_backward(from, from + F, dy_row, weight, dfrom,
                                                          dfrom + F, to, F);
  end_row(dfrom, dgate_up, at.dgate_up, 2 * F);
  end_row(to, y, at.y, F);
  return dweight;
}

}  // namespace

void swiglu_forward(Context& ctx, In gate_up, Out y) {
  const int64_t T = y.dim(0), F = y.dim(1);
  with_arithmetic({gate_up.dtype()}, [&]<class R>(R) {
    const ScratchRows<R> scratch(ctx, 2, 2 * F);
    for_rows(ctx, T, F, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const RowOffsets at = {t * gate_up.stride(0), 0, 0, t * y.stride(0)};
        forward_row(gate_up, y, at, F, R(1), scratch, thread);
      }
    });
  });
}

void swiglu_backward(Context& ctx, In gate_up, In dy, Out dgate_up, Out y) {
  const int64_t T = dy.dim(0), F = dy.dim(1);
  with_arithmetic({gate_up.dtype()}, [&]<class R>(R) {
    const ScratchRows<R> scratch(ctx, 4, 2 * F);
    for_rows(ctx, T, F, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const RowOffsets at = {t * gate_up.stride(0), t * dy.stride(0), t * dgate_up.stride(0),
                               t * y.stride(0)};
        backward_row(gate_up, dy, dgate_up, y, at, F, R(1), scratch, thread);
      }
    });
  });
}

void grouped_swiglu_forward(Context& ctx, const ExpertLayout& layout, const PagedRows& gate_up,
                            In row_weight, const PagedRows& y) {
  const int64_t F = y.slab.dim(2);
  with_arithmetic({gate_up.slab.dtype()}, [&]<class R>(R) {
    const ScratchRows<R> scratch(ctx, 2, 2 * F);
    const R* weight = row_weight.data<R>();
    check_row_values(layout, row_weight, "row_weight");
    for_pages(ctx, layout, [&](int64_t first, int64_t count, int thread) {
      for (int64_t row = first; row < first + count; ++row) {
        const RowOffsets at = {row_offset(gate_up, row), 0, 0, row_offset(y, row)};
        forward_row(gate_up.slab, y.slab, at, F, weight[row], scratch, thread);
      }
    });
  });
}

void grouped_swiglu_backward(Context& ctx, const ExpertLayout& layout, const PagedRows& gate_up,
                             In row_weight, const PagedRows& dy, const PagedRows& dgate_up,
                             const PagedRows& y, Out drow_weight) {
  const int64_t F = dy.slab.dim(2);
  with_arithmetic({gate_up.slab.dtype()}, [&]<class R>(R) {
    const ScratchRows<R> scratch(ctx, 4, 2 * F);
    const R* weight = row_weight.data<R>();
    check_row_values(layout, row_weight, "row_weight");
    R* dweight = drow_weight.data<R>();
    check_row_values(layout, drow_weight, "drow_weight");
    for_pages(ctx, layout, [&](int64_t first, int64_t count, int thread) {
      for (int64_t row = first; row < first + count; ++row) {
        const RowOffsets at = {row_offset(gate_up, row), row_offset(dy, row),
                               row_offset(dgate_up, row), row_offset(y, row)};
        dweight[row] = backward_row(gate_up.slab, dy.slab, dgate_up.slab, y.slab, at, F,
                                    weight[row], scratch, thread);
      }
    });
  });
}

}  // namespace hadal::ops::cpu
