// Row kernels: the inner loops of the element-wise and row-wise ops, one build for each instruction
// set.
//
// R is the arithmetic type, float or double. Reductions keep 16 partial sums (index mod 16)
// combined in a fixed tree, and no multiply-add is contracted, so every build gives the same bits.
// Outputs may be the same array as an input of the same role; they never partly overlap.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hadal::ops::cpu {

// What adamw does to one element, in the arithmetic type.
template <class R>
struct AdamwFactors {
  R grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  R keep;         // 1 - lr * weight_decay
  R step;         // lr / (1 - beta1^t)
  R correction2;  // 1 / (1 - beta2^t)
  R eps;
};

template <class R>
struct RowOps {
  void (*add)(const R* a, const R* b, R* c, int64_t n);  // c = a + b
  R (*sum)(const R* x, int64_t n);
  R (*dot)(const R* a, const R* b, int64_t n);
  R (*dot3)(const R* a, const R* b, const R* c, int64_t n);  // sum of (a * b) * c
  double (*sum_squares)(const R* x, int64_t n);              // in f64
  R (*max)(const R* x, int64_t n);                           // NaN is passed over; -inf if none
  R (*exp_sum)(const R* x, R shift, int64_t n);              // sum of exp(x - shift)
  void (*exp_shifted)(const R* x, R shift, R scale, R* y, int64_t n);  // y = scale * exp(x - shift)
  void (*sigmoid)(const R* x, R* y, int64_t n);
  void (*norm)(const R* x, const R* gain, R rstd, R* y, int64_t n);  // y = (x * rstd) * gain
  // dx = rstd * (gain * dy) - c * x
  void (*norm_dx)(const R* x, const R* gain, const R* dy, R rstd, R c, R* dx, int64_t n);
  void (*norm_dgain)(const R* x, const R* dy, R rstd, R* dgain,
                     int64_t n);  // dgain += dy * (x * rstd)
  void (*swiglu)(const R* gate, const R* up, R weight, R* y, int64_t n);
  // Returns the gradient of weight; dgate may be gate and dup may be up.
  R(*swiglu_backward)
  (const R* gate, const R* up, const R* dy, R weight, R* dgate, R* dup, R* y, int64_t n);
  void (*adamw)(const AdamwFactors<R>& f, const R* grad, R* param, R* m, R* v, int64_t n);
};

struct RowKernels {
  const char* isa;
  RowOps<float> f32;
  RowOps<double> f64;
  void (*widen)(const bf16* x, float* y, int64_t n);
  void (*narrow)(const float* x, bf16* y, int64_t n);
  // y = x * scale, a power of two: exact unless it leaves bf16's range.
  void (*widen_scaled)(const e4m3* x, float scale, bf16* y, int64_t n);

  template <class R>
  const RowOps<R>& of() const;
};
template <>
inline const RowOps<float>& RowKernels::of<float>() const {
  return f32;
}
template <>
inline const RowOps<double>& RowKernels::of<double>() const {
  return f64;
}

// The build for this processor, or the one that HADAL_ISA names; chosen once.
const RowKernels& row_kernels();
// The build called `isa` ("portable", "avx2", "avx512"; "" is the best one this processor runs).
const RowKernels& row_kernels_of(const char* isa);

namespace portable {
const RowKernels& table();
}
namespace avx2 {
const RowKernels& table();
}
namespace avx512 {
const RowKernels& table();
}

}  // namespace hadal::ops::cpu
