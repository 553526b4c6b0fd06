// Paced copies: what they copy, how long they take at least, what they refuse.
// SPDX-License-Identifier: Apache-2.0
#include "ops/paced_copy.h"

#include <gtest/gtest.h>

#include "core/timer.h"
#include "tests/unit/expect_error.h"
#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

TEST(PacedCopy, CopiesAndTakesItsTime) {
  Machine machine(1);
  Context& ctx = machine.ctx;
  Tensor x, y;
  const Block a = ctx.memory.take_tensor(DType::kI32, {1000}, &x);
  const Block b = ctx.memory.take_tensor(DType::kI32, {1000}, &y);
  for (int32_t i = 0; i < 1000; ++i) {
    x.data<int32_t>()[i] = i;
    y.data<int32_t>()[i] = -1;
  }
  const Timer timer;
  ops::paced_copy(ctx, 4000.0 / 0.05, 20, x, y);  // 50 ms
  EXPECT_GE(timer.seconds(), 0.05);
  for (int32_t i = 0; i < 1000; ++i) ASSERT_EQ(y.data<int32_t>()[i], i);
}

TEST(PacedCopy, RefusesWhatItCannotCopy) {
  Machine machine(1);
  Context& ctx = machine.ctx;
  Tensor x;
  const Block memory = ctx.memory.take_tensor(DType::kI32, {8}, &x);
  Tensor y = x;
  EXPECT_ERROR(ops::paced_copy(ctx, 0.0, 1, x, y),
               "paced_copy: 0 bytes a second by 1 blocks; both must be more than 0");
  EXPECT_ERROR(ops::paced_copy(ctx, 1.0, 0, x, y),
               "paced_copy: 1 bytes a second by 0 blocks; both must be more than 0");
  EXPECT_ERROR(ops::paced_copy(ctx, 1.0, 1, x.rows(0, 3), y.rows(0, 3)),
               "paced_copy: i32 [3] is not of 16-byte multiples");
}

}  // namespace
}  // namespace hadal::test
