// Searches as text, JSON and HTML.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "plan/html.h"
#include "plan/search.h"

namespace hadal::plan {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string schedule_of(const Candidate& c) {
  return c.schedule == ScheduleKind::kInterleaved
             ? concat(schedule_name(c.schedule), " x", c.stages_per_rank)
             : schedule_name(c.schedule);
}

Rows rows_of(const std::vector<Candidate>& candidates, size_t max_rows) {
  Rows rows = {{"devices", "pp", "dp", "ep", "tp", "schedule", "micro-batch", "recompute", "step s",
                "GB", "bubble", "tok/s/device", "MFU causal"}};
  for (size_t i = 0; i < std::min(candidates.size(), max_rows); ++i) {
    const Candidate& c = candidates[i];
    rows.push_back({concat(c.devices), concat(c.mesh.pp), concat(c.mesh.dp), concat(c.mesh.ep),
                    concat(c.mesh.tp), schedule_of(c), concat(c.micro_batch_sequences),
                    recompute_name(c.recompute), fmt::format("{:.3f}", c.step_seconds),
                    fmt::format("{:.1f}", c.memory_bytes / 1e9),
                    fmt::format("{:.1f}%", 100.0 * c.bubble_share),
                    fmt::format("{:.0f}", c.tokens_per_second_per_device),
                    fmt::format("{:.1f}%", 100.0 * c.mfu_causal)});
  }
  return rows;
}

std::string counts(const SearchResult& r) {
  return fmt::format(
      "{} combinations divide, {} of them do not fit in memory, {} remain, {} are on "
      "the front of time, memory and devices",
      r.tried, r.dropped_for_memory, r.fit.size(), r.front.size());
}

// Step time against memory; the front in front.
Svg plot(const SearchResult& r) {
  const double left = 64, top = 40, width = 760, height = 380;
  double t_low = 1e300, t_high = 0, m_low = 1e300, m_high = 0;
  for (const Candidate& c : r.fit) {
    t_low = std::min(t_low, c.step_seconds);
    t_high = std::max(t_high, c.step_seconds);
    m_low = std::min(m_low, c.memory_bytes);
    m_high = std::max(m_high, c.memory_bytes);
  }
  t_high = std::min(t_high, 3.0 * t_low);  // the slow end says little
  const double t_span = std::max(t_high - t_low, 1e-9 * t_high);
  const double m_span = std::max(m_high - m_low, 1e-9 * m_high);
  const auto x = [&](double t) { return left + (t - t_low) / t_span * width; };
  const auto y = [&](double m) { return top + height - (m - m_low) / m_span * height; };
  Svg svg(left + width + 30, top + height + 50);
  svg.text(left, 20, "Step time against memory of the fullest rank", "start", "head");
  svg.line(left, top, left, top + height, "axis");
  svg.line(left, top + height, left + width, top + height, "axis");
  for (int i = 0; i <= 4; ++i) {
    const double t = t_low + t_span * i / 4, m = m_low + m_span * i / 4;
    svg.line(left, y(m), left + width, y(m), "grid");
    svg.text(left - 6, y(m) + 4, fmt::format("{:.0f}", m / 1e9), "end", "small dim");
    svg.text(x(t), top + height + 16, fmt::format("{:.4g}", t), "middle", "small dim");
  }
  svg.text(left + width, top + height + 34, "seconds a step", "end", "small dim");
  svg.text(left - 50, top - 8, "GB", "start", "small dim");
  const auto mark = [&](const Candidate& c, double radius, const char* cls) {
    if (c.step_seconds > t_high) return;
    svg.circle(
        x(c.step_seconds), y(c.memory_bytes), radius, cls,
        concat(c.devices, " devices, ", to_string(c.mesh), ", ", schedule_of(c), ", micro-batch ",
               c.micro_batch_sequences, ", recompute ", recompute_name(c.recompute)));
  };
  for (const Candidate& c : r.fit) mark(c, 2.0, "w2");
  for (const Candidate& c : r.front) mark(c, 5.0, "mem4");
  return svg;
}

}  // namespace

std::string search_text(const TrainPlan& plan, const SearchResult& result, size_t max_rows) {
  const Rows rows = rows_of(result.front, max_rows);
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows)
    for (size_t j = 0; j < row.size(); ++j) widths[j] = std::max(widths[j], row[j].size());
  std::string text = plan.name + ": " + counts(result) + "\n\n";
  for (const auto& row : rows) {
    for (size_t j = 0; j < row.size(); ++j)
      text += fmt::format("{}{:>{}}", j ? "  " : "", row[j], widths[j]);
    text += "\n";
  }
  if (result.front.size() > max_rows)
    text += concat("... and ", result.front.size() - max_rows, " more; --json has all\n");
  return text;
}

io::Json search_json(const SearchResult& result) {
  const auto list = [](const std::vector<Candidate>& candidates) {
    io::Json all = io::Json::array();
    for (const Candidate& c : candidates)
      all.push_back(
          {{"devices", c.devices},
           {"mesh", {{"pp", c.mesh.pp}, {"dp", c.mesh.dp}, {"ep", c.mesh.ep}, {"tp", c.mesh.tp}}},
           {"schedule", schedule_name(c.schedule)},
           {"stages_per_rank", c.stages_per_rank},
           {"micro_batch_sequences", c.micro_batch_sequences},
           {"recompute", recompute_name(c.recompute)},
           {"step_seconds", c.step_seconds},
           {"memory_bytes", c.memory_bytes},
           {"host_bytes_per_node", c.host_bytes_per_node},
           {"bubble_share", c.bubble_share},
           {"tokens_per_second_per_device", c.tokens_per_second_per_device},
           {"mfu_causal", c.mfu_causal},
           {"device_hours", c.device_hours},
           {"dollars", c.dollars}});
    return all;
  };
  return {{"tried", result.tried},
          {"dropped_for_memory", result.dropped_for_memory},
          {"fit", result.fit.size()},
          {"front", list(result.front)}};
}

std::string search_html(const TrainPlan& plan, const SearchResult& result) {
  Html page(plan.name + ": search");
  page.paragraph(counts(result));
  page.picture(
      plot(result),
      "Every combination that fits; the front in the other colour. Hover for its numbers.");
  page.heading("The front");
  page.table(rows_of(result.front, 200), 0);
  page.heading("The fastest that fit");
  page.table(rows_of(result.fit, 30), 0);
  return page.page();
}

}  // namespace hadal::plan
