// The learning-rate schedule: values at its corners, and its shape between them.
// SPDX-License-Identifier: Apache-2.0
#include "train/lr.h"

#include <gtest/gtest.h>

namespace hadal::train {
namespace {

TEST(LearningRate, Corners) {
  const LrSchedule s{.peak = 8.0, .final = 2.0, .warmup_steps = 4, .constant_steps = 10};
  EXPECT_EQ(learning_rate(s, 1, 114), 2.0);
  EXPECT_EQ(learning_rate(s, 4, 114), 8.0);
  EXPECT_EQ(learning_rate(s, 5, 114), 8.0);
  EXPECT_EQ(learning_rate(s, 14, 114), 8.0);
  EXPECT_DOUBLE_EQ(learning_rate(s, 64, 114), 5.0);  // half way down
  EXPECT_DOUBLE_EQ(learning_rate(s, 39, 114), 2.0 + 3.0 * (1.0 + std::sqrt(0.5)));
  EXPECT_DOUBLE_EQ(learning_rate(s, 114, 114), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate(s, 200, 114), 2.0);  // past the end
}

TEST(LearningRate, RisesThenNeverRisesAgain) {
  const LrSchedule s{.peak = 1e-3, .final = 1e-5, .warmup_steps = 7, .constant_steps = 5};
  for (int64_t step = 2; step <= 100; ++step) {
    const double before = learning_rate(s, step - 1, 100), now = learning_rate(s, step, 100);
    if (step <= 7) {
      EXPECT_GT(now, before);
    } else if (step <= 12) {
      EXPECT_EQ(now, before);
    } else {
      EXPECT_LT(now, before);
    }
    EXPECT_GT(now, 0.0);
    EXPECT_LE(now, 1e-3);
  }
}

TEST(LearningRate, NoWarmupAndNoDecay) {
  const LrSchedule s{.peak = 1.0, .final = 0.5};
  EXPECT_LT(learning_rate(s, 1, 10), 1.0);
  EXPECT_GT(learning_rate(s, 1, 10), 0.95);
  EXPECT_DOUBLE_EQ(learning_rate(s, 1, 1), 0.5);
  const LrSchedule constant{.peak = 1.0, .final = 0.5, .constant_steps = 10};
  for (int64_t step = 1; step <= 12; ++step) EXPECT_EQ(learning_rate(constant, step, 10), 1.0);
}

TEST(LearningRate, AWarmupLongerThanTheRun) {
  const LrSchedule s{.peak = 1.0, .final = 0.0, .warmup_steps = 100};
  EXPECT_EQ(learning_rate(s, 10, 10), 0.1);
}

}  // namespace
}  // namespace hadal::train
