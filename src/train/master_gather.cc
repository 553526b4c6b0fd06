// MasterGather: what is of no layer first, then the layers in the order of a forward.
// SPDX-License-Identifier: Apache-2.0
#include "train/master_gather.h"

#include <utility>

#include "ops/copy.h"

namespace hadal::train {
namespace {

std::vector<LayerRun> all_runs(const LayerRuns& runs) {
  std::vector<LayerRun> all;
  for (int64_t layer = 0; layer < runs.num_layers(); ++layer)
    all.insert(all.end(), runs.of(layer).begin(), runs.of(layer).end());
  return all;
}

}  // namespace

MasterGather::MasterGather(Context& ctx, const Config& config, Team& team, const Stores& stores)
    : ctx_(ctx),
      team_(team),
      stores_(stores),
      runs_(config, stores.masters),
      rest_(runs_.without(all_runs(runs_))),
      by_layers_(team.parallel().overlap && team.dense().size() > 1 && !team.goes_one_by_one()),
      ready_(static_cast<size_t>(runs_.num_layers())) {}

void MasterGather::updated(ParamStore::Region region) {
  if (by_layers_) return;
  SideStream* const side = team_.end_side();
  Context beside = side != nullptr ? side->fork(ctx_) : ctx_;
  for (const LayerRun& run : runs_.without({}))
    if (run.region == region) gather(beside, run);
  if (side != nullptr) side->mark(regions_ready_);
}

void MasterGather::start() {
  if (!by_layers_) {
    if (SideStream* const side = team_.end_side(); side != nullptr)
      side->join(ctx_, regions_ready_);
    return make_copies();
  }
  SideStream* const side = team_.sums_side();
  Context beside = side != nullptr ? side->fork(ctx_) : ctx_;
  const auto mark = [&] { return side != nullptr ? side->mark() : Event(); };
  is_under_way_ = true;
  for (const LayerRun& run : rest_) gather(beside, run);
  for (const LayerRun& run : rest_) copy(beside, run);
  rest_ready_ = mark();
  for (int64_t layer = 0; layer < runs_.num_layers(); ++layer) {
    if (runs_.of(layer).empty()) continue;
    for (const LayerRun& run : runs_.of(layer)) gather(beside, run);
    for (const LayerRun& run : runs_.of(layer)) copy(beside, run);
    if (stores_.fp8 != nullptr) stores_.fp8->quantise_layer(beside, stores_.masters.tree, layer);
    ready_[static_cast<size_t>(layer)] = mark();
  }
}

void MasterGather::await(int64_t layer) {
  if (SideStream* const side = team_.sums_side(); side != nullptr)
    side->join(ctx_, ready_[static_cast<size_t>(layer)]);
}

void MasterGather::await_rest() {
  if (SideStream* const side = team_.sums_side(); side != nullptr) side->join(ctx_, rest_ready_);
}

void MasterGather::finish() {
  if (!std::exchange(is_under_way_, false)) return;
  await_rest();
  for (int64_t layer = 0; layer < runs_.num_layers(); ++layer) await(layer);
}

void MasterGather::make_copies() {
  finish();
  if (stores_.copies != nullptr)
    ops::cast(ctx_, stores_.masters.matrices(), stores_.copies->matrices());
  if (stores_.fp8 != nullptr) stores_.fp8->quantise(ctx_, stores_.masters.tree);
}

void MasterGather::gather(Context& ctx, const LayerRun& run) {
  Comm& group = team_.summing(run.region);
  ParamStore& masters = stores_.masters;
  group.all_gather_v(ctx, masters.slice(runs_.own(run)), runs_.counts(run, group.size()),
                     masters.slice(run.range));
}

// What of the run has a copy.
void MasterGather::copy(Context& ctx, const LayerRun& run) {
  if (stores_.copies == nullptr) return;
  const FlatRange matrices{.begin = 0, .count = stores_.masters.matrices().num_elements()};
  const FlatRange part = intersect(run.range, matrices);
  if (part.count > 0) ops::cast(ctx, stores_.masters.slice(part), stores_.copies->slice(part));
}

}  // namespace hadal::train
