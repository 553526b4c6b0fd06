// exp for float, written so that compilers vectorise a loop around it; std::exp for double.
//
// float: error below 1.1 ulp over all inputs that do not underflow; -inf gives 0, large gives inf,
// NaN stays NaN. No fused multiply-adds, so the result has the same bits on every instruction set.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace hadal::ops::cpu {
namespace {  // builds for different instruction sets must not share one copy

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2, by a Taylor-like polynomial of degree 7.
inline float exp_of(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x > 89.0f ? 89.0f : x;             // exp(89) is inf; comparisons keep NaN
  x = x < -104.0f ? -104.0f : x;         // exp(-104) rounds to 0
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound);
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln(2) in two parts
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = (p * r) * r + r;
  p = p + 1.0f;
  // 2^n in two factors, so that neither overflows and small results round once into subnormals.
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(exponent) >> 1);
  const float scale0 = std::bit_cast<float>((half + 127u) << 23);
  const float scale1 = std::bit_cast<float>((exponent - half + 127u) << 23);
  return (p * scale0) * scale1;
}
inline double exp_of(double x) { return std::exp(x); }

template <class R>
inline R sigmoid_of(R x) {
  return R(1) / (R(1) + exp_of(-x));
}

}  // namespace
}  // namespace hadal::ops::cpu
