// SwiGLU: y = weight * silu(gate) * up, with the routing weight applied inside (trace, 5.4).
//
//   T rows   F hidden width   P pages
//
// `gate_up` holds gate in columns [0, F) and up in [F, 2F). Backward recomputes y, which the weight
// gradient of the down projection needs. Element-wise in f32 (f64 for f64). Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"
#include "ops/pages.h"

namespace hadal::ops {

// gate_up [T, 2F] -> y [T, F]
HADAL_OP(swiglu_forward, Context& ctx, In gate_up, Out y)
// dy [T, F] -> dgate_up [T, 2F] and y [T, F] again
HADAL_OP(swiglu_backward, Context& ctx, In gate_up, In dy, Out dgate_up, Out y)

// The same over experts' rows; row_weight [P*kPageRows] f32 (f64) by row number.
HADAL_OP(grouped_swiglu_forward, Context& ctx, const ExpertLayout& layout, const PagedRows& gate_up,
         In row_weight, const PagedRows& y)
// drow_weight [P*kPageRows]: gradient of the routing weight, written for the rows in use.
HADAL_OP(grouped_swiglu_backward, Context& ctx, const ExpertLayout& layout,
         const PagedRows& gate_up, In row_weight, const PagedRows& dy, const PagedRows& dgate_up,
         const PagedRows& y, Out drow_weight)

}  // namespace hadal::ops
