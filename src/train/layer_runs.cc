// LayerRuns: three groups of the layout, of one region each.
// SPDX-License-Identifier: Apache-2.0
#include "train/layer_runs.h"

#include <algorithm>
#include <utility>

namespace hadal::train {

using Region = ParamStore::Region;

LayerRuns::LayerRuns(const Config& config, const ParamStore& store) : store_(store) {
  constexpr std::pair<Region, ParamGroup> kGroups[] = {{Region::kExperts, ParamGroup::kExperts},
                                                       {Region::kSplit, ParamGroup::kSplit},
                                                       {Region::kDense, ParamGroup::kMatrices}};
  of_layer_.resize(static_cast<size_t>(config.num_hidden_layers + config.num_nextn_predict_layers));
  for (int64_t layer = 0; layer < num_layers(); ++layer)
    for (const auto& [region, group] : kGroups) {
      const FlatRange run = store.layer_run(group, layer);
      if (run.count > 0)
        of_layer_[static_cast<size_t>(layer)].push_back({.region = region, .range = run});
    }
  rest_ = find_rest();
}

std::vector<LayerRun> LayerRuns::find_rest() const {
  std::vector<LayerRun> layers;
  for (const std::vector<LayerRun>& runs : of_layer_)
    layers.insert(layers.end(), runs.begin(), runs.end());
  std::sort(layers.begin(), layers.end(),
            [](const LayerRun& a, const LayerRun& b) { return a.range.begin < b.range.begin; });
  std::vector<LayerRun> left;
  for (const LayerRun& region : regions()) {
    int64_t at = region.range.begin;
    const auto add_until = [&](int64_t end) {
      if (end > at)
        left.push_back({.region = region.region, .range = {.begin = at, .count = end - at}});
    };
    for (const LayerRun& run : layers) {
      if (run.region != region.region) continue;
      add_until(run.range.begin);
      at = run.range.end();
    }
    add_until(region.range.end());
  }
  return left;
}

std::vector<LayerRun> LayerRuns::regions() const {
  std::vector<LayerRun> all;
  for (const Region region : ParamStore::kRegions)
    if (const FlatRange range = store_.region(region); range.count > 0)
      all.push_back({.region = region, .range = range});
  return all;
}

std::vector<int64_t> LayerRuns::counts(const LayerRun& run, int group_size) const {
  const int64_t first = store_.region(run.region).begin, share = store_.share(run.region).count;
  std::vector<int64_t> counts;
  for (int64_t r = 0; r < group_size; ++r)
    counts.push_back(intersect(run.range, {.begin = first + r * share, .count = share}).count);
  return counts;
}

FlatRange LayerRuns::own(const LayerRun& run) const {
  const FlatRange mine = intersect(run.range, store_.share(run.region));
  return mine.count > 0 ? mine : FlatRange{.begin = run.range.begin, .count = 0};
}

}  // namespace hadal::train
