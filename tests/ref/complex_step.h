// Complex step: derivatives of an analytic function, exact to rounding, from one evaluation each.
//
// f(x + ih) = f(x) + ih f'(x) - ..., so Im f(x + ih) / h is f'(x) without a difference of nearby
// numbers; h = 1e-30 leaves no truncation error (Squire and Trapp, 1998).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tests/ref/array.h"

namespace hadal::ref {

inline constexpr double kComplexStep = 1e-30;

// Derivative of f() at every element of `at`, which f reads; `at` is as before on return.
template <class F>
Array<double> complex_step(Array<Complex>& at, const F& f) {
  Array<double> gradient(at.shape);
  for (int64_t i = 0; i < at.size(); ++i) {
    const Complex before = at[i];
    at[i] += Complex(0.0, kComplexStep);
    gradient[i] = f().imag() / kComplexStep;
    at[i] = before;
  }
  return gradient;
}

// Derivative of f() along `direction`.
template <class F>
double complex_step_along(Array<Complex>& at, const Array<double>& direction, const F& f) {
  const Array<Complex> before = at;
  for (int64_t i = 0; i < at.size(); ++i) at[i] += Complex(0.0, kComplexStep * direction[i]);
  const double derivative = f().imag() / kComplexStep;
  at = before;
  return derivative;
}

}  // namespace hadal::ref
