// FP8 rows of the latent cache at DeepSeek-V3's sizes, as Hopper's own kernels read them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/cache_rows.h"
#include "ops/cuda/detail/e4m3.cuh"

namespace hadal::cuda {}  // namespace hadal::cuda
