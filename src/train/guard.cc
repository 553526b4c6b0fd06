// Guard: means and deviations of logarithms over the last good steps.
// SPDX-License-Identifier: Apache-2.0
#include "train/guard.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "core/check.h"

namespace hadal::train {
namespace {

constexpr double kLeastDeviation = 0.01;  // steps that are all alike are no yardstick

}  // namespace

bool Guard::is_spike(const std::deque<double>& seen, double value) const {
  if (config_.spike_sigma == 0.0 || 4 * static_cast<int64_t>(seen.size()) < config_.window)
    return false;
  std::vector<double> logs;
  for (double x : seen)
    if (x > 0.0) logs.push_back(std::log(x));
  if (logs.empty()) return false;
  const auto count = static_cast<double>(logs.size());
  const double mean = std::accumulate(logs.begin(), logs.end(), 0.0) / count;
  double squares = 0.0;
  for (double x : logs) squares += (x - mean) * (x - mean);
  const double deviation = std::max(std::sqrt(squares / count), kLeastDeviation);
  return std::log(value) > mean + config_.spike_sigma * deviation;
}

Verdict Guard::judge(int64_t step, double loss, double grad_norm) {
  const bool finite = std::isfinite(loss) && std::isfinite(grad_norm);
  if (finite && !is_spike(losses_, loss) && !is_spike(norms_, grad_norm)) {
    streak_ = 0;
    for (auto [seen, value] : {std::pair{&losses_, loss}, std::pair{&norms_, grad_norm}}) {
      seen->push_back(value);
      if (static_cast<int64_t>(seen->size()) > config_.window) seen->pop_front();
    }
    return Verdict::kGood;
  }
  if (streak_++ == 0) first_bad_step_ = step;
  ++skipped_;
  return streak_ > config_.max_skips ? Verdict::kRollBack : Verdict::kSkip;
}

void Guard::rolled_back(int64_t num_rollbacks_before) {
  rollbacks_ = num_rollbacks_before + 1;
  streak_ = 0;
  HADAL_CHECK(rollbacks_ <= config_.max_rollbacks, "the loss spiked again after ",
              config_.max_rollbacks,
              " roll-backs; lower the learning rate, or raise train.guard.max_rollbacks");
}

io::Json Guard::state() const {
  return {{"losses", losses_},   {"norms", norms_},
          {"streak", streak_},   {"first_bad_step", first_bad_step_},
          {"skipped", skipped_}, {"rollbacks", rollbacks_}};
}

void Guard::restore(const io::JsonObject& state) {
  const std::vector<double> losses = state.numbers("losses"), norms = state.numbers("norms");
  losses_.assign(losses.begin(), losses.end());
  norms_.assign(norms.begin(), norms.end());
  streak_ = state.integer("streak");
  first_bad_step_ = state.integer("first_bad_step");
  skipped_ = state.integer("skipped");
  rollbacks_ = state.integer("rollbacks");
}

}  // namespace hadal::train
