// Comparisons of tests: within a derived bound, or bit for bit; they report the worst element.
//
// Bounds are derived, not tuned: an element of a product a b^T is within kProductC * u * |a|_1
// |b|_1 of the exact one, u being the unit roundoff of the type (product_bound). Gradients in f64
// are compared with complex step relative to the norm of the whole tensor (kGradientTolerance).
// Masks of non-finite elements are compared first: an infinity or NaN is equal only to the same.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "tests/ref/array.h"

namespace hadal::test {

using ref::Array;

inline constexpr double kProductC = 4.0;
inline constexpr double kGradientTolerance = 1e-12;

// Largest relative error of rounding to nearest.
inline double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 0x1p-53;
    case DType::kF32:
      return 0x1p-24;
    case DType::kF16:
      return 0x1p-11;
    case DType::kBF16:
      return 0x1p-8;
    case DType::kE4M3:
      return 0x1p-4;
    default:
      HADAL_FAIL("no roundoff for ", dtype_name(dtype));
  }
}

inline double product_bound(DType dtype, double norm1_a, double norm1_b) {
  return kProductC * unit_roundoff(dtype) * norm1_a * norm1_b;
}

// "[3, 4]" of element `index`.
inline std::string coordinate(const Shape& shape, int64_t index) {
  std::string text = "]";
  for (int d = shape.rank - 1; d >= 0; --d) {
    text = std::to_string(index % shape[d]) + (text == "]" ? "" : ", ") + text;
    index /= shape[d];
  }
  return "[" + text;
}

namespace detail {

inline bool same_class(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::isfinite(a) == std::isfinite(b) && (std::isfinite(a) || a == b);
}

inline std::string numbers(double got, double want) {
  char text[96];
  std::snprintf(text, sizeof text, "got %.17g, want %.17g, error %.3g", got, want, got - want);
  return text;
}

}  // namespace detail

// Worst |got - want|; adds a failure where it is above `bound`, and for shapes or non-finite masks
// that differ.
inline double expect_close(const std::string& what, const Array<double>& got,
                           const Array<double>& want, double bound) {
  if (!(got.shape == want.shape)) {
    ADD_FAILURE() << what << " has shape " << got.shape.str() << ", want " << want.shape.str();
    return INFINITY;
  }
  for (int64_t i = 0; i < got.size(); ++i)
    if (!detail::same_class(got[i], want[i])) {
      ADD_FAILURE() << what << coordinate(got.shape, i) << ": " << detail::numbers(got[i], want[i]);
      return INFINITY;
    }
  int64_t worst = 0;
  double error = 0.0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double e = std::isfinite(got[i]) ? std::abs(got[i] - want[i]) : 0.0;
    if (e > error) {
      error = e;
      worst = i;
    }
  }
  if (error > bound)
    ADD_FAILURE() << what << coordinate(got.shape, worst)
                  << " is the worst element: " << detail::numbers(got[worst], want[worst])
                  << ", bound " << bound;
  return error;
}

// Worst |got - want| / |want|_2 over the tensor; a failure above `tolerance`. Where want is all
// zero, got must be zero.
inline double expect_close_to_norm(const std::string& what, const Array<double>& got,
                                   const Array<double>& want, double tolerance) {
  const double norm = ref::norm(want);
  const double error = expect_close(what, got, want, tolerance * norm);
  return norm > 0.0 ? error / norm : error;
}

// |got - want|_2 / |want|_2; a failure above `tolerance`.
inline double expect_relative_l2(const std::string& what, const Array<double>& got,
                                 const Array<double>& want, double tolerance) {
  const double norm = ref::norm(want);
  if (expect_close(what, got, want, INFINITY) == INFINITY) return INFINITY;
  Array<double> difference(got.shape);
  for (int64_t i = 0; i < got.size(); ++i) difference[i] = got[i] - want[i];
  const double error = ref::norm(difference) / (norm > 0.0 ? norm : 1.0);
  if (error > tolerance)
    ADD_FAILURE() << what << ": relative L2 error " << error << ", tolerance " << tolerance << "; "
                  << [&] {
                       int64_t worst = 0;
                       for (int64_t i = 0; i < got.size(); ++i)
                         if (std::abs(difference[i]) > std::abs(difference[worst])) worst = i;
                       return "worst at " + coordinate(got.shape, worst) + ": " +
                              detail::numbers(got[worst], want[worst]);
                     }();
  return error;
}

inline double expect_close(const std::string& what, const Tensor& got, const Tensor& want,
                           double bound) {
  return expect_close(what, ref::from_tensor<double>(got), ref::from_tensor<double>(want), bound);
}

// Same type, shape and bits (views included); the first element that differs is reported.
inline void expect_bits_equal(const std::string& what, const Tensor& got, const Tensor& want) {
  ASSERT_EQ(got.str(), want.str()) << what;
  const size_t width = dtype_size(got.dtype());
  for (int64_t i = 0; i < got.num_elements(); ++i) {
    int64_t rest = i, at_got = 0, at_want = 0;
    for (int d = got.rank() - 1; d >= 0; --d) {
      at_got += rest % got.dim(d) * got.stride(d);
      at_want += rest % got.dim(d) * want.stride(d);
      rest /= got.dim(d);
    }
    const auto* g = static_cast<const char*>(got.raw()) + static_cast<size_t>(at_got) * width;
    const auto* w = static_cast<const char*>(want.raw()) + static_cast<size_t>(at_want) * width;
    if (std::memcmp(g, w, width) == 0) continue;
    ADD_FAILURE() << what << coordinate(got.shape(), i) << " differs in its bits";
    return;
  }
}

}  // namespace hadal::test
