// Stages: the smallest limit that all layers fit under, found by trying each.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/stages.h"

#include <algorithm>

#include "core/check.h"

namespace hadal {
namespace {

// Layers of each stage if none may cost more than `limit`; empty if they do not fit.
std::vector<int64_t> fill(const Config& c, int num_stages, double limit, double last_extra) {
  std::vector<int64_t> layers;
  int64_t left = c.num_hidden_layers;
  for (int s = 0; s < num_stages; ++s) {
    const bool last = s + 1 == num_stages;
    const double room = limit - (last ? last_extra : 0.0);
    const int64_t needed_later = num_stages - 1 - s;
    int64_t n = std::min(static_cast<int64_t>(room + 1e-9), left - needed_later);
    if (n < 1) return {};
    layers.push_back(n);
    left -= n;
  }
  return left == 0 ? layers : std::vector<int64_t>{};
}

}  // namespace

std::vector<StageRange> split_stages(const Config& c, int num_stages, StageCosts costs) {
  HADAL_CHECK(num_stages >= 1 && num_stages <= c.num_hidden_layers, "there are ", num_stages,
              " stages for ", c.num_hidden_layers, " layers; lower pp");
  const double mtp = static_cast<double>(c.num_nextn_predict_layers);
  const double last_extra = mtp + (1.0 + mtp) * costs.head_cost;
  std::vector<double> limits;
  for (int64_t n = 1; n <= c.num_hidden_layers; ++n) {
    limits.push_back(static_cast<double>(n));
    limits.push_back(static_cast<double>(n) + last_extra);
  }
  std::sort(limits.begin(), limits.end());
  for (const double limit : limits) {
    const std::vector<int64_t> layers = fill(c, num_stages, limit, last_extra);
    if (layers.empty()) continue;
    std::vector<StageRange> stages;
    int64_t first = 0;
    for (const int64_t n : layers) {
      stages.push_back({.first_layer = first, .num_layers = n});
      first += n;
    }
    stages.front().has_embed = true;
    stages.back().has_head = true;
    stages.back().num_mtp = c.num_nextn_predict_layers;
    return stages;
  }
  HADAL_UNREACHABLE("all layers in one stage always fit");
}

}  // namespace hadal
