// Row kernels of attention and loss: softmax pieces in one fixed order at every vector width.
//
//   n elements of a row
//
// Sums keep 16 partial sums (element i goes to i mod 16) and add them in a fixed tree, so the bits
// do not depend on the instruction set. exp is a polynomial within 2 ulp in f32, std::exp in f64.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace hadal::ops::cpu {

template <class T>
struct SoftmaxKernel {
  T (*max)(const T* x, int64_t n);                  // -inf for n = 0
  T (*exp_sum)(T* x, int64_t n, T scale, T shift);  // x = exp(x*scale - shift); sum
  void (*exp)(T* x, int64_t n, T scale, T shift);   // x = exp(x*scale - shift)
  void (*scale)(T* x, int64_t n, T factor);         // x *= factor
  T (*dot)(const T* a, const T* b, int64_t n);
  void (*softmax_backward)(const T* p, T* dp, int64_t n, T delta,
                           T scale);  // dp = p*(dp - delta)*scale
};
struct SoftmaxKernels {
  SoftmaxKernel<float> f32;
  SoftmaxKernel<double> f64;
};
extern const SoftmaxKernels softmax_portable, softmax_avx2, softmax_avx512;

template <class T>
const SoftmaxKernel<T>& softmax_kernel();  // of active_isa()

}  // namespace hadal::ops::cpu
