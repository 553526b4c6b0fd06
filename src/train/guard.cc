// Guard: means and deviations over the last good steps.
// SPDX-License-Identifier: Apache-2.0
#include "train/guard.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace hadal::train {
namespace {

constexpr double kLeastDeviation = 0.01;  // of the mean: steps that are all alike are no yardstick

}  // namespace

bool Guard::is_spike(const std::deque<double>& seen, double value) const {
  const auto count = static_cast<double>(seen.size());
  if (config_.spike_sigma == 0.0 || 4 * static_cast<int64_t>(seen.size()) < config_.window)
    return false;
  double sum = 0.0, squares = 0.0;
  for (double x : seen) sum += x;
  const double mean = sum / count;
  for (double x : seen) squares += (x - mean) * (x - mean);
  const double deviation = std::max(std::sqrt(squares / count), kLeastDeviation * std::abs(mean));
  return value > mean + config_.spike_sigma * deviation;
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
