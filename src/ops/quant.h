// Block FP8: e4m3 elements with one f32 scale per 128 x 128 block (report, 3.3.2; notes, section
// 10).
//
//   N rows   K columns
//
// Edge blocks may be smaller. scale = max(amax, 1e-4) / 448, in kPowerOfTwo rounded up to a power
// of two (`scale_fmt: ue8m0`). Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"
#include "ops/fp8_format.h"

namespace hadal::ops {

// w [N,K] -> q [N,K] e4m3, scale [ceil(N/128), ceil(K/128)] f32
HADAL_OP(quantise_blocks, Context& ctx, In w, ScaleFormat format, Out q, Out scale)
// y [N,K] = element * scale of its block; an operand without scales is converted.
HADAL_OP(dequantise_blocks, Context& ctx, const Operand& w, Out y)

}  // namespace hadal::ops
