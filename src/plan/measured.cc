// Measured schedules: medians, the formula and the picture.
// SPDX-License-Identifier: Apache-2.0
#include "plan/measured.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "plan/schedule_report.h"

namespace hadal::plan {
namespace {

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

template <class Fn>  // fn(rank, step, milliseconds)
void for_each_step(const Schedule& schedule, const Timeline& measured, const Fn& fn) {
  HADAL_CHECK(measured.spans.size() == schedule.steps.size(),
              "internal error: ", measured.spans.size(),
              " ranks were measured, and the schedule has ", schedule.steps.size());
  for (size_t rank = 0; rank < schedule.steps.size(); ++rank) {
    const auto& steps = schedule.steps[rank];
    const auto& spans = measured.spans[rank];
    HADAL_CHECK(spans.size() == steps.size(), "internal error: ", spans.size(), " of the ",
                steps.size(), " steps of rank ", rank, " were measured");
    for (size_t i = 0; i < steps.size(); ++i)
      fn(static_cast<int>(rank), steps[i], spans[i].finish - spans[i].start);
  }
}

using Kind = std::tuple<int, Work, int, int>;  // rank, work, stages forward and backward
Kind kind_of(int rank, const ScheduleStep& s) {
  return {rank, s.work, s.has_forward() ? s.forward.stage : -1,
          s.work == Work::kForward ? -1 : s.backward.stage};
}

}  // namespace

ChunkTimes chunk_times(const Schedule& schedule, const Timeline& measured) {
  std::map<Work, std::vector<double>> by_work;
  for_each_step(schedule, measured,
                [&](int, const ScheduleStep& s, double ms) { by_work[s.work].push_back(ms); });
  ChunkTimes times{.forward = median(by_work[Work::kForward]),
                   .backward = median(by_work[Work::kBackward]),
                   .weight = median(by_work[Work::kBackwardWeight]),
                   .overlap = median(by_work[Work::kOverlap])};
  if (by_work[Work::kBackward].empty())
    times.backward = median(by_work[Work::kBackwardInput]) + times.weight;
  return times;
}

std::optional<double> formula_bubble(const Schedule& schedule, const ChunkTimes& t) {
  const double P = schedule.num_ranks;
  switch (schedule.kind) {
    case ScheduleKind::k1F1B:
      return (P - 1) * (t.forward + t.backward);
    case ScheduleKind::kZb1p:
      return (P - 1) * (t.forward + t.backward - 2 * t.weight);
    case ScheduleKind::kDualPipe:
      return (P / 2 - 1) * (t.overlap + t.backward - 3 * t.weight);
    case ScheduleKind::kDualPipeV:
      return (P - 1) * (t.overlap + t.backward - 3 * t.weight);
    case ScheduleKind::kInterleaved:
      return std::nullopt;
  }
  HADAL_UNREACHABLE("schedule");
}

Timeline replay(const Schedule& schedule, const Timeline& measured) {
  std::map<Kind, std::vector<double>> by_kind;
  for_each_step(schedule, measured, [&](int rank, const ScheduleStep& s, double ms) {
    by_kind[kind_of(rank, s)].push_back(ms);
  });
  std::map<Kind, double> times;
  for (auto& [kind, all] : by_kind) times[kind] = median(std::move(all));
  return play(schedule,
              {.step = [&](int rank, const ScheduleStep& s) { return times.at(kind_of(rank, s)); },
               .message = {}});
}

Svg draw_measured(const Schedule& schedule, const Timeline& measured, const std::string& title) {
  constexpr double kWidth = 1400.0;
  const Timeline planned = replay(schedule, measured);
  const double longest = std::max({planned.makespan, measured.makespan, 1e-6});
  const auto draw = [&](const Timeline& timeline, const char* what) {
    return draw_timeline(schedule, timeline,
                         {.title = fmt::format("{}, {}: {:.1f} ms, bubble {:.1f} ms", title, what,
                                               timeline.makespan, largest_bubble(timeline)),
                          .unit = "ms",
                          .pixels_per_unit = kWidth / longest,
                          .max_width = 2 * kWidth});
  };
  const Svg above = draw(planned, "planned with the times measured"),
            below = draw(measured, "measured");
  Svg both(std::max(above.width(), below.width()), above.height() + below.height());
  both.add(above, 0.0, 0.0);
  both.add(below, 0.0, above.height());
  return both;
}

}  // namespace hadal::plan
