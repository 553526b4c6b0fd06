// Planned training steps as text, JSON and HTML.
// SPDX-License-Identifier: Apache-2.0
#include "plan/train_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "plan/html.h"
#include "plan/schedule_report.h"

namespace hadal::plan {
namespace {

std::string seconds(double s) { return fmt::format("{:.3f}", s); }
std::string gb(double bytes) { return fmt::format("{:.2f}", bytes / 1e9); }
std::string percent(double share) { return fmt::format("{:.2f}%", 100.0 * share); }

std::string shape_text(const OpShape& shape) {
  std::string text;
  for (const int64_t dim : shape) text += concat(text.empty() ? "" : " x ", dim);
  return text;
}

std::string rate_text(const RateRow& row) {
  const std::string unit = work_unit(row.op);
  if (unit == "flop") return fmt::format("{:.4g} TFLOPS", row.rate / 1e12);
  if (unit == "byte") return fmt::format("{:.4g} GB/s", row.rate / 1e9);
  return fmt::format("{:.4g} G/s", row.rate / 1e9);
}

using Rows = std::vector<std::vector<std::string>>;

// Parts of the step, the table that the paper prints.
Rows step_rows(const TrainResult& r) {
  const StepParts& m = r.mean;
  return {{"part", "seconds"},
          {"1F", seconds(m.forward)},
          {"bubble", seconds(m.bubble)},
          {"1B", seconds(m.backward)},
          {"1W", seconds(m.weight)},
          {"1F1B", seconds(m.overlapped)},
          {"optimizer", seconds(r.optimizer_seconds)},
          {"step", seconds(r.step_seconds)}};
}

Rows summary_rows(const TrainPlan& p, const TrainResult& r) {
  Rows rows = {
      {"figure", "value"},
      {"tokens/day", fmt::format("{:.2f} B", r.tokens_per_day / 1e9)},
      {"tokens/s per device", fmt::format("{:.1f}", r.tokens_per_second_per_device)},
      {"bubble", percent(r.bubble_share) + " of the step"},
      {"TFLOPS, non-causal / causal",
       fmt::format("{:.0f} / {:.0f}", r.tflops_noncausal, r.tflops_causal)},
      {"MFU, non-causal / causal", percent(r.mfu_noncausal) + " / " + percent(r.mfu_causal)},
      {"GFLOP per token, non-causal / causal",
       fmt::format("{:.1f} / {:.1f}", r.flops_per_token_noncausal / 1e9,
                   r.flops_per_token_causal / 1e9)},
      {"memory of the fullest rank",
       fmt::format("{} of {} GB{}", gb(r.largest_memory), gb(r.memory_limit),
                   r.fits ? "" : ": does not fit")},
      {"host memory per node", gb(r.host_bytes_per_node) + " GB"}};
  if (p.tokens > 0.0) {
    rows.push_back({"whole run", fmt::format("{:.2f} days, {:.0f}K device hours", r.total_days,
                                             r.device_hours / 1e3)});
    rows.push_back({"cost", p.cluster.device.dollars_per_hour > 0.0
                                ? fmt::format("${:.3f}M at ${:.2f} a device hour", r.dollars / 1e6,
                                              p.cluster.device.dollars_per_hour)
                                : std::string("the cluster file has no price")});
  }
  return rows;
}

Rows layer_rows(const LayerTimes& t) {
  const auto ms = [](double s) { return fmt::format("{:.2f}", s * 1e3); };
  return {{"part", "F, ms", "B, ms", "W, ms"},
          {"attention", ms(t.attention[0]), ms(t.attention[1]), ms(t.attention[2])},
          {"dispatch", ms(t.dispatch_f), ms(t.dispatch_b), ""},
          {"MLP", ms(t.mlp[0]), ms(t.mlp[1]), ms(t.mlp[2])},
          {"combine", ms(t.combine_f), ms(t.combine_b), ""}};
}

Rows memory_rows(const std::vector<RankMemory>& ranks) {
  Rows rows = {{"GB"}};
  for (size_t r = 0; r < ranks.size(); ++r) rows[0].push_back(concat("pp ", r));
  const auto classes = memory_classes(ranks[0]);
  for (size_t i = 0; i < classes.size(); ++i) {
    std::vector<std::string> row = {classes[i].first};
    for (const RankMemory& m : ranks) row.push_back(gb(memory_classes(m)[i].second));
    rows.push_back(row);
  }
  rows.push_back({"sum"});
  for (const RankMemory& m : ranks) rows.back().push_back(gb(m.device()));
  return rows;
}

std::string align(const Rows& rows, const char* indent) {
  std::vector<size_t> widths;
  for (const auto& row : rows)
    for (size_t j = 0; j < row.size(); ++j) {
      if (widths.size() <= j) widths.push_back(0);
      widths[j] = std::max(widths[j], row[j].size());
    }
  std::string text;
  for (const auto& row : rows) {
    std::string line = indent;
    for (size_t j = 0; j < row.size(); ++j)
      line += j == 0 ? fmt::format("{:<{}}", row[j], widths[j])
                     : fmt::format("  {:>{}}", row[j], widths[j]);
    while (line.ends_with(' ')) line.pop_back();
    text += line + "\n";
  }
  return text;
}

std::string stages_text(const std::vector<StageRange>& stages) {
  std::string text;
  for (const StageRange& s : stages)
    text += concat(text.empty() ? "" : " ", s.num_layers, s.num_mtp > 0 ? "+MTP" : "",
                   s.has_head ? "+head" : "");
  return text;
}

std::vector<std::string> fitted_lines(const Fitted& f) {
  std::vector<std::string> lines;
  const auto add = [&](const char* name, double value, double plain) {
    if (value != plain) lines.push_back(fmt::format("fitted: {} = {:g}", name, value));
  };
  add("overlap_stretch", f.overlap_stretch, 1.0);
  add("deferred_weight_stretch", f.deferred_weight_stretch, 1.0);
  add("chunk_jitter", f.chunk_jitter, 0.0);
  if (!lines.empty())
    lines.push_back("fitted to: " + f.why);
  else
    lines.push_back("nothing is fitted");
  return lines;
}

std::vector<std::string> communication_lines(const TrainPlan& p) {
  if (p.is_runtime()) {
    if (p.mesh.num_ranks() == 1) return {};
    return {"tokens pick experts evenly within their groups",
            "exchanges, reductions, gathers and messages take the time of one alone among as many "
            "ranks; nothing of them is hidden"};
  }
  std::vector<std::string> lines;
  if (p.mesh.ep > 1)
    lines.emplace_back(
        "tokens pick experts evenly within their groups; exchanges take as long as the bytes to "
        "each destination once, its own node included");
  lines.emplace_back(
      "gradients are reduced and parameters gathered after the last micro-batch, in rings; nothing "
      "of it is hidden");
  lines.emplace_back(
      "messages between stages are hidden behind overlapped pairs and shown elsewhere");
  return lines;
}

Svg memory_bars(const TrainPlan& p, const TrainResult& r) {
  const double left = 64, top = 64, width = 720, bar = 20, gap = 5;
  const double most = std::max(r.largest_memory, r.memory_limit) * 1.02;
  Svg svg(left + width + 70, top + static_cast<double>(r.memory.size()) * (bar + gap) + 30);
  svg.text(left, 18, "Device memory of each pipeline rank, GB", "start", "head");
  const auto classes = memory_classes(r.memory[0]);
  double x = left;
  for (size_t i = 0; i < classes.size(); ++i) {
    svg.rect(x, 30, 11, 11, concat("mem", i));
    svg.text(x + 15, 40, classes[i].first, "start", "small");
    x += 26 + 5.0 * static_cast<double>(classes[i].first.size());
  }
  for (size_t rank = 0; rank < r.memory.size(); ++rank) {
    const double y = top + static_cast<double>(rank) * (bar + gap);
    svg.text(left - 8, y + 14, concat("pp ", rank), "end");
    double at = left;
    const auto parts = memory_classes(r.memory[rank]);
    for (size_t i = 0; i < parts.size(); ++i) {
      const double w = parts[i].second / most * width;
      svg.rect(at, y, w, bar, concat("mem", i), parts[i].first + " " + gb(parts[i].second) + " GB");
      at += w;
    }
    svg.text(at + 6, y + 14, gb(r.memory[rank].device()), "start", "small");
  }
  const double limit = left + r.memory_limit / most * width;
  const double bottom = top + static_cast<double>(r.memory.size()) * (bar + gap);
  svg.line(limit, top - 6, limit, bottom, "mark");
  svg.text(limit, bottom + 14, concat("limit of one ", p.cluster.device.name), "end", "small dim");
  return svg;
}

std::string headline(const TrainPlan& p) {
  return fmt::format("{}: {}, {}, {} micro-batches of {} x {} tokens, {}, recompute {}", p.name,
                     to_string(p.mesh), schedule_name(p.schedule), p.num_microbatches(),
                     p.micro_batch_sequences, p.sequence_length, recipe_name(p.recipe),
                     recompute_name(p.recompute));
}

}  // namespace

std::vector<std::string> assumptions_of(const TrainPlan& p) {
  std::vector<std::string> list = fitted_lines(p.fitted);
  const DeviceSpec& d = p.cluster.device;
  list.push_back("device: " + d.source);
  if (p.cluster.devices_per_node > 1)
    list.push_back(p.cluster.scale_up.name + ": " + p.cluster.scale_up.source);
  if (p.cluster.num_nodes > 1)
    list.push_back(p.cluster.scale_out.name + ": " + p.cluster.scale_out.source);
  if (d.comm_sms > 0)
    list.push_back(concat("computation has ", d.sms - d.comm_sms, " of ", d.sms,
                          " multiprocessors, in chunks that run alone as well"));
  list.push_back(concat("routed rows of the fullest rank over their mean: ", p.row_imbalance));
  for (const std::string& line : communication_lines(p)) list.push_back(line);
  list.push_back(
      "a rate of another shape: linear in the logarithm of the first dimension between "
      "rows that agree in the others, else of the nearest row (configs/rates)");
  return list;
}

Rows basis_rows(const Basis& basis) {
  Rows rows = {{"operation", "shape", "rate", "uses at this shape", "at others", "source"}};
  for (const auto& [row, use] : basis.uses())
    rows.push_back({row->op, shape_text(row->shape), rate_text(*row), concat(use.exact),
                    concat(use.carried), row->source});
  std::sort(rows.begin() + 1, rows.end());
  return rows;
}

std::string train_text(const TrainPlan& p, const TrainResult& r) {
  const ChunkCosts costs(p);
  std::string text = headline(p) + "\n";
  text += concat("layers of each stage: ", stages_text(r.stages), "\n\n");
  text += align(step_rows(r), "") + "\n" + align(summary_rows(p, r), "") + "\n";
  text += "one MoE layer:\n" + align(layer_rows(costs.layer(true)), "") + "\n";
  text += "memory:\n" + align(memory_rows(r.memory), "") + "\n";
  for (const std::string& line : assumptions_of(p)) text += "- " + line + "\n";
  text += concat("- rests on ", r.basis.uses().size(),
                 " rows of rates; --json and --report list them\n");
  return text;
}

io::Json train_json(const TrainPlan& p, const TrainResult& r) {
  const auto parts = [](const StepParts& s) {
    return io::Json{{"1F", s.forward},
                    {"1B", s.backward},
                    {"1W", s.weight},
                    {"1F1B", s.overlapped},
                    {"bubble", s.bubble}};
  };
  io::Json ranks = io::Json::array(), stages = io::Json::array(), basis = io::Json::array();
  for (size_t i = 0; i < r.ranks.size(); ++i) {
    io::Json memory;
    for (const auto& [name, bytes] : memory_classes(r.memory[i])) memory[name] = bytes;
    ranks.push_back({{"seconds", parts(r.ranks[i])},
                     {"memory", memory},
                     {"memory_bytes", r.memory[i].device()}});
  }
  for (const StageRange& s : r.stages)
    stages.push_back({{"first_layer", s.first_layer},
                      {"layers", s.num_layers},
                      {"mtp", s.num_mtp},
                      {"head", s.has_head}});
  for (const auto& [row, use] : r.basis.uses())
    basis.push_back({{"op", row->op},
                     {"shape", row->shape},
                     {"rate", row->rate},
                     {"unit", concat(work_unit(row->op), "/s")},
                     {"exact", use.exact},
                     {"carried", use.carried},
                     {"source", row->source}});
  return {{"name", p.name},
          {"devices", p.cluster.num_devices()},
          {"mesh", {{"pp", p.mesh.pp}, {"dp", p.mesh.dp}, {"ep", p.mesh.ep}, {"tp", p.mesh.tp}}},
          {"schedule", schedule_name(p.schedule)},
          {"microbatches", p.num_microbatches()},
          {"stages", stages},
          {"step_seconds", r.step_seconds},
          {"optimizer_seconds", r.optimizer_seconds},
          {"parts", parts(r.mean)},
          {"bubble_share", r.bubble_share},
          {"tokens_per_day", r.tokens_per_day},
          {"tokens_per_second_per_device", r.tokens_per_second_per_device},
          {"tflops_causal", r.tflops_causal},
          {"tflops_noncausal", r.tflops_noncausal},
          {"mfu_causal", r.mfu_causal},
          {"mfu_noncausal", r.mfu_noncausal},
          {"gflop_per_token_causal", r.flops_per_token_causal / 1e9},
          {"gflop_per_token_noncausal", r.flops_per_token_noncausal / 1e9},
          {"fits", r.fits},
          {"memory_bytes", r.largest_memory},
          {"memory_limit_bytes", r.memory_limit},
          {"host_bytes_per_node", r.host_bytes_per_node},
          {"days", r.total_days},
          {"device_hours", r.device_hours},
          {"dollars", r.dollars},
          {"ranks", ranks},
          {"assumptions", assumptions_of(p)},
          {"basis", basis}};
}

std::string train_html(const TrainPlan& p, const TrainResult& r) {
  const ChunkCosts costs(p);
  Html page(p.name);
  page.paragraph(headline(p));
  page.paragraph("Layers of each stage: " + stages_text(r.stages));
  page.heading("One step");
  page.table(step_rows(r));
  page.table(summary_rows(p, r));
  page.heading("Time line");
  // Milliseconds, at a scale that shows single chunks.
  Timeline ms = r.timeline;
  for (auto& rank : ms.spans)
    for (Span& s : rank) s = {.start = s.start * 1e3, .finish = s.finish * 1e3};
  ms.makespan *= 1e3;
  const double chunk = 1e3 * costs.forward(r.schedule.num_stages / 2);
  page.picture(draw_timeline(r.schedule, ms,
                             {.title = "Steps of each pipeline rank",
                              .unit = "milliseconds",
                              .pixels_per_unit = 12.0 / chunk}),
               "Micro-batch numbers in the cells; scroll sideways. Hover for times.");
  page.heading("Parts of one MoE layer");
  page.table(layer_rows(costs.layer(true)));
  page.heading("Memory");
  page.picture(memory_bars(p, r), "Largest sum over the step, by class of tensor");
  page.table(memory_rows(r.memory));
  page.heading("Assumptions");
  page.list(assumptions_of(p));
  page.heading("Rates that this rests on");
  page.table(basis_rows(r.basis), 6);
  return page.page();
}

}  // namespace hadal::plan
