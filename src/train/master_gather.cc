// MasterGather: what is of no layer first, then the layers in the order of a forward.
// SPDX-License-Identifier: Apache-2.0
#include "train/master_gather.h"

#include <utility>

#include "ops/copy.h"

namespace hadal::train {

MasterGather::MasterGather(Context& ctx, const Config& config, Team& team, const Stores& stores)
    : ctx_(ctx),
      team_(team),
      stores_(stores),
      runs_(config, stores.masters),
      by_layers_(team.parallel().overlap && team.dense().size() > 1 &&
                 team.recordable() != Team::Recordable::kMicroBatch),
      ready_(static_cast<size_t>(runs_.num_layers())),
      awaited_(ready_.size()) {
  if (!by_layers_ || team.sums_side() == nullptr) return;
  for (int64_t layer = 0; layer < runs_.num_layers(); ++layer)
    if (!runs_.of(layer).empty())
      ready_[static_cast<size_t>(layer)] = device::make_mark(ctx.device);
  rest_ready_ = device::make_mark(ctx.device);
}

MasterGather::~MasterGather() {
  for (const Event event : ready_) device::destroy(ctx_.device, event);
  device::destroy(ctx_.device, rest_ready_);
}

void MasterGather::updated(ParamStore::Region region) {
  if (by_layers_) return;
  SideStream* const side = team_.end_side();
  Context beside = side != nullptr ? side->fork(ctx_) : ctx_;
  for (const LayerRun& run : runs_.regions())
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
  const auto mark = [&](const Event& ready) {
    if (side != nullptr) device::record(beside.device, beside.stream, ready);
  };
  is_under_way_ = true;
  for (const LayerRun& run : runs_.rest()) gather(beside, run);
  for (const LayerRun& run : runs_.rest()) copy(beside, run);
  mark(rest_ready_);
  for (int64_t layer = 0; layer < runs_.num_layers(); ++layer) {
    if (runs_.of(layer).empty()) continue;
    for (const LayerRun& run : runs_.of(layer)) gather(beside, run);
    for (const LayerRun& run : runs_.of(layer)) copy(beside, run);
    if (stores_.fp8 != nullptr) stores_.fp8->quantise_layer(beside, stores_.masters.tree, layer);
    mark(ready_[static_cast<size_t>(layer)]);
  }
}

void MasterGather::begin_step() {
  if (rest_ready_.handle != nullptr) device::await_outside(ctx_.device, ctx_.stream, rest_ready_);
  awaited_.assign(ready_.size(), false);
}

// NOTE: also where nothing is under way. The step may be recorded, and be launched when something
// is.
void MasterGather::await(int64_t layer) {
  const auto l = static_cast<size_t>(layer);
  if (awaited_[l] || ready_[l].handle == nullptr) return;
  awaited_[l] = true;
  device::await_outside(ctx_.device, ctx_.stream, ready_[l]);
}

void MasterGather::finish() {
  if (!std::exchange(is_under_way_, false)) return;
  begin_step();
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
