// RMSNorm: y = gain * x / sqrt(mean(x^2) + eps).
//
//   T rows   D width
//
// Reads any float type, sums in f32 (f64 for f64). Deterministic; a row never depends on others.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"

namespace hadal::ops {

// x, y [T, D] (any row stride); gain [D]; rstd [T] f32 (f64 for f64 x).
HADAL_OP(rmsnorm_forward, Context& ctx, In x, In gain, double eps, Out y, Out rstd)
// y again from the saved rstd: what backward uses instead of keeping y.
HADAL_OP(rmsnorm_recompute, Context& ctx, In x, In gain, In rstd, Out y)
// dx [T, D]; dgain [D] f32 (f64 for f64): overwritten with the sum over the T rows.
HADAL_OP(rmsnorm_backward, Context& ctx, In x, In gain, In rstd, In dy, Out dx, Out dgain)

}  // namespace hadal::ops
