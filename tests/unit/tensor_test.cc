// Views: slices, shapes, and the sentences about wrong ones.
// SPDX-License-Identifier: Apache-2.0
#include "core/tensor.h"

#include <gtest/gtest.h>

#include <numeric>
#include <type_traits>
#include <vector>

#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

class TensorTest : public ::testing::Test {
 protected:
  TensorTest() : values_(24) { std::iota(values_.begin(), values_.end(), 0); }
  Tensor tensor(Shape shape) { return {values_.data(), DType::kI32, shape}; }
  std::vector<int32_t> values_;
};

TEST_F(TensorTest, ShapesAndStrides) {
  const Tensor t = tensor({2, 3, 4});
  EXPECT_EQ(t.str(), "i32 [2, 3, 4]");
  EXPECT_EQ(t.num_elements(), 24);
  EXPECT_EQ(t.num_bytes(), 96);
  EXPECT_EQ(t.stride(0), 12);
  EXPECT_EQ(t.stride(1), 4);
  EXPECT_EQ(t.stride(2), 1);
  EXPECT_TRUE(t.is_dense());
  EXPECT_EQ(Shape{}.num_elements(), 1);
  EXPECT_EQ((Shape{3, 0}).num_elements(), 0);
  EXPECT_EQ((Shape{}).str(), "[]");
  EXPECT_FALSE((Shape{2, 1}) == (Shape{2}));
  EXPECT_FALSE((Shape{2, 1}) == (Shape{2, 2}));
  EXPECT_TRUE(Tensor().empty());
}

TEST_F(TensorTest, Slices) {
  const Tensor t = tensor({2, 3, 4});
  const Tensor row = t.row(1);
  EXPECT_EQ(row.str(), "i32 [3, 4]");
  EXPECT_EQ(*row.data<int32_t>(), 12);
  EXPECT_EQ(*t.rows(1, 1).data<int32_t>(), 12);
  const Tensor cols = t.cols(1, 2);
  EXPECT_EQ(cols.str(), "i32 [2, 3, 2]");
  EXPECT_EQ(*cols.data<int32_t>(), 1);
  EXPECT_EQ(cols.stride(1), 4);
  EXPECT_FALSE(cols.is_dense());
  EXPECT_EQ(*cols.row(1).row(2).data<int32_t>(), 21);
  EXPECT_EQ(cols.row(1).row(2).rank(), 1);
  EXPECT_EQ(t.rows(2, 0).num_elements(), 0);
  EXPECT_EQ(t.view({6, 4}).row(5).data<int32_t>()[3], 23);
}

TEST_F(TensorTest, ADimensionOfOneIsDenseAtAnyStride) {
  EXPECT_TRUE(tensor({1, 4}).cols(0, 2).is_dense());
  EXPECT_FALSE(tensor({2, 4}).cols(0, 2).is_dense());
  EXPECT_TRUE(tensor({2, 4}).rows(1, 1).cols(1, 3).is_dense());
}

TEST_F(TensorTest, ErrorsNameTheTensor) {
  const Tensor t = tensor({2, 12});
  EXPECT_ERROR(t.view({5, 5}), "cannot view i32 [2, 12] as [5, 5]");
  EXPECT_ERROR(t.cols(0, 3).view({6}), "cannot reshape a strided view of i32 [2, 3]");
  EXPECT_ERROR(t.rows(1, 2), "rows 1 to 3 are outside i32 [2, 12]");
  EXPECT_ERROR(t.rows(-1, 1), "rows -1 to 0 are outside i32 [2, 12]");
  EXPECT_ERROR(t.cols(10, 3), "columns 10 to 13 are outside i32 [2, 12]");
  EXPECT_ERROR(t.row(2), "row 2 is outside i32 [2, 12]");
  EXPECT_ERROR(t.data<float>(), "tensor of i32 read as f32");
  EXPECT_ERROR((Shape{1, 2, 3, 4, 5}), "a tensor has at most 4 dimensions, got 5");
  EXPECT_ERROR((Shape{2, -1}), "a tensor dimension cannot be negative, got -1");
  EXPECT_ERROR(HADAL_SHAPE(t, 3), "t must have 3 dimensions, has i32 [2, 12]");
  EXPECT_ERROR(HADAL_CHECK_SHAPE(t, 12, 2), "t must have shape [12, 2], has [2, 12]");
}

TEST_F(TensorTest, OperandSlicesKeepTheirScales) {
  const Operand w(tensor({6, 4}), tensor({1, 1}));
  const Operand slice = w.rows(2, 3).rows(1, 2);
  EXPECT_EQ(slice.row_begin, 3);
  EXPECT_EQ(*slice.data.data<int32_t>(), 12);
  EXPECT_EQ(slice.scale.raw(), w.scale.raw());
  EXPECT_TRUE(Operand().empty());
}

// Direction is in the type: what is const cannot be written.
TEST(Directions, AConstTensorIsNoOutput) {
  static_assert(std::is_convertible_v<const Tensor&, In>);
  static_assert(std::is_convertible_v<Tensor&, Out>);
  static_assert(!std::is_convertible_v<const Tensor&, Out>);
  static_assert(!std::is_convertible_v<const Tensor&, Acc>);
}

TEST(Check, ErrorsKnowTheirPlace) {
  try {
    HADAL_CHECK(1 == 2, "one is ", 1, ", two is ", 2.5, ' ', true);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "one is 1, two is 2.5 true");
    EXPECT_NE(error.where().find("tensor_test.cc:"), std::string::npos);
    EXPECT_NE(error.where().find("check failed: 1 == 2"), std::string::npos);
  }
  EXPECT_ERROR(HADAL_UNREACHABLE("state 7"), "internal error: state 7");
}

}  // namespace
}  // namespace hadal
