// A played schedule as a picture, as JSON and as one line of text.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "io/json.h"
#include "plan/svg.h"
#include "plan/timeline.h"

namespace hadal::plan {

// One row per rank, time to the right; cells hold micro-batch numbers where they are wide enough.
// unit: what one unit of time is called ("unit", "ms"), `scale`: pixels of it.
struct TimelineStyle {
  std::string title;
  std::string unit = "units of time";
  double pixels_per_unit = 14.0;
  double max_width = 6000.0;  // the scale is lowered to fit
};
Svg draw_timeline(const Schedule& schedule, const Timeline& timeline, const TimelineStyle& style);

// kind, pp, stages, microbatches, makespan, bubble (the largest of the ranks), bubbles, ranks:
// each rank's steps as {"op", "start", "finish"}.
io::Json timeline_json(const Schedule& schedule, const Timeline& timeline);

// Makespan less what the rank computes.
double bubble(const Timeline& timeline, int rank);
double largest_bubble(const Timeline& timeline);
// Of the rank with most work: what the others have more is that they wait for it.
double smallest_bubble(const Timeline& timeline);

}  // namespace hadal::plan
