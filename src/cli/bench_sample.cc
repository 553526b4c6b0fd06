// Samples between ceilings, and their rows.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <fstream>

#include "cli/bench.h"
#include "core/timer.h"
#include "ops/peak.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

constexpr int64_t kBufferBytes = int64_t{256} << 20;  // beyond any cache
constexpr int64_t kReadBytes = int64_t{32} << 20;     // of a thread in one sample
constexpr double kLoopSeconds =
    5e-3;  // at least, of one register loop: a thread takes 50 us to wake
constexpr int64_t kMostRounds = int64_t{1} << 24;

double process_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

double percent(double rate, double ceiling) { return std::round(1000.0 * rate / ceiling) / 10.0; }

}  // namespace

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

Ceilings::Ceilings(Context& ctx) : ctx_(ctx) {
  memory_ = ctx.memory.take_tensor(DType::kE4M3, {kBufferBytes}, &buffer_);
  std::memset(buffer_.raw(), 1, static_cast<size_t>(kBufferBytes));
  for (; fma_rounds_ < kMostRounds; fma_rounds_ *= 2)
    if (timed([this](int) { return ops::peak::fma_loop(fma_rounds_); }).wall > kLoopSeconds) break;
  for (; dot_rounds_ < kMostRounds; dot_rounds_ *= 2)
    if (timed([this](int) { return ops::peak::int_dot_loop(dot_rounds_); }).wall > kLoopSeconds)
      break;
}

Timed Ceilings::timed(const std::function<double(int)>& loop) {
  std::vector<double> work(static_cast<size_t>(ctx_.threads.num_threads()));
  const double cpu = process_seconds();
  const Timer timer;
  ctx_.threads.parallel_for(ctx_.threads.num_threads(), [&](int64_t task, int) {
    work[static_cast<size_t>(task)] = loop(static_cast<int>(task));
  });
  Timed t{.work = 0.0, .wall = timer.seconds(), .cpu = process_seconds() - cpu};
  for (double w : work) t.work += w;
  return t;
}

void Ceilings::measure() {
  fma_.push_back(timed([this](int) { return ops::peak::fma_loop(fma_rounds_); }));
  dot_.push_back(timed([this](int) { return ops::peak::int_dot_loop(dot_rounds_); }));
  const int64_t pieces = kBufferBytes / kReadBytes;
  const auto* from = static_cast<const std::byte*>(buffer_.raw());
  read_.push_back(timed([&](int thread) {
    return ops::peak::read_loop(from + (next_ + thread) % pieces * kReadBytes, kReadBytes);
  }));
  next_ += ctx_.threads.num_threads();
}

Ceilings::Rate Ceilings::rate(const std::vector<Timed>& samples) {
  std::vector<double> wall, cpu;
  for (const Timed& t : samples) {
    wall.push_back(t.work / t.wall);
    cpu.push_back(t.work / t.cpu);
  }
  return {quantile(wall, 0.5), quantile(cpu, 0.5)};
}

json Ceilings::to_json() const {
  return {{"gflop_per_s", flops().wall / 1e9},          {"int8_gop_per_s", int_ops().wall / 1e9},
          {"read_gb_per_s", bytes().wall / 1e9},        {"gflop_per_core_s", flops().cpu / 1e9},
          {"int8_gop_per_core_s", int_ops().cpu / 1e9}, {"read_gb_per_core_s", bytes().cpu / 1e9}};
}

Sampled sample(Context& ctx, int64_t count, const std::function<void()>& fn) {
  Ceilings ceilings(ctx);
  fn();
  Sampled s;
  for (int64_t i = 0; i < count; ++i) {
    ceilings.measure();
    const double cpu = process_seconds();
    const Timer timer;
    fn();
    s.wall.push_back(timer.seconds());
    s.cpu.push_back(process_seconds() - cpu);
  }
  s.ceilings = ceilings.to_json();
  s.flops = ceilings.flops();
  s.int_ops = ceilings.int_ops();
  s.bytes = ceilings.bytes();
  return s;
}

json Sampled::to_json(const Work& work) const {
  const double median = quantile(wall, 0.5), core = quantile(cpu, 0.5);
  const Ceilings::Rate& compute = work.is_int ? int_ops : flops;
  json row = {{"samples", wall.size()},
              {"seconds",
               {{"median", median},
                {"p10", quantile(wall, 0.1)},
                {"p90", quantile(wall, 0.9)},
                {"core_seconds", core}}},
              {"ceilings", ceilings}};
  if (work.flops > 0.0) {
    row[work.is_int ? "gop_per_s" : "gflop_per_s"] = work.flops / median / 1e9;
    row["percent_of_compute"] = percent(work.flops / median, compute.wall);
    row["percent_of_compute_core_time"] = percent(work.flops / core, compute.cpu);
  }
  if (work.bytes > 0.0) {
    row["gb_per_s"] = work.bytes / median / 1e9;
    row["percent_of_bandwidth"] = percent(work.bytes / median, bytes.wall);
    row["percent_of_bandwidth_core_time"] = percent(work.bytes / core, bytes.cpu);
  }
  return row;
}

const char* built_commit() { return HADAL_COMMIT; }

json machine_row(const Context& ctx, const std::string& command) {
  return {{"commit", built_commit()},
          {"cpu", processor_name()},
          {"isa", ops::peak::isa_name()},
          {"threads", ctx.threads.num_threads()},
          {"command", command}};
}

}  // namespace hadal::cli
