// The end of a product whose K was cut into parts.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "ops/cuda/detail/matmul.cuh"

namespace hadal::ops::cuda {

// c [M, N] f32 = (or +=) the sum of parts [S, M, N] f32, in order.
void add_parts(Context& ctx, const char* op, const Tensor& parts, Start start, const Tensor& c);

}  // namespace hadal::ops::cuda
