// SwiGLU between the products of FP8 training: its input read and its output written in tiles
// (report, 3.3.2 and 3.5.2; training notes, section 10).
//
//   T rows   F hidden width   P pages
//
// The same values as the ops of activation.h and fp8.h one after the other (in_steps), bit for bit
// on the CPU: what those would store as plain rows is rounded to that type here too. The routing
// weight is applied before the output is quantised. Scales are f32. Rows past a page's use are left
// as they are. Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/fp8.h"

namespace hadal::ops {

// gate_up [T, 2F] -> y [T, F] in tiles, and gate_up itself in `kept` unless that is empty.
HADAL_OP(swiglu_forward_tiles, Context& ctx, In gate_up, const TileRows& kept, const TileRows& y)
// gate_up [T, 2F] in tiles, or plain with an empty scale; dy [T, F] -> dgate_up [T, 2F], its halves
// in tiles, and y [T, F] again, plain.
HADAL_OP(swiglu_backward_tiles, Context& ctx, const TileRows& gate_up, In dy, TileRule rule,
         Out dgate_up, const TileRows& dgate, const TileRows& dup, Out y)

// The same over experts' rows; row_weight and drow_weight as in activation.h.
HADAL_OP(grouped_swiglu_forward_tiles, Context& ctx, const ExpertLayout& layout,
         const PagedRows& gate_up, In row_weight, const PagedRows& kept, const PagedRows& y)
HADAL_OP(grouped_swiglu_backward_tiles, Context& ctx, const ExpertLayout& layout,
         const PagedRows& gate_up, In row_weight, const PagedRows& dy, TileRule rule,
         const PagedRows& dgate_up, const PagedRows& dgate, const PagedRows& dup,
         const PagedRows& y, Out drow_weight)

// One op after the other, on any device: what the CPU does, and the reference of the kernels.
namespace in_steps {
void swiglu_forward_tiles(Context& ctx, In gate_up, const TileRows& kept, const TileRows& y);
void swiglu_backward_tiles(Context& ctx, const TileRows& gate_up, In dy, TileRule rule,
                           Out dgate_up, const TileRows& dgate, const TileRows& dup, Out y);
void grouped_swiglu_forward_tiles(Context& ctx, const ExpertLayout& layout,
                                  const PagedRows& gate_up, In row_weight, const PagedRows& kept,
                                  const PagedRows& y);
void grouped_swiglu_backward_tiles(Context& ctx, const ExpertLayout& layout,
                                   const PagedRows& gate_up, In row_weight, const PagedRows& dy,
                                   TileRule rule, const PagedRows& dgate_up, const PagedRows& dgate,
                                   const PagedRows& dup, const PagedRows& y, Out drow_weight);
}  // namespace in_steps

}  // namespace hadal::ops
