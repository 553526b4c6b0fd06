// Rows of the latent cache at DeepSeek-V3's sizes: bf16, or FP8 as in ops/latent_row.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "ops/latent_row.h"

namespace hadal::cuda {

enum class CacheRows : uint8_t { kBF16, kFp8 };

inline constexpr ops::Fp8LatentRow kV3Fp8Row{512, 64};

}  // namespace hadal::cuda
