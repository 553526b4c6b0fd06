// Checks of SwiGLU, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/activation.h"

#include "ops/checks.h"

namespace hadal::ops {
void swiglu_forward(Context& ctx, In gate_up, Out y) {
  const auto [T, F] = HADAL_SHAPE(y, 2);
  HADAL_CHECK_SHAPE(gate_up, T, 2 * F);
  check_float(gate_up, "gate_up");
  check_float(y, "y");
  HADAL_DISPATCH(ctx, swiglu_forward, gate_up, y);
}

void swiglu_backward(Context& ctx, In gate_up, In dy, Out dgate_up, Out y) {
  const auto [T, F] = HADAL_SHAPE(dy, 2);
  HADAL_CHECK_SHAPE(gate_up, T, 2 * F);
  HADAL_CHECK_SHAPE(dgate_up, T, 2 * F);
  HADAL_CHECK_SHAPE(y, T, F);
  check_float(gate_up, "gate_up");
  check_float(dy, "dy");
  check_float(dgate_up, "dgate_up");
  check_float(y, "y");
  HADAL_DISPATCH(ctx, swiglu_backward, gate_up, dy, dgate_up, y);
}

void grouped_swiglu_forward(Context& ctx, const ExpertLayout& layout, const PagedRows& gate_up,
                            In row_weight, const PagedRows& y) {
  const auto [num_pages, page_rows, F] = HADAL_SHAPE(y.slab, 3);
  check_layout(layout);
  check_paged(gate_up, 2 * F, "gate_up");
  check_paged(y, F, "y");
  HADAL_SHAPE(row_weight, 1);
  check_stat(row_weight, "row_weight", gate_up.slab, "gate_up");
  HADAL_DISPATCH(ctx, grouped_swiglu_forward, layout, gate_up, row_weight, y);
}

void grouped_swiglu_backward(Context& ctx, const ExpertLayout& layout, const PagedRows& gate_up,
                             In row_weight, const PagedRows& dy, const PagedRows& dgate_up,
                             const PagedRows& y, Out drow_weight) {
  const auto [num_pages, page_rows, F] = HADAL_SHAPE(dy.slab, 3);
  check_layout(layout);
  check_paged(gate_up, 2 * F, "gate_up");
  check_paged(dy, F, "dy");
  check_paged(dgate_up, 2 * F, "dgate_up");
  check_paged(y, F, "y");
  HADAL_SHAPE(row_weight, 1);
  HADAL_SHAPE(drow_weight, 1);
  check_stat(row_weight, "row_weight", gate_up.slab, "gate_up");
  check_stat(drow_weight, "drow_weight", gate_up.slab, "gate_up");
  HADAL_DISPATCH(ctx, grouped_swiglu_backward, layout, gate_up, row_weight, dy, dgate_up, y,
                 drow_weight);
}

}  // namespace hadal::ops
