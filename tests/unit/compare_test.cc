// The comparisons of tests/compare.h fail when they should.
// SPDX-License-Identifier: Apache-2.0
#include "tests/compare.h"

#include <gtest/gtest-spi.h>

namespace hadal::test {
namespace {

Array<double> matrix(std::vector<double> values) {
  Array<double> a({2, 2});
  a.data = std::move(values);
  return a;
}

const double kInf = INFINITY, kNan = NAN;

TEST(Compare, WithinTheBound) {
  EXPECT_DOUBLE_EQ(expect_close("a", matrix({1, 2, 3, 4.5}), matrix({1, 2, 3, 4}), 0.5), 0.5);
}

TEST(Compare, NamesTheWorstElement) {
  EXPECT_NONFATAL_FAILURE(expect_close("a", matrix({1, 2.1, 3.5, 4}), matrix({1, 2, 3, 4}), 0.25),
                          "a[1, 0] is the worst element: got 3.5, want 3, error 0.5, bound 0.25");
}

TEST(Compare, ShapesDiffer) {
  EXPECT_NONFATAL_FAILURE(expect_close("a", Array<double>({4}), matrix({1, 2, 3, 4}), kInf),
                          "a has shape [4], want [2, 2]");
}

TEST(Compare, NonFiniteMasksComeFirst) {
  EXPECT_EQ(expect_close("a", matrix({1, kNan, kInf, 4}), matrix({1, kNan, kInf, 4}), 0.0), 0.0);
  EXPECT_NONFATAL_FAILURE(expect_close("a", matrix({1, kNan, 3, 4}), matrix({1, 2, 3, 4}), kInf),
                          "a[0, 1]: got nan, want 2");
  EXPECT_NONFATAL_FAILURE(expect_close("a", matrix({1, 2, 3, 4}), matrix({1, 2, 3, kInf}), kInf),
                          "a[1, 1]: got 4, want inf");
  EXPECT_NONFATAL_FAILURE(
      expect_close("a", matrix({1, 2, -kInf, 4}), matrix({1, 2, kInf, 4}), kInf),
      "a[1, 0]: got -inf, want inf");
}

TEST(Compare, RelativeToTheNorm) {
  const Array<double> want = matrix({3, 0, 0, 4});
  EXPECT_DOUBLE_EQ(expect_close_to_norm("a", matrix({3, 1, 0, 4}), want, 0.2), 0.2);
  EXPECT_NONFATAL_FAILURE(expect_close_to_norm("a", matrix({3, 1, 0, 4}), want, 0.19), "a[0, 1]");
  EXPECT_NONFATAL_FAILURE(
      expect_close_to_norm("a", matrix({0, 1e-300, 0, 0}), Array<double>({2, 2}), 1.0), "a[0, 1]");
}

TEST(Compare, RelativeL2) {
  EXPECT_DOUBLE_EQ(expect_relative_l2("a", matrix({3, 3, 4, 4}), matrix({3, 0, 0, 4}), 1.0), 1.0);
  EXPECT_NONFATAL_FAILURE(expect_relative_l2("a", matrix({3, 3, 4, 4}), matrix({3, 0, 0, 4}), 0.9),
                          "worst at [1, 0]: got 4, want 0, error 4");
}

TEST(Compare, Bits) {
  float zero[] = {0.0f, 1.0f, 2.0f, 3.0f}, negative_zero[] = {0.0f, 1.0f, -0.0f, 3.0f};
  float two[] = {0.0f, 1.0f, 0.0f, 3.0f};
  const Tensor a(zero, DType::kF32, {2, 2}), b(negative_zero, DType::kF32, {2, 2});
  const Tensor c(two, DType::kF32, {2, 2});
  expect_bits_equal("a", a, a);
  expect_bits_equal("a", a.cols(1, 1), b.cols(1, 1));
  EXPECT_NONFATAL_FAILURE(expect_bits_equal("a", b, c), "a[1, 0] differs in its bits");
}

}  // namespace
}  // namespace hadal::test
