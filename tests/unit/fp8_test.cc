// Block FP8: ragged edges, both kinds of scales, and what cannot be quantised.
// SPDX-License-Identifier: Apache-2.0
#include "io/fp8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/rng.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

TEST(Fp8, RaggedBlocksAndScales) {
  constexpr int64_t N = 130, K = 257;
  std::vector<float> w(N * K);
  for (int64_t i = 0; i < N * K; ++i)
    w[static_cast<size_t>(i)] = static_cast<float>(Rng(3, 4).normal(static_cast<uint64_t>(i)));
  w[0] = -7.0f;                      // block [0, 0]
  for (int64_t n = 128; n < N; ++n)  // block [1, 2]
    w[static_cast<size_t>(n * K + 256)] = 0.0f;
  ASSERT_EQ(scale_shape({N, K}), (Shape{2, 3}));
  std::vector<float> scale(6), power(6), row(K);
  block_scales("w", w.data(), N, K, ScaleFormat::kF32, scale.data());
  block_scales("w", w.data(), N, K, ScaleFormat::kPowerOfTwo, power.data());
  EXPECT_EQ(scale[0], 7.0f / 448.0f);
  EXPECT_EQ(power[0], 0x1p-6f);  // 7/448 is 2^-6 itself
  EXPECT_EQ(scale[5], 1e-4f / 448.0f);
  std::vector<e4m3> q(N * K);
  block_quantise(w.data(), scale.data(), N, K, q.data());
  for (int64_t n = 0; n < N; ++n) {
    block_dequantise_row(q.data() + n * K, scale.data() + n / 128 * 3, K, row.data());
    for (int64_t k = 0; k < K; ++k) {
      const float x = w[static_cast<size_t>(n * K + k)], y = row[static_cast<size_t>(k)];
      const float s = scale[static_cast<size_t>(n / 128 * 3 + k / 128)];
      ASSERT_LE(std::fabs(x - y), std::max(std::fabs(x) / 16.0f, s * 0x1p-10f) * 1.0001f);
    }
  }
  for (size_t b = 0; b < 6; ++b) {
    EXPECT_TRUE(is_power_of_two(power[b]));
    EXPECT_GE(power[b], scale[b]);
    EXPECT_LT(power[b], 2.0f * scale[b]);
  }
  w[257] = INFINITY;
  EXPECT_ERROR(
      block_scales("w", w.data(), N, K, ScaleFormat::kF32, scale.data()),
      "tensor w: element [1, 0] is inf; FP8 holds finite weights only: save as bf16 or f32, "
      "or train again");
}

}  // namespace
}  // namespace hadal::io
