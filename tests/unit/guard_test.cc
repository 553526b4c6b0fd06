// The guard: what counts as a spike, when it rolls back, and that its state is whole.
// SPDX-License-Identifier: Apache-2.0
#include "train/guard.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "tests/unit/expect_error.h"

namespace hadal::train {
namespace {

constexpr GuardConfig kConfig{
    .enabled = true, .spike_sigma = 6.0, .window = 16, .max_skips = 2, .max_rollbacks = 1};
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Good steps 1 .. count, with losses about 2 and norms about 1.
void warm_up(Guard& guard, int64_t count) {
  for (int64_t step = 1; step <= count; ++step)
    ASSERT_EQ(guard.judge(step, 2.0 + 0.1 * static_cast<double>(step % 3),
                          1.0 + 0.1 * static_cast<double>(step % 2)),
              Verdict::kGood);
}

TEST(Guard, SkipsSpikesOfLossAndOfNorm) {
  Guard guard(kConfig);
  warm_up(guard, 20);
  EXPECT_EQ(guard.judge(21, 2.4, 1.1), Verdict::kGood);  // 4 deviations
  EXPECT_EQ(guard.judge(22, 3.0, 1.0), Verdict::kSkip);
  EXPECT_EQ(guard.judge(23, 2.0, 5.0), Verdict::kSkip);
  EXPECT_EQ(guard.judge(24, 2.0, 1.0), Verdict::kGood);
  EXPECT_EQ(guard.judge(25, 0.1, 0.0), Verdict::kGood);  // falling is no spike
  EXPECT_EQ(guard.num_skipped(), 2);
}

// Norms of a young model, one of them with no target: what lies within a factor is no spike.
TEST(Guard, ComparesByFactors) {
  Guard guard(kConfig);
  for (int64_t step = 1; step <= 20; ++step)
    ASSERT_EQ(guard.judge(step, 2.0, step == 7 ? 0.0 : step % 2 == 0 ? 1.0 : 2.0), Verdict::kGood);
  EXPECT_EQ(guard.judge(21, 2.0, 6.0),
            Verdict::kGood);  // 9 deviations of the norms, 4 of their logarithms
  EXPECT_EQ(guard.judge(22, 2.0, 40.0), Verdict::kSkip);
}

TEST(Guard, SkipsWhatIsNotFiniteFromTheFirstStepOn) {
  Guard guard(kConfig);
  EXPECT_EQ(guard.judge(1, kNan, 1.0), Verdict::kSkip);
  EXPECT_EQ(guard.judge(2, 1.0, std::numeric_limits<double>::infinity()), Verdict::kSkip);
  EXPECT_EQ(guard.judge(3, 100.0, 9.0), Verdict::kGood);
  EXPECT_EQ(guard.judge(4, 900.0, 9.0), Verdict::kGood);  // too few steps seen to tell a spike
}

TEST(Guard, RollsBackAfterMaxSkipsInARow) {
  Guard guard(kConfig);
  warm_up(guard, 10);
  EXPECT_EQ(guard.judge(11, 9.0, 1.0), Verdict::kSkip);
  EXPECT_EQ(guard.judge(12, 2.0, 1.0), Verdict::kGood);
  for (int64_t step : {13, 14}) EXPECT_EQ(guard.judge(step, 9.0, 1.0), Verdict::kSkip);
  EXPECT_EQ(guard.judge(15, 9.0, 1.0), Verdict::kRollBack);
  EXPECT_EQ(guard.last_good_step(), 12);
  guard.rolled_back(0);
  EXPECT_EQ(guard.judge(11, 9.0, 1.0), Verdict::kSkip);  // a new streak
  EXPECT_ERROR(guard.rolled_back(1),
               "the loss spiked again after 1 roll-backs; lower the learning rate, or raise "
               "train.guard.max_rollbacks");
}

TEST(Guard, WithoutSigmaOnlyWhatIsNotFiniteCounts) {
  GuardConfig config = kConfig;
  config.spike_sigma = 0.0;
  Guard guard(config);
  warm_up(guard, 20);
  EXPECT_EQ(guard.judge(21, 1e9, 1e9), Verdict::kGood);
  EXPECT_EQ(guard.judge(22, kNan, 1.0), Verdict::kSkip);
}

TEST(Guard, GoesOnFromItsState) {
  Guard guard(kConfig);
  warm_up(guard, 20);
  EXPECT_EQ(guard.judge(21, 9.0, 1.0), Verdict::kSkip);
  Guard again(kConfig);
  again.restore(io::JsonObject::parse(guard.state().dump(), "state"));
  for (int64_t step = 22; step < 60; ++step) {
    const double loss = step % 9 == 0 ? 7.0 : 2.0 + 0.01 * static_cast<double>(step % 5);
    ASSERT_EQ(again.judge(step, loss, 1.0), guard.judge(step, loss, 1.0)) << step;
  }
  EXPECT_EQ(again.state(), guard.state());
}

}  // namespace
}  // namespace hadal::train
