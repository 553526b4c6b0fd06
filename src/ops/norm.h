// RMSNorm: y = gain * x / sqrt(mean(x^2) + eps).
//
//   T rows   D width
//
// Reads any float type, sums in f32 (f64 for f64). Deterministic; a row never depends on others.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/fp8.h"

namespace hadal::ops {

// x, y [T, D] (any row stride); gain [D]; rstd [T] f32 (f64 for f64 x).
HADAL_OP(rmsnorm_forward, Context& ctx, In x, In gain, double eps, Out y, Out rstd)
// The same, and quantise_rows of y with f32 scales, bit for bit: for products in FP8.
HADAL_OP(rmsnorm_forward_tiles, Context& ctx, In x, In gain, double eps, Out y, Out rstd,
         const TileRows& y_tiles)
// y again from the saved rstd: what backward uses instead of keeping y.
HADAL_OP(rmsnorm_recompute, Context& ctx, In x, In gain, In rstd, Out y)
// dx [T, D]; dgain [D] f32 (f64 for f64): overwritten with the sum over the T rows.
HADAL_OP(rmsnorm_backward, Context& ctx, In x, In gain, In rstd, In dy, Out dx, Out dgain)

// One op after the other, on any device: what the CPU does, and the reference of the kernel.
namespace in_steps {
void rmsnorm_forward_tiles(Context& ctx, In x, In gain, double eps, Out y, Out rstd,
                           const TileRows& y_tiles);
}

}  // namespace hadal::ops
