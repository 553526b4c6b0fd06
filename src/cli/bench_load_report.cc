// Answers of a load as a row of JSON and as a picture.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "cli/bench.h"
#include "cli/bench_load.h"
#include "core/check.h"
#include "io/atomic.h"
#include "plan/svg.h"

namespace hadal::cli {
namespace {

using nlohmann::json;
using server::LoadResult;
using server::StreamResult;

struct Series {
  const char* name;
  std::vector<double> values;  // milliseconds, in ascending order
};

// Of the requests that were answered whole.
std::array<Series, 4> series_of(const LoadResult& result) {
  std::array<Series, 4> s = {{{"ttft", {}}, {"tpot", {}}, {"itl", {}}, {"e2e", {}}}};
  for (const StreamResult& r : result.streams) {
    if (!r.error.empty()) continue;
    s[3].values.push_back(1e3 * (r.end - r.begin));
    if (r.parts.empty()) continue;
    s[0].values.push_back(1e3 * (r.parts.front() - r.begin));
    if (r.num_tokens > 1)
      s[1].values.push_back(1e3 * (r.parts.back() - r.parts.front()) /
                            static_cast<double>(r.num_tokens - 1));
    for (size_t i = 1; i < r.parts.size(); ++i)
      s[2].values.push_back(1e3 * (r.parts[i] - r.parts[i - 1]));
  }
  for (Series& one : s) std::sort(one.values.begin(), one.values.end());
  return s;
}

// Value at a quantile of a sorted list that is not empty.
double at(const std::vector<double>& sorted, double q) {
  const double where = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(where);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (where - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

constexpr double kWidth = 680, kHeight = 260, kLeft = 60, kRight = 60;

// 1, 2 or 5 times a power of ten, so that about `count` steps cover `range`.
double nice_step(double range, double count) {
  const double power = std::pow(10.0, std::floor(std::log10(range / count)));
  for (double m : {1.0, 2.0, 5.0})
    if (range / (m * power) <= count) return m * power;
  return 10.0 * power;
}

// One curve of shares for each series, over the logarithm of the time.
void draw_distributions(const std::array<Series, 4>& series, double top, plan::Svg& svg) {
  double low = 1e300, high = 0.0;
  for (const Series& s : series)
    if (!s.values.empty()) {
      low = std::min(low, std::max(s.values.front(), 1e-2));
      high = std::max(high, s.values.back());
    }
  low = std::pow(10.0, std::floor(std::log10(low)));
  high = std::pow(10.0, std::ceil(std::log10(std::max(high, low * 1.01))));
  const double width = kWidth - kLeft - kRight, height = kHeight - 60;
  const auto x = [&](double v) {
    return kLeft + width * std::log(std::max(v, low) / low) / std::log(high / low);
  };
  const auto y = [&](double q) { return top + 25 + height * (1.0 - q); };
  svg.text(kLeft, top + 12, "share of requests or gaps that took at most this long");
  for (double q : {0.0, 0.5, 0.9, 1.0}) {
    svg.line(kLeft, y(q), kWidth - kRight, y(q), "grid");
    svg.text(kLeft - 6, y(q) + 4, fmt::format("{:.0f}%", 100 * q), "end", "small");
  }
  for (double v = low; v <= high * 1.001; v *= 10) {
    svg.line(x(v), y(0), x(v), y(1), "grid");
    svg.text(x(v), y(0) + 14, fmt::format("{:g} ms", v), "middle", "small");
  }
  for (size_t i = 0; i < series.size(); ++i) {
    const std::string line = fmt::format("line{}", i);
    const std::vector<double>& v = series[i].values;
    for (int p = 1; p <= 100 && !v.empty(); ++p)
      svg.line(x(at(v, (p - 1) / 100.0)), y((p - 1) / 100.0), x(at(v, p / 100.0)), y(p / 100.0),
               line);
    const double legend = top + 40 + 18.0 * static_cast<double>(i);
    svg.line(kWidth - kRight + 6, legend - 4, kWidth - kRight + 22, legend - 4, line);
    svg.text(kWidth - kRight + 26, legend, series[i].name, "start", "small");
  }
}

// Tokens per second over the run; a request's tokens are spread evenly over its parts.
void draw_rate(const LoadResult& result, double top, plan::Svg& svg) {
  constexpr size_t kBins = 100;
  std::array<double, kBins> bins{};
  const double begin = result.streams.front().begin;
  const double width = std::max(result.seconds, 1e-9) / kBins;
  for (const StreamResult& r : result.streams)
    for (double t : r.parts) {
      const auto bin = static_cast<size_t>(std::max(0.0, (t - begin) / width));
      bins[std::min(bin, kBins - 1)] +=
          static_cast<double>(r.num_tokens) / static_cast<double>(r.parts.size()) / width;
    }
  const double highest = std::max(*std::max_element(bins.begin(), bins.end()), 1e-9);
  const double step = nice_step(highest, 5);
  const double most = step * std::ceil(highest / step);
  const double height = kHeight - 60, span = kWidth - kLeft - kRight;
  const auto x = [&](double seconds) { return kLeft + span * seconds / (width * kBins); };
  const auto y = [&](double rate) { return top + 25 + height * (1.0 - rate / most); };
  svg.text(kLeft, top + 12, "output tokens per second");
  for (double v = 0; v <= most * 1.001; v += step) {
    svg.line(kLeft, y(v), kWidth - kRight, y(v), "grid");
    svg.text(kLeft - 6, y(v) + 4, fmt::format("{:g}", v), "end", "small");
  }
  const double tick = nice_step(width * kBins, 8);
  for (double v = 0; v <= width * kBins * 1.001; v += tick)
    svg.text(x(v), y(0) + 14, fmt::format("{:g} s", v), "middle", "small");
  for (size_t i = 0; i < kBins; ++i)
    svg.rect(x(width * static_cast<double>(i)), y(bins[i]), span / kBins, y(0) - y(bins[i]), "w",
             fmt::format("{:.1f} tokens/s", bins[i]));
}

}  // namespace

json load_row(const LoadResult& result) {
  std::map<std::string, int64_t> errors;
  int64_t tokens = 0, prompt = 0, cached = 0, parts = 0, completed = 0;
  double latest = 0.0;
  for (const StreamResult& r : result.streams) {
    latest = std::max(latest, r.begin - r.due);
    if (!r.error.empty()) {
      ++errors[r.error];
      continue;
    }
    ++completed;
    tokens += r.num_tokens;
    prompt += r.num_prompt;
    cached += r.num_cached;
    parts += static_cast<int64_t>(r.parts.size());
  }
  const double seconds = std::max(result.seconds, 1e-9);
  json row = {{"seconds", result.seconds},
              {"completed", completed},
              {"failed", static_cast<int64_t>(result.streams.size()) - completed},
              {"errors", errors},
              {"most_open", result.most_open},
              {"prompt_tokens", prompt},
              {"cached_tokens", cached},
              {"output_tokens", tokens},
              {"parts", parts},
              {"requests_per_s", static_cast<double>(completed) / seconds},
              {"output_tokens_per_s", static_cast<double>(tokens) / seconds},
              {"parts_per_s", static_cast<double>(parts) / seconds},
              {"latest_start_s", latest}};
  for (const Series& s : series_of(result)) {
    if (s.values.empty()) continue;
    double sum = 0.0;
    for (double v : s.values) sum += v;
    json times = {{"mean", sum / static_cast<double>(s.values.size())}, {"max", s.values.back()}};
    for (double q : {0.5, 0.9, 0.99}) times[fmt::format("p{:.0f}", 100 * q)] = at(s.values, q);
    row[fmt::format("{}_ms", s.name)] = times;
  }
  return row;
}

void draw_load(const LoadResult& result, const std::string& title, const std::string& path) {
  const std::array<Series, 4> series = series_of(result);
  HADAL_CHECK(!series[3].values.empty(), "no request was answered: there is nothing to draw");
  plan::Svg svg(kWidth, 2 * kHeight + 30);
  svg.text(kLeft, 18, title, "start", "head");
  draw_distributions(series, 30, svg);
  draw_rate(result, 30 + kHeight, svg);
  io::write_file_atomic(path, svg.file("latencies and rate of a load on a server"));
}

}  // namespace hadal::cli
