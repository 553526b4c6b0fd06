// GradientSums: layers as they come, and what is left.
// SPDX-License-Identifier: Apache-2.0
#include "train/gradient_sums.h"

#include "core/env.h"

namespace hadal::train {

// NOTE: the planted fault "expert_group" is one of the end, so there all sums are.
GradientSums::GradientSums(Context& ctx, const Config& config, Team& team, ParamStore& grads)
    : ctx_(ctx),
      team_(team),
      grads_(grads),
      runs_(config, grads),
      starts_layers_(team.parallel().overlap && team.dense().size() > 1 &&
                     env::sabotage() != "expert_group") {}

int GradientSums::num_sms() const {
  return starts_layers_ && team_.sums_side() != nullptr ? team_.num_sums_sms() : 0;
}

void GradientSums::start(int64_t layer) {
  SideStream* const side = team_.sums_side();
  Context beside = side != nullptr ? side->fork(ctx_) : ctx_;
  for (const LayerRun& run : runs_.of(layer)) reduce(beside, run);
}

void GradientSums::finish_layers() {
  if (SideStream* const side = team_.sums_side(); side != nullptr) side->mark(ready_);
  finish();
}

void GradientSums::reduce(Context& ctx, const LayerRun& run) {
  Comm& group = team_.summing(run.region);
  group.reduce_scatter_v(ctx, grads_.slice(run.range), runs_.counts(run, group.size()),
                         grads_.slice(runs_.own(run)));
}

void GradientSums::start_rest(Layers layers) {
  SideStream* const side = team_.end_side();
  Context beside = side != nullptr ? side->fork(ctx_) : ctx_;
  if (team_.embed() != nullptr) team_.embed()->all_reduce(beside, grads_.tree.embed);
  if (env::sabotage() == "expert_group")
    team_.expert().all_reduce(beside, grads_.slice(grads_.region(ParamStore::Region::kExperts)));
  for (const LayerRun& run : layers == Layers::kDone ? runs_.rest() : runs_.regions())
    reduce(beside, run);
  if (side != nullptr) side->mark(ready_);
}

void GradientSums::finish() {
  if (SideStream* const side = team_.end_side(); side != nullptr) side->join(ctx_, ready_);
}

}  // namespace hadal::train
