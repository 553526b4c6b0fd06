// Array: owned values of any scalar with a shape, for the naive reference in tests/ref.
//
// S is float, double or std::complex<double>. The reference is analytic in its inputs: choices
// (top-k, maxima, rows of a table) are made on real parts, so that Im f(x + ih) / h is the
// derivative of f along one coordinate, exact to rounding (complex step). Plain loops, no threads,
// no reuse of src/ops.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace hadal::ref {

using Complex = std::complex<double>;

inline double real_part(float v) { return static_cast<double>(v); }
inline double real_part(double v) { return v; }
inline double real_part(const Complex& v) { return v.real(); }

template <class S>
struct Array {
  Shape shape;
  std::vector<S> data;

  Array() = default;
  explicit Array(Shape s) : shape(s), data(static_cast<size_t>(s.num_elements()), S{}) {}

  bool empty() const { return data.empty(); }
  int64_t dim(int i) const { return shape[i]; }
  int64_t size() const { return static_cast<int64_t>(data.size()); }
  S& operator[](int64_t i) { return data[static_cast<size_t>(i)]; }
  const S& operator[](int64_t i) const { return data[static_cast<size_t>(i)]; }
  S& operator()(int64_t r, int64_t c) { return data[static_cast<size_t>(r * shape[1] + c)]; }
  const S& operator()(int64_t r, int64_t c) const {
    return data[static_cast<size_t>(r * shape[1] + c)];
  }
};

// The same values as another scalar.
template <class S, class From>
Array<S> as(const Array<From>& a) {
  Array<S> result(a.shape);
  for (int64_t i = 0; i < a.size(); ++i) result[i] = static_cast<S>(a[i]);
  return result;
}

// The values of a tensor of any float type, views included, as S.
template <class S>
Array<S> from_tensor(const Tensor& t) {
  Array<S> a(t.shape());
  const int rank = t.rank();
  for (int64_t i = 0; i < a.size(); ++i) {
    int64_t rest = i, at = 0;
    for (int d = rank - 1; d >= 0; --d) {
      at += rest % t.dim(d) * t.stride(d);
      rest /= t.dim(d);
    }
    a[i] = static_cast<S>(load_element(t.raw(), t.dtype(), at));
  }
  return a;
}

// Values of a normal distribution: a function of the name alone.
inline Array<double> random(std::string_view name, Shape shape, double mean, double stddev) {
  Array<double> a(shape);
  const Rng rng(20, stream_id(name));
  for (int64_t i = 0; i < a.size(); ++i)
    a[i] = mean + stddev * rng.normal(static_cast<uint64_t>(i));
  return a;
}

template <class S>
S dot(const Array<double>& a, const Array<S>& b) {
  S sum{};
  for (int64_t i = 0; i < a.size(); ++i) sum += static_cast<S>(a[i]) * b[i];
  return sum;
}

inline double norm(const Array<double>& a) { return std::sqrt(dot(a, a)); }

// x [T, K], w [N, K] -> [T, N]
template <class S>
Array<S> linear(const Array<S>& x, const Array<S>& w) {
  const int64_t T = x.dim(0), K = x.dim(1), N = w.dim(0);
  Array<S> y({T, N});
  for (int64_t t = 0; t < T; ++t)
    for (int64_t n = 0; n < N; ++n) {
      S sum{};
      for (int64_t k = 0; k < K; ++k) sum += x(t, k) * w(n, k);
      y(t, n) = sum;
    }
  return y;
}

template <class S>
Array<S> cols(const Array<S>& x, int64_t begin, int64_t count) {
  Array<S> y({x.dim(0), count});
  for (int64_t t = 0; t < x.dim(0); ++t)
    for (int64_t d = 0; d < count; ++d) y(t, d) = x(t, begin + d);
  return y;
}

template <class S>
Array<S> rows(const Array<S>& table, const std::vector<int64_t>& index) {
  Array<S> y({static_cast<int64_t>(index.size()), table.dim(1)});
  for (int64_t t = 0; t < y.dim(0); ++t)
    for (int64_t d = 0; d < y.dim(1); ++d) y(t, d) = table(index[static_cast<size_t>(t)], d);
  return y;
}

template <class S>
Array<S> sum(const Array<S>& a, const Array<S>& b) {
  Array<S> c(a.shape);
  for (int64_t i = 0; i < a.size(); ++i) c[i] = a[i] + b[i];
  return c;
}

}  // namespace hadal::ref
