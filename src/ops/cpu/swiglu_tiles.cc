// SwiGLU in tiles on the CPU: in steps.
// SPDX-License-Identifier: Apache-2.0
#include "ops/swiglu_tiles.h"

namespace hadal::ops::cpu {

void swiglu_forward_tiles(Context& ctx, In gate_up, const TileRows& kept, const TileRows& y) {
  in_steps::swiglu_forward_tiles(ctx, gate_up, kept, y);
}

void swiglu_backward_tiles(Context& ctx, const TileRows& gate_up, In dy, TileRule rule,
                           Out dgate_up, const TileRows& dgate, const TileRows& dup, Out y) {
  in_steps::swiglu_backward_tiles(ctx, gate_up, dy, rule, dgate_up, dgate, dup, y);
}

void grouped_swiglu_forward_tiles(Context& ctx, const ExpertLayout& layout,
                                  const PagedRows& gate_up, In row_weight, const PagedRows& kept,
                                  const PagedRows& y) {
  in_steps::grouped_swiglu_forward_tiles(ctx, layout, gate_up, row_weight, kept, y);
}

void grouped_swiglu_backward_tiles(Context& ctx, const ExpertLayout& layout,
                                   const PagedRows& gate_up, In row_weight, const PagedRows& dy,
                                   TileRule rule, const PagedRows& dgate_up, const PagedRows& dgate,
                                   const PagedRows& dup, const PagedRows& y, Out drow_weight) {
  in_steps::grouped_swiglu_backward_tiles(ctx, layout, gate_up, row_weight, dy, rule, dgate_up,
                                          dgate, dup, y, drow_weight);
}

}  // namespace hadal::ops::cpu
