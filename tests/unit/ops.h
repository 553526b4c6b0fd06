// What the tests of ops share: strided tensors, runs at several thread counts, bounds by type.
//
// Names of values are streams of random numbers (tests/ref/array.h): every run sees the same
// values.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <limits>

#include "tests/grad/harness.h"
#include "tests/unit/expect_error.h"

namespace hadal::test {

inline constexpr int64_t kPadding = 3;  // unused columns after the rows of a strided tensor

// A view whose rows are kPadding elements apart; what lies between them is NaN.
inline Tensor strided(Machine& machine, DType dtype, Shape shape) {
  Shape padded = shape;
  const size_t last = static_cast<size_t>(shape.rank - 1);
  padded.dims[last] += kPadding;
  const Tensor whole = machine.tensor(dtype, padded);
  if (is_float(dtype)) {
    for (int64_t i = 0; i < whole.num_elements(); ++i) store_element(whole.raw(), dtype, i, NAN);
  }
  return whole.cols(0, shape[shape.rank - 1]);
}

inline int64_t element_offset(const Tensor& t, int64_t index) {
  int64_t at = 0;
  for (int d = t.rank() - 1; d >= 0; --d) {
    at += index % t.dim(d) * t.stride(d);
    index /= t.dim(d);
  }
  return at;
}

inline Tensor put_strided(Machine& machine, const Array<double>& a, DType dtype) {
  const Tensor t = strided(machine, dtype, a.shape);
  for (int64_t i = 0; i < a.size(); ++i) store_element(t.raw(), dtype, element_offset(t, i), a[i]);
  return t;
}

// Random values that `dtype` holds exactly, so that only the op's own rounding is measured.
inline Array<double> random_in(const std::string& name, Shape shape, DType dtype, double mean = 0.0,
                               double stddev = 1.0) {
  Array<double> a = ref::random(name, shape, mean, stddev);
  for (double& v : a.data) {
    uint64_t bits = 0;
    store_element(&bits, dtype, 0, v);
    v = load_element(&bits, dtype, 0);
  }
  return a;
}

inline Array<double> values(const Tensor& t) { return ref::from_tensor<double>(t); }

inline std::vector<int64_t> integers(const Tensor& t) {
  std::vector<int64_t> result;
  for (int64_t i = 0; i < t.num_elements(); ++i) {
    result.push_back(static_cast<int64_t>(load_element(t.raw(), t.dtype(), element_offset(t, i))));
  }
  return result;
}

// Bound of an element made of `terms` rounded operations with values up to `size`, stored as
// `stored`: arithmetic in f32 (f64 for f64 data), one rounding to the stored type.
inline double op_bound(DType stored, double terms, double size) {
  const DType arithmetic = stored == DType::kF64 ? DType::kF64 : DType::kF32;
  return (terms * unit_roundoff(arithmetic) + (stored == arithmetic ? 0 : unit_roundoff(stored))) *
         size;
}

// Runs fn on machines of 1, 2 and 3 threads; what it returns must have the same bits on all.
inline void expect_same_at_all_thread_counts(
    const std::function<std::vector<Tensor>(Machine&)>& fn) {
  Machine one(1);
  const std::vector<Tensor> want = fn(one);
  for (int num_threads = 2; num_threads <= 3; ++num_threads) {
    Machine many(num_threads);
    const std::vector<Tensor> got = fn(many);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      expect_bits_equal(concat("output ", i, " at ", num_threads, " threads"), got[i], want[i]);
    }
  }
}

inline const DType kOpTypes[] = {DType::kF64, DType::kF32, DType::kBF16};

}  // namespace hadal::test
