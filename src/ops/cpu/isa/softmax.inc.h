// The softmax row kernels, compiled once per instruction set; HADAL_TABLE names the table.
//
// Written in lanes of 16 so that the compiler's vectors and the order of sums agree everywhere.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "ops/cpu/softmax.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kLanes = 16;

#if defined(__AVX512F__)
constexpr int64_t kVec = 16;  // floats of a vector
#elif defined(__AVX2__)
constexpr int64_t kVec = 8;
#else
constexpr int64_t kVec = 4;
#endif
typedef float Floats __attribute__((vector_size(kVec * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kVec * sizeof(float))));

// Cody-Waite reduction to [-ln2/2, ln2/2], then a polynomial; 0 below -87.3, inf above 88.7. In
// vectors by hand: with comparisons that NaN must pass, compilers leave such a loop in scalars.
[[gnu::always_inline]] inline Floats exp_of(Floats x) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kLowest = -87.33f, kHighest = 88.72f;
  const Floats zero = {};
  const Floats above = x > kHighest ? zero + kHighest : x;
  const Floats clamped = x < kLowest ? zero + kLowest : above;
  const Floats shifted = clamped * kLog2e + 12582912.0f;  // rounds to an integer in the low bits
  const Floats n = shifted - 12582912.0f;
  const Floats r = (clamped - n * kLn2High) - n * kLn2Low;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, since n may be 128.
  const Ints e = __builtin_convertvector(n, Ints), half = e >> 1;
  const Floats first = reinterpret_cast<Floats>((half + 127) << 23);
  const Floats second = reinterpret_cast<Floats>((e - half + 127) << 23);
  const Floats value = p * first * second;
  const Floats low = x < kLowest ? zero : value;
  const Floats high = x > kHighest ? zero + std::numeric_limits<float>::infinity() : low;
  return x != x ? x : high;
}

// x = exp(x * scale - shift), kLanes of them.
[[gnu::always_inline]] inline void exp_lanes(float* x, float scale, float shift) {
  for (int64_t i = 0; i < kLanes; i += kVec) {
    Floats v;
    __builtin_memcpy(&v, x + i, sizeof(v));
    v = exp_of(v * scale - shift);
    __builtin_memcpy(x + i, &v, sizeof(v));
  }
}
inline void exp_lanes(double* x, double scale, double shift) {
  for (int64_t i = 0; i < kLanes; ++i) x[i] = std::exp(x[i] * scale - shift);
}

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

// n elements, fewer than kLanes.
template <class T>
void exp_few(T* x, int64_t n, T scale, T shift) {
  if (n == 0) return;
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = x[i];
  exp_lanes(lanes, scale, shift);
  for (int64_t i = 0; i < n; ++i) x[i] = lanes[i];
}

template <class T>
void exp_row(T* x, int64_t n, T scale, T shift) {
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes) exp_lanes(x + i, scale, shift);
  exp_few(x + full, n - full, scale, shift);
}

template <class T>
T exp_sum(T* x, int64_t n, T scale, T shift) {
  T lanes[kLanes] = {};
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes) {
    exp_lanes(x + i, scale, shift);
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j];
  }
  exp_few(x + full, n - full, scale, shift);
  for (int64_t i = full; i < n; ++i) lanes[i - full] += x[i];
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
