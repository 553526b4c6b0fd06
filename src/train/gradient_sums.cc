// GradientSums: runs of layers, and what is between them.
// SPDX-License-Identifier: Apache-2.0
#include "train/gradient_sums.h"

#include <algorithm>
#include <utility>

#include "core/env.h"

namespace hadal::train {
namespace {

size_t index(ParamStore::Region region) { return static_cast<size_t>(region); }

}  // namespace

// NOTE: the planted fault "expert_group" is one of the end, so there all sums are.
GradientSums::GradientSums(Context& ctx, Team& team, ParamStore& grads)
    : ctx_(ctx),
      team_(team),
      grads_(grads),
      starts_layers_(team.parallel().overlap && team.dense().size() > 1 &&
                     env::sabotage() != "expert_group") {}

int GradientSums::num_sms() const {
  return starts_layers_ && team_.sums_side() != nullptr ? team_.num_sums_sms() : 0;
}

void GradientSums::start(int64_t layer) {
  if (!starts_layers_) return;
  SideStream* const side = team_.sums_side();
  Context beside = side != nullptr ? side->fork(ctx_) : ctx_;
  const std::pair<Region, ParamGroup> runs[] = {{Region::kExperts, ParamGroup::kExperts},
                                                {Region::kSplit, ParamGroup::kSplit},
                                                {Region::kDense, ParamGroup::kMatrices}};
  for (const auto& [region, group] : runs) {
    const FlatRange run = grads_.layer_run(group, layer);
    if (run.count == 0) continue;
    reduce(beside, region, run);
    started_[index(region)].push_back(run);
  }
}

// Rank r's part of the range is where it crosses the r-th share.
void GradientSums::reduce(Context& ctx, Region region, const FlatRange& range) {
  Comm& group = team_.summing(region);
  const int64_t first = grads_.region(region).begin, share = grads_.share(region).count;
  std::vector<int64_t> counts;
  for (int64_t r = 0; r < group.size(); ++r)
    counts.push_back(intersect(range, {.begin = first + r * share, .count = share}).count);
  const FlatRange mine = intersect(range, grads_.share(region));
  group.reduce_scatter_v(ctx, grads_.slice(range), counts,
                         grads_.slice(mine.count > 0 ? mine : FlatRange{.begin = range.begin}));
}

void GradientSums::join() {
  if (SideStream* const side = team_.sums_side(); side != nullptr) {
    Event mark = side->mark();
    side->join(ctx_, mark);
  }
}

void GradientSums::give_up() {
  join();
  for (std::vector<FlatRange>& runs : started_) runs.clear();
}

void GradientSums::finish() {
  join();
  if (team_.embed() != nullptr) team_.embed()->all_reduce(ctx_, grads_.tree.embed);
  if (env::sabotage() == "expert_group")
    team_.expert().all_reduce(ctx_, grads_.slice(grads_.region(Region::kExperts)));
  for (const Region region : ParamStore::kRegions) {
    std::vector<FlatRange> runs = std::exchange(started_[index(region)], {});
    std::sort(runs.begin(), runs.end(),
              [](const FlatRange& a, const FlatRange& b) { return a.begin < b.begin; });
    const FlatRange all = grads_.region(region);
    runs.push_back({.begin = all.end(), .count = 0});
    int64_t at = all.begin;
    for (const FlatRange& run : runs) {
      if (run.begin > at) reduce(ctx_, region, {.begin = at, .count = run.begin - at});
      at = run.end();
    }
  }
}

}  // namespace hadal::train
