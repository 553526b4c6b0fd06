// Guard: which steps may change the weights.
//
// A step whose loss or gradient norm is not finite, or lies `spike_sigma` standard deviations above
// its mean over the last `window` good steps, is skipped: its data is consumed, the weights stay.
// After `max_skips` of them in a row the run goes back to the checkpoint before the first, and on
// with the data after the last. Losses and norms are compared by their logarithms: they differ by
// factors, and a young model's norms go up threefold again and again, which clipping takes care of.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>

#include "io/json.h"

namespace hadal::train {

struct GuardConfig {
  bool enabled = false;      // off: a gradient norm that is not finite ends the run
  double spike_sigma = 6.0;  // 0: only what is not finite counts
  int64_t window = 128;      // good steps remembered; a spike needs a quarter of them
  int64_t max_skips = 3;     // in a row; the next bad step rolls back
  int64_t max_rollbacks = 3;
};

enum class Verdict : uint8_t { kGood, kSkip, kRollBack };

class Guard {
 public:
  explicit Guard(const GuardConfig& config) : config_(config) {}

  // Of `step`, whose gradients are known and not yet used. Remembers what it saw.
  Verdict judge(int64_t step, double loss, double grad_norm);
  // The step before the first bad one of the present streak: a checkpoint up to it is sound.
  int64_t last_good_step() const { return first_bad_step_ - 1; }
  // After the state of a checkpoint was loaded to go back to: counts it; an Error once there were
  // max_rollbacks.
  void rolled_back(int64_t num_rollbacks_before);
  int64_t num_skipped() const { return skipped_; }
  int64_t num_rollbacks() const { return rollbacks_; }

  io::Json state() const;
  void restore(const io::JsonObject& state);

 private:
  bool is_spike(const std::deque<double>& seen, double value) const;

  GuardConfig config_;
  std::deque<double> losses_, norms_;  // of good steps, at most `window`
  int64_t streak_ = 0, first_bad_step_ = 0;
  int64_t skipped_ = 0, rollbacks_ = 0;  // of the whole run
};

}  // namespace hadal::train
