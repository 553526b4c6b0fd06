// exp and sigmoid with the bits of the CPU's (ops/cpu/math.h, ops/cpu/isa/softmax.inc.h) in float;
// the library's in double.
//
// NOTE: correct to the bit only without contraction of multiply-adds (see CMakeLists.txt).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hadal::ops::cuda {

// Element-wise ops: exp(x) = 2^n exp(r), |r| <= ln(2) / 2, by a polynomial of degree 7.
__device__ inline float exp_of(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x > 89.0f ? 89.0f : x;             // exp(89) is inf; comparisons keep NaN
  x = x < -104.0f ? -104.0f : x;         // exp(-104) rounds to 0
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const uint32_t exponent = __float_as_uint(shifted) - __float_as_uint(kRound);
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
  const float scale0 = __uint_as_float((half + 127u) << 23);
  const float scale1 = __uint_as_float((exponent - half + 127u) << 23);
  return (p * scale0) * scale1;
}
__device__ inline double exp_of(double x) { return exp(x); }

template <class R>
__device__ R sigmoid_of(R x) {
  return R(1) / (R(1) + exp_of(-x));
}

// Softmax of attention: 0 below -87.33, inf above 88.72.
__device__ inline float softmax_exp(float x) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const float clamped = x < -87.33f ? -87.33f : x > 88.72f ? 88.72f : x;
  const float shifted = clamped * kLog2e + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t e = static_cast<int32_t>(n), half = e >> 1;
  const float first = __int_as_float((half + 127) << 23);
  const float second = __int_as_float((e - half + 127) << 23);
  const float value = p * first * second;
  const float low = x < -87.33f ? 0.0f : value;
  const float high = x > 88.72f ? __int_as_float(0x7f800000) : low;
  return x != x ? x : high;
}
__device__ inline double softmax_exp(double x) { return exp(x); }

// Logarithm rounded once.
__device__ inline float log_of(float x) { return static_cast<float>(log(static_cast<double>(x))); }
__device__ inline double log_of(double x) { return log(x); }

}  // namespace hadal::ops::cuda
