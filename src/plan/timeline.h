// Timeline: a schedule played event by event, with a duration of each step and each message.
//
// A step starts when its rank is free and its inputs have arrived. Messages leave when the step
// that made them ends and travel beside computation (their own stream); they do not queue here.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <vector>

#include "parallel/schedule.h"

namespace hadal::plan {

struct Span {
  double start = 0.0, finish = 0.0;
};

struct Timeline {
  std::vector<std::vector<Span>> spans;  // [rank][step], as Schedule::steps
  double makespan = 0.0;
  double busy(int rank) const;  // sum of its steps
};

struct StepTimes {
  std::function<double(int rank, const ScheduleStep& step)> step;
  // From the end of `maker` to the arrival of what it made; empty: 0.
  std::function<double(const ScheduleStep& maker, int from, int to)> message;
};

// Unit times: F = B = W = 1, a full backward 2, an overlapped pair `overlap`.
StepTimes unit_times(double overlap);

// An Error that names the ranks that wait if the schedule cannot go on.
Timeline play(const Schedule& schedule, const StepTimes& times);

}  // namespace hadal::plan
