// Block FP8 as checkpoints hold it: e4m3 elements, one f32 scale per 128 x 128 block.
//
//   N rows   K columns   blocks are [ceil(N/128), ceil(K/128)], those at the edges smaller
//
// scale = max(amax, 1e-4) / 448, for kPowerOfTwo rounded up to a power of two; element = w / scale,
// rounded to nearest even and held at 448; real value = element * scale in f32.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "core/tensor.h"
#include "io/hf_config.h"

namespace hadal::io {

Shape scale_shape(const Shape& matrix);  // [N, K] -> [ceil(N/128), ceil(K/128)]

// w [N,K] f32 -> scale. An Error that names the tensor if it holds infinities or NaN.
void block_scales(std::string_view name, const float* w, int64_t N, int64_t K, ScaleFormat format,
                  float* scale);
// w [N,K] f32, scale -> q [N,K]
void block_quantise(const float* w, const float* scale, int64_t N, int64_t K, e4m3* q);
// Row r of q and its row of scales -> y [K]
void block_dequantise_row(const e4m3* q, const float* scale, int64_t K, float* y);

bool is_power_of_two(float scale);

}  // namespace hadal::io
