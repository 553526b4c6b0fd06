// Scales, elements and decoding of block FP8.
// SPDX-License-Identifier: Apache-2.0
#include "io/fp8.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace hadal::io {

namespace {

constexpr float kE4M3Max = 448.0f;
constexpr float kSmallestAmax = 1e-4f;

int64_t num_blocks(int64_t extent) { return (extent + kScaleBlock - 1) / kScaleBlock; }

float round_up_to_power_of_two(float scale) {
  int exponent = 0;
  const float mantissa = std::frexp(scale, &exponent);  // in [0.5, 1)
  return std::ldexp(1.0f, mantissa == 0.5f ? exponent - 1 : exponent);
}

}  // namespace

Shape scale_shape(const Shape& matrix) { return {num_blocks(matrix[0]), num_blocks(matrix[1])}; }

bool is_power_of_two(float scale) {
  int exponent = 0;
  return scale > 0.0f && std::isfinite(scale) && std::frexp(scale, &exponent) == 0.5f;
}

void block_scales(std::string_view name, const float* w, int64_t N, int64_t K, ScaleFormat format,
                  float* scale) {
  const int64_t blocks = num_blocks(K);
  for (int64_t n0 = 0; n0 < N; n0 += kScaleBlock) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t k0 = b * kScaleBlock, k1 = std::min(k0 + kScaleBlock, K);
      float amax = 0.0f;
      for (int64_t n = n0; n < std::min(n0 + kScaleBlock, N); ++n) {
        for (int64_t k = k0; k < k1; ++k) {
          const float value = std::fabs(w[n * K + k]);
          HADAL_CHECK(std::isfinite(value), "tensor ", name, ": element [", n, ", ", k, "] is ",
                      static_cast<double>(w[n * K + k]),
                      "; FP8 holds finite weights only: save as bf16 or f32, or train again");
          amax = std::max(amax, value);
        }
      }
      const float exact = std::max(amax, kSmallestAmax) / kE4M3Max;
      scale[n0 / kScaleBlock * blocks + b] =
          format == ScaleFormat::kPowerOfTwo ? round_up_to_power_of_two(exact) : exact;
    }
  }
}

void block_quantise(const float* w, const float* scale, int64_t N, int64_t K, e4m3* q) {
  const int64_t blocks = num_blocks(K);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; ++k)
      q[n * K + k] = to_e4m3(w[n * K + k] / scale[n / kScaleBlock * blocks + k / kScaleBlock]);
}

void block_dequantise_row(const e4m3* q, const float* scale, int64_t K, float* y) {
  for (int64_t k = 0; k < K; ++k) y[k] = to_f32(q[k]) * scale[k / kScaleBlock];
}

}  // namespace hadal::io
