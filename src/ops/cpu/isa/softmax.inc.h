// The softmax row kernels, compiled once per instruction set; HADAL_TABLE names the table.
//
// Written in lanes of 16 so that the compiler's vectors and the order of sums agree everywhere.
// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cmath>
#include <limits>

#include "ops/cpu/softmax.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kLanes = 16;

// Cody-Waite reduction to [-ln2/2, ln2/2], then a polynomial; 0 below -87.3, inf above 88.7.
inline float exp_lane(float x) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const float clamped = x < -87.33f ? -87.33f : x > 88.72f ? 88.72f : x;
  const float shifted = clamped * kLog2e + 12582912.0f;  // rounds to an integer in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, since n may be 128.
  const int32_t e = static_cast<int32_t>(n), half = e >> 1;
  const float first = std::bit_cast<float>((half + 127) << 23);
  const float second = std::bit_cast<float>((e - half + 127) << 23);
  const float value = p * first * second;
  const float low = x < -87.33f ? 0.0f : value;
  const float high = x > 88.72f ? std::numeric_limits<float>::infinity() : low;
  return x != x ? x : high;
}
inline double exp_lane(double x) { return std::exp(x); }

template <class T>
T add_lanes(const T* lanes) {
  T eight[8], four[4];
  for (int i = 0; i < 8; ++i) eight[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

template <class T>
T row_max(const T* x, int64_t n) {
  T lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = -std::numeric_limits<T>::infinity();
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  T best = lanes[0];
  for (int64_t j = 1; j < kLanes; ++j) best = lanes[j] > best ? lanes[j] : best;
  for (int64_t i = full; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

template <class T>
void exp_row(T* x, int64_t n, T scale, T shift) {
  for (int64_t i = 0; i < n; ++i) x[i] = exp_lane(x[i] * scale - shift);
}

template <class T>
T exp_sum(T* x, int64_t n, T scale, T shift) {
  T lanes[kLanes] = {};
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) {
      x[i + j] = exp_lane(x[i + j] * scale - shift);
      lanes[j] += x[i + j];
    }
  for (int64_t i = full; i < n; ++i) {
    x[i] = exp_lane(x[i] * scale - shift);
    lanes[i - full] += x[i];
  }
  return add_lanes(lanes);
}

template <class T>
void scale_row(T* x, int64_t n, T factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  T lanes[kLanes] = {};
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * b[i + j];
  for (int64_t i = full; i < n; ++i) lanes[i - full] += a[i] * b[i];
  return add_lanes(lanes);
}

template <class T>
void softmax_backward(const T* p, T* dp, int64_t n, T delta, T scale) {
  for (int64_t i = 0; i < n; ++i) dp[i] = p[i] * (dp[i] - delta) * scale;
}

template <class T>
constexpr SoftmaxKernel<T> kKernel = {row_max<T>,   exp_sum<T>, exp_row<T>,
                                      scale_row<T>, dot<T>,     softmax_backward<T>};

}  // namespace

const SoftmaxKernels HADAL_TABLE = {.f32 = kKernel<float>, .f64 = kKernel<double>};

}  // namespace hadal::ops::cpu
