// Several block FP8 matrices as bf16, in one launch where they lie at even distances.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "ops/quant.h"

namespace hadal::ops::cuda {

// y[i] = w[i] dequantised; y [E, N, K]. REQUIRES: the weights have one shape, and scales.
void dequantise_matrices(Context& ctx, std::span<const Operand> w, Out y);

}  // namespace hadal::ops::cuda
