// Counters, gauges and histograms of an engine: a snapshot that is copied out whole.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace hadal::serve {

// Seconds, in buckets of about a factor of two: 1 ms to 8 minutes.
class Histogram {
 public:
  static constexpr std::array<double, 20> kBounds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
                                                     0.2,   0.4,   0.8,   1.5,  3,    6,    12,
                                                     24,    48,    96,    192,  300,  480};
  void add(double seconds) {
    const auto at = std::lower_bound(kBounds.begin(), kBounds.end(), seconds) - kBounds.begin();
    ++counts_[static_cast<size_t>(at)];
    ++count_;
    sum_ += seconds;
  }
  // Of bucket i: values up to kBounds[i]; the last one holds the rest.
  const std::array<int64_t, kBounds.size() + 1>& counts() const { return counts_; }
  int64_t count() const { return count_; }
  double sum() const { return sum_; }

 private:
  std::array<int64_t, kBounds.size() + 1> counts_{};
  int64_t count_ = 0;
  double sum_ = 0.0;
};

struct EngineStats {
  int64_t num_running = 0, num_waiting = 0;
  int64_t num_pages = 0, num_pages_in_use = 0, num_pages_cached = 0;
  int64_t num_steps = 0, num_step_tokens = 0;
  int64_t prompt_tokens = 0, generated_tokens = 0;
  int64_t prefix_queries = 0, prefix_hits = 0;  // tokens of admitted prompts, and those found
  int64_t num_preemptions = 0, num_evictions = 0;
  int64_t num_drafted = 0, num_accepted = 0;
  int64_t num_submitted = 0, num_rejected = 0;  // refused because the queue was full
  std::array<int64_t, 4> num_finished{};        // by Finish
  Histogram queue, first_token, between_tokens, whole, prefill, decode;  // of requests
  double step_seconds = 0.0;                                             // spent in steps
  // Of the device, where steps overlap: in steps, and between two while there was work.
  double device_busy_seconds = 0.0, device_idle_seconds = 0.0;
};

}  // namespace hadal::serve
