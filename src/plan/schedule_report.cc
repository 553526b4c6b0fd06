// Pictures and JSON of played schedules.
// SPDX-License-Identifier: Apache-2.0
#include "plan/schedule_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace hadal::plan {
namespace {

constexpr double kLeft = 64, kTop = 52, kRow = 24, kGap = 4, kBottom = 40, kRight = 16;

// Colour of a chunk: the second shade for direction 1, or for the later half of the stages where a
// rank holds several.
std::string class_of(const Schedule& s, const char* base, const Chunk& c) {
  const bool second = s.num_directions() == 2
                          ? c.direction == 1
                          : s.num_stages > s.num_ranks && c.stage >= s.num_ranks;
  return std::string(base) + (second ? "2" : "");
}

class Drawer {
 public:
  Drawer(const Schedule& schedule, const Timeline& timeline, const TimelineStyle& style)
      : schedule_(schedule),
        timeline_(timeline),
        style_(style),
        scale_(std::min(style.pixels_per_unit,
                        (style.max_width - kLeft - kRight) / std::max(timeline.makespan, 1e-30))),
        svg_(kLeft + kRight + std::max(timeline.makespan * scale_, 420.0),
             kTop + schedule.num_ranks * (kRow + kGap) + kBottom) {}

  Svg draw() {
    svg_.text(kLeft, 18, style_.title, "start", "head");
    legend();
    for (int rank = 0; rank < schedule_.num_ranks; ++rank) row(rank);
    axis();
    return std::move(svg_);
  }

 private:
  double x_of(double time) const { return kLeft + time * scale_; }
  double y_of(int rank) const { return kTop + rank * (kRow + kGap); }

  void legend() {
    double x = kLeft;
    const auto entry = [&](const char* cls, const char* name) {
      svg_.rect(x, 28, 12, 12, cls);
      svg_.text(x + 16, 38, name);
      x += 30 + 7.0 * static_cast<double>(std::string(name).size());
    };
    entry("f", "forward");
    entry("b", "backward");
    entry("bi", "its input half");
    entry("w", "its weight half");
    entry("gap", "bubble");
    if (schedule_.num_directions() == 2)
      svg_.text(x, 38, "lighter: the other direction", "start", "dim");
    else if (schedule_.num_stages > schedule_.num_ranks)
      svg_.text(x, 38, "lighter: the rank's later stages", "start", "dim");
  }

  void cell(const Span& span, double y, double h, const std::string& cls, const std::string& label,
            const std::string& title) {
    const double x = x_of(span.start), w = (span.finish - span.start) * scale_;
    svg_.rect(x, y, std::max(w - 0.7, 0.3), h, cls, title);
    if (w >= 5.5 * static_cast<double>(label.size()) + 2)
      svg_.text(x + w / 2, y + h / 2 + 3.3, label, "middle", "in");
  }

  void row(int rank) {
    const double y = y_of(rank);
    svg_.text(kLeft - 8, y + kRow / 2 + 4, concat("rank ", rank), "end");
    svg_.rect(kLeft, y, timeline_.makespan * scale_, kRow, "gap");
    const auto& steps = schedule_.steps[static_cast<size_t>(rank)];
    const auto& spans = timeline_.spans[static_cast<size_t>(rank)];
    for (size_t i = 0; i < steps.size(); ++i) {
      const ScheduleStep& s = steps[i];
      const std::string title = fmt::format("{}  {:.4g} to {:.4g}", to_string(schedule_, s),
                                            spans[i].start, spans[i].finish);
      const std::string f = concat(s.forward.microbatch), b = concat(s.backward.microbatch);
      switch (s.work) {
        case Work::kForward:
          cell(spans[i], y, kRow, class_of(schedule_, "f", s.forward), f, title);
          break;
        case Work::kBackward:
          cell(spans[i], y, kRow, class_of(schedule_, "b", s.backward), b, title);
          break;
        case Work::kBackwardInput:
          cell(spans[i], y, kRow, class_of(schedule_, "bi", s.backward), b, title);
          break;
        case Work::kBackwardWeight:
          cell(spans[i], y, kRow, class_of(schedule_, "w", s.backward), b, title);
          break;
        case Work::kOverlap:
          cell(spans[i], y, kRow / 2, class_of(schedule_, "f", s.forward), f, title);
          cell(spans[i], y + kRow / 2, kRow / 2, class_of(schedule_, "b", s.backward), b, title);
          break;
      }
    }
  }

  void axis() {
    const double y = y_of(schedule_.num_ranks) + 6;
    svg_.line(kLeft, y, x_of(timeline_.makespan), y, "axis");
    double tick = std::pow(10.0, std::floor(std::log10(std::max(timeline_.makespan, 1e-30))));
    while (timeline_.makespan / tick < 8) tick /= 2;
    for (double t = 0; t <= timeline_.makespan * (1 + 1e-9); t += tick) {
      svg_.line(x_of(t), y, x_of(t), y + 4, "axis");
      svg_.text(x_of(t), y + 16, fmt::format("{:.4g}", t), "middle", "small dim");
    }
    svg_.text(kLeft, y + 29, style_.unit, "start", "small dim");
  }

  const Schedule& schedule_;
  const Timeline& timeline_;
  const TimelineStyle& style_;
  double scale_;
  Svg svg_;
};

}  // namespace

Svg draw_timeline(const Schedule& schedule, const Timeline& timeline, const TimelineStyle& style) {
  return Drawer(schedule, timeline, style).draw();
}

double bubble(const Timeline& timeline, int rank) {
  return timeline.makespan - timeline.busy(rank);
}

double largest_bubble(const Timeline& timeline) {
  double most = 0.0;
  for (int rank = 0; rank < static_cast<int>(timeline.spans.size()); ++rank)
    most = std::max(most, bubble(timeline, rank));
  return most;
}

double smallest_bubble(const Timeline& timeline) {
  double least = largest_bubble(timeline);
  for (int rank = 0; rank < static_cast<int>(timeline.spans.size()); ++rank)
    least = std::min(least, bubble(timeline, rank));
  return least;
}

io::Json timeline_json(const Schedule& schedule, const Timeline& timeline) {
  io::Json ranks = io::Json::array(), bubbles = io::Json::array();
  for (int rank = 0; rank < schedule.num_ranks; ++rank) {
    const auto& steps = schedule.steps[static_cast<size_t>(rank)];
    const auto& spans = timeline.spans[static_cast<size_t>(rank)];
    io::Json row = io::Json::array();
    for (size_t i = 0; i < steps.size(); ++i)
      row.push_back({{"op", to_string(schedule, steps[i])},
                     {"start", spans[i].start},
                     {"finish", spans[i].finish}});
    ranks.push_back(std::move(row));
    bubbles.push_back(bubble(timeline, rank));
  }
  return {{"kind", schedule_name(schedule.kind)}, {"pp", schedule.num_ranks},
          {"stages", schedule.num_stages},        {"microbatches", schedule.num_microbatches},
          {"makespan", timeline.makespan},        {"bubble", largest_bubble(timeline)},
          {"bubbles", std::move(bubbles)},        {"ranks", std::move(ranks)}};
}

}  // namespace hadal::plan
