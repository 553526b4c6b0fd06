// SwiGLU in tiles: shape checks, then the backend's body; and the same in steps.
//
//   T rows   F hidden width   P pages
// SPDX-License-Identifier: Apache-2.0
#include "ops/swiglu_tiles.h"

#include "ops/activation.h"

namespace hadal::ops {
namespace {

// The ops that the steps consist of check types, scales and page lists; these check what they
// cannot see: that the widths belong together.
void check_widths(const char* op, int64_t gate_up, int64_t half) {
  HADAL_CHECK(gate_up == 2 * half, op, ": rows of gate and up are ", gate_up,
              " wide, the hidden rows ", half, "; twice that is needed");
}
void check_rows(const char* op, const Tensor& a, int64_t rows, int64_t width) {
  HADAL_CHECK(a.rank() == 2 && a.dim(0) == rows && a.dim(1) == width, op, ": got ", a.str(),
              " where [", rows, ", ", width, "] is needed");
}
void check_pages(const char* op, const PagedRows& a, int64_t width) {
  HADAL_CHECK(a.slab.rank() == 3 && a.slab.dim(1) == kPageRows && a.slab.dim(2) == width, op,
              ": rows are ", a.slab.str(), "; they must be [pages, ", kPageRows, ", ", width, "]");
}

int64_t places_of(const PagedRows& rows) {
  return rows.page.empty() ? rows.slab.dim(0) : rows.page.dim(0);
}
PagedRows cols(const PagedRows& rows, int64_t begin, int64_t count) {
  return {.slab = rows.slab.cols(begin, count), .page = rows.page};
}

}  // namespace

void swiglu_forward_tiles(Context& ctx, In gate_up, const TileRows& kept, const TileRows& y) {
  const auto [T, F] = HADAL_SHAPE(y.data, 2);
  check_rows("swiglu_forward_tiles", gate_up, T, 2 * F);
  if (!kept.data.empty()) check_rows("swiglu_forward_tiles", kept.data, T, 2 * F);
  HADAL_DISPATCH(ctx, swiglu_forward_tiles, gate_up, kept, y);
}

void swiglu_backward_tiles(Context& ctx, const TileRows& gate_up, In dy, TileRule rule,
                           Out dgate_up, const TileRows& dgate, const TileRows& dup, Out y) {
  const auto [T, F] = HADAL_SHAPE(dy, 2);
  check_rows("swiglu_backward_tiles", gate_up.data, T, 2 * F);
  check_rows("swiglu_backward_tiles", dgate_up, T, 2 * F);
  for (const Tensor* half : {&dgate.data, &dup.data, static_cast<const Tensor*>(&y)})
    check_rows("swiglu_backward_tiles", *half, T, F);
  HADAL_DISPATCH(ctx, swiglu_backward_tiles, gate_up, dy, rule, dgate_up, dgate, dup, y);
}

void grouped_swiglu_forward_tiles(Context& ctx, const ExpertLayout& layout,
                                  const PagedRows& gate_up, In row_weight, const PagedRows& kept,
                                  const PagedRows& y) {
  constexpr const char* kOp = "grouped_swiglu_forward_tiles";
  const int64_t F = y.slab.dim(2);
  check_pages(kOp, y, F);
  check_widths(kOp, gate_up.slab.dim(2), F);
  check_pages(kOp, gate_up, 2 * F);
  if (!kept.slab.empty()) check_pages(kOp, kept, 2 * F);
  HADAL_DISPATCH(ctx, grouped_swiglu_forward_tiles, layout, gate_up, row_weight, kept, y);
}

void grouped_swiglu_backward_tiles(Context& ctx, const ExpertLayout& layout,
                                   const PagedRows& gate_up, In row_weight, const PagedRows& dy,
                                   TileRule rule, const PagedRows& dgate_up, const PagedRows& dgate,
                                   const PagedRows& dup, const PagedRows& y, Out drow_weight) {
  constexpr const char* kOp = "grouped_swiglu_backward_tiles";
  const int64_t F = dy.slab.dim(2);
  check_widths(kOp, gate_up.slab.dim(2), F);
  for (const PagedRows* rows : {&gate_up, &dgate_up}) check_pages(kOp, *rows, 2 * F);
  for (const PagedRows* rows : {&dy, &dgate, &dup, &y}) check_pages(kOp, *rows, F);
  HADAL_DISPATCH(ctx, grouped_swiglu_backward_tiles, layout, gate_up, row_weight, dy, rule,
                 dgate_up, dgate, dup, y, drow_weight);
}

namespace in_steps {

void swiglu_forward_tiles(Context& ctx, In gate_up, const TileRows& kept, const TileRows& y) {
  if (!kept.data.empty()) quantise_rows(ctx, gate_up, {}, kept);  // [T, 2F]
  Tensor hidden;
  const Block memory = ctx.memory.take_tensor(gate_up.dtype(), y.data.shape(), &hidden);
  swiglu_forward(ctx, gate_up, hidden);  // [T, F]
  quantise_rows(ctx, hidden, {}, y);     // [T, F]
}

void swiglu_backward_tiles(Context& ctx, const TileRows& gate_up, In dy, TileRule rule,
                           Out dgate_up, const TileRows& dgate, const TileRows& dup, Out y) {
  const int64_t F = dy.dim(1);
  Tensor plain = gate_up.data;
  Block memory;
  if (!gate_up.scale.empty()) {
    memory = ctx.memory.take_tensor(dy.dtype(), gate_up.data.shape(), &plain);
    dequantise_rows(ctx, gate_up, plain);  // [T, 2F]
  }
  swiglu_backward(ctx, plain, dy, dgate_up, y);          // [T, 2F], [T, F]
  quantise_rows(ctx, dgate_up.cols(0, F), rule, dgate);  // [T, F]
  quantise_rows(ctx, dgate_up.cols(F, F), rule, dup);    // [T, F]
}

void grouped_swiglu_forward_tiles(Context& ctx, const ExpertLayout& layout,
                                  const PagedRows& gate_up, In row_weight, const PagedRows& kept,
                                  const PagedRows& y) {
  if (!kept.slab.empty()) grouped_quantise_rows(ctx, layout, gate_up, {}, kept);  // [rows, 2F]
  PagedRows hidden;
  const Block memory = ctx.memory.take_tensor(
      gate_up.slab.dtype(), {places_of(y), kPageRows, y.slab.dim(2)}, &hidden.slab);
  grouped_swiglu_forward(ctx, layout, gate_up, row_weight, hidden);  // [rows, F]
  grouped_quantise_rows(ctx, layout, hidden, {}, y);                 // [rows, F]
}

void grouped_swiglu_backward_tiles(Context& ctx, const ExpertLayout& layout,
                                   const PagedRows& gate_up, In row_weight, const PagedRows& dy,
                                   TileRule rule, const PagedRows& dgate_up, const PagedRows& dgate,
                                   const PagedRows& dup, const PagedRows& y, Out drow_weight) {
  const int64_t F = dy.slab.dim(2);
  PagedRows plain = gate_up;
  Block memory;
  if (!gate_up.scale.empty()) {
    plain = {};
    memory = ctx.memory.take_tensor(dy.slab.dtype(), {places_of(gate_up), kPageRows, 2 * F},
                                    &plain.slab);
    grouped_dequantise_rows(ctx, layout, gate_up, plain);  // [rows, 2F]
  }
  grouped_swiglu_backward(ctx, layout, plain, row_weight, dy, dgate_up, y, drow_weight);
  grouped_quantise_rows(ctx, layout, cols(dgate_up, 0, F), rule, dgate);  // [rows, F]
  grouped_quantise_rows(ctx, layout, cols(dgate_up, F, F), rule, dup);    // [rows, F]
}

}  // namespace in_steps
}  // namespace hadal::ops
