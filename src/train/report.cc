// The report: reading the run's files and thinning the curves.
// SPDX-License-Identifier: Apache-2.0
#include "train/report.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/check.h"
#include "io/atomic.h"
#include "train/report_page.h"

namespace hadal::train {
namespace {

constexpr int64_t kMaxPoints = 600;   // of a curve
constexpr int64_t kMaxColumns = 120;  // of the heat maps
constexpr const char* kDataMark = "/*DATA*/";

struct Lines {
  std::vector<io::Json> steps, evaluations, events;
};

Lines read_lines(const std::string& path) {
  const std::string text = io::read_file(path, std::numeric_limits<size_t>::max());
  Lines lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    io::Json line = io::Json::parse(text.substr(begin, end - begin), nullptr, false);
    begin = end + 1;
    if (!line.is_object()) continue;
    if (line.contains("loss"))
      lines.steps.push_back(std::move(line));
    else if (line.contains("held_out_loss"))
      lines.evaluations.push_back(std::move(line));
    else if (line.contains("event"))
      lines.events.push_back(std::move(line));
  }
  return lines;
}

// [first, last) of bucket `i` when n things are put into at most `buckets`.
struct Range {
  size_t first, last;
};
Range bucket(size_t i, size_t n, size_t buckets) {
  return {i * n / buckets, (i + 1) * n / buckets};
}

double number_at(const io::Json& line, const char* key) {
  return line.contains(key) && line[key].is_number() ? line[key].get<double>() : 0.0;
}

// Means of `value` over buckets of steps: [[step, value], ...], the step being the bucket's last.
template <class Value>
io::Json curve(const std::vector<io::Json>& lines, size_t max_points, const Value& value) {
  io::Json points = io::Json::array();
  const size_t buckets = std::min(max_points, lines.size());
  for (size_t i = 0; i < buckets; ++i) {
    const Range range = bucket(i, lines.size(), buckets);
    double sum = 0.0;
    for (size_t j = range.first; j < range.last; ++j) sum += value(lines[j]);
    points.push_back(
        {lines[range.last - 1]["step"], sum / static_cast<double>(range.last - range.first)});
  }
  return points;
}

io::Json curve_of(const std::vector<io::Json>& lines, size_t max_points, const char* key) {
  return curve(lines, max_points, [&](const io::Json& line) { return number_at(line, key); });
}

// One curve for each MTP depth.
io::Json mtp_curves(const std::vector<io::Json>& lines, size_t max_points, const char* key) {
  io::Json curves = io::Json::array();
  const size_t depths = lines.empty() ? 0 : lines.back()[key].size();
  for (size_t k = 0; k < depths; ++k)
    curves.push_back(curve(lines, max_points, [&](const io::Json& line) {
      return line[key].size() > k ? line[key][k].get<double>() : 0.0;
    }));
  return curves;
}

// Load of each expert over the mean of its layer, summed over buckets of steps:
//   maxvio [M][columns]   load [M][E] over the last tenth of the run   steps [columns]
io::Json load_of(const std::vector<io::Json>& steps) {
  io::Json load = {
      {"steps", io::Json::array()}, {"maxvio", io::Json::array()}, {"load", io::Json::array()}};
  if (steps.empty()) return load;
  const size_t layers = steps.back()["expert_counts"].size();
  const size_t columns = std::min<size_t>(kMaxColumns, steps.size());
  const auto counts_over = [&](size_t layer, Range range) {
    std::vector<double> sum(steps.back()["expert_counts"][layer].size());
    for (size_t j = range.first; j < range.last; ++j)
      for (size_t e = 0; e < sum.size(); ++e)
        sum[e] += steps[j]["expert_counts"][layer][e].get<double>();
    double mean = 0.0;
    for (double x : sum) mean += x / static_cast<double>(sum.size());
    for (double& x : sum) x = mean > 0.0 ? x / mean : 0.0;
    return sum;
  };
  for (size_t c = 0; c < columns; ++c)
    load["steps"].push_back(steps[bucket(c, steps.size(), columns).last - 1]["step"]);
  for (size_t layer = 0; layer < layers; ++layer) {
    io::Json row = io::Json::array();
    for (size_t c = 0; c < columns; ++c) {
      const std::vector<double> x = counts_over(layer, bucket(c, steps.size(), columns));
      row.push_back(x.empty() ? 0.0 : *std::max_element(x.begin(), x.end()) - 1.0);
    }
    load["maxvio"].push_back(std::move(row));
    load["load"].push_back(
        counts_over(layer, {steps.size() - std::max<size_t>(1, steps.size() / 10), steps.size()}));
  }
  return load;
}

// Sum of the seconds of all processes of the run: where the clock goes back, a new one began.
double total_seconds(const std::vector<io::Json>& steps) {
  double total = 0.0, before = 0.0;
  for (const io::Json& line : steps) {
    const double now = line.contains("time") ? number_at(line["time"], "seconds") : 0.0;
    total += now >= before ? now - before : now;
    before = now;
  }
  return total;
}

}  // namespace

io::Json report_data(const std::string& output, int64_t max_points) {
  const Lines lines = read_lines(output + "/metrics.jsonl");
  const auto points = static_cast<size_t>(max_points);
  const auto& steps = lines.steps;
  io::Json data;
  data["run"] = io::read_json(output + "/run.json");
  data["output"] = output;
  data["loss"] = curve_of(steps, points, "loss");
  data["mtp"] = mtp_curves(steps, points, "mtp_loss");
  data["bits"] = curve_of(steps, points, "bits_per_byte");
  data["lr"] = curve_of(steps, points, "lr");
  data["norm"] = curve_of(steps, points, "grad_norm");
  data["sequences"] = curve_of(steps, points, "sequences");
  data["maxvio"] = curve_of(steps, points, "max_violation");
  data["speed"] = curve(steps, points, [](const io::Json& line) {
    return line.contains("time") ? number_at(line["time"], "tokens_per_second") : 0.0;
  });
  data["held_out"] = curve_of(lines.evaluations, points, "held_out_loss");
  data["held_out_bits"] = curve_of(lines.evaluations, points, "held_out_bits_per_byte");
  data["held_out_mtp"] = mtp_curves(lines.evaluations, points, "held_out_mtp_loss");
  data["experts"] = load_of(steps);
  data["events"] = lines.events;
  data["skipped"] = std::count_if(steps.begin(), steps.end(),
                                  [](const io::Json& line) { return line.contains("skipped"); });
  data["seconds"] = total_seconds(steps);
  data["tokens"] = steps.empty() ? 0.0 : number_at(steps.back(), "total_tokens");
  return data;
}

void write_report(const std::string& output) {
  std::string page = report_page();
  // "</" would end the script that the data stands in.
  std::string data = report_data(output, kMaxPoints).dump();
  for (size_t at = data.find("</"); at != std::string::npos; at = data.find("</", at + 3))
    data.replace(at, 2, "<\\/");
  const size_t mark = page.find(kDataMark);
  if (mark == std::string::npos) HADAL_UNREACHABLE("the report page has no place for data");
  page.replace(mark, std::string(kDataMark).size(), data);
  io::write_file_atomic(output + "/report.html", page);
}

}  // namespace hadal::train
