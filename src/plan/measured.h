// A schedule as it was measured: what its steps took, and what the schedule makes of that.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "plan/svg.h"
#include "plan/timeline.h"

namespace hadal::plan {

// Medians over all ranks of what a chunk took; 0 where the schedule has none of them.
struct ChunkTimes {
  double forward = 0.0, backward = 0.0;  // F, B: both halves
  double weight = 0.0;                   // W
  double overlap = 0.0;                  // F&B
};
ChunkTimes chunk_times(const Schedule& schedule, const Timeline& measured);

// The bubble that these times give by the formulas of parallel/schedule.h; none for interleaved.
std::optional<double> formula_bubble(const Schedule& schedule, const ChunkTimes& times);

// The schedule played with each rank's medians by kind of work and stage.
Timeline replay(const Schedule& schedule, const Timeline& measured);

// The replay above what was measured, in milliseconds and on one scale.
Svg draw_measured(const Schedule& schedule, const Timeline& measured, const std::string& title);

}  // namespace hadal::plan
