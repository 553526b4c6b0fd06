// GradientSums: layers as they come, and what is left.
// SPDX-License-Identifier: Apache-2.0
#include "train/gradient_sums.h"

#include <utility>

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
  if (!starts_layers_) return;
  SideStream* const side = team_.sums_side();
  Context beside = side != nullptr ? side->fork(ctx_) : ctx_;
  for (const LayerRun& run : runs_.of(layer)) {
    reduce(beside, run);
    started_.push_back(run);
  }
}

void GradientSums::reduce(Context& ctx, const LayerRun& run) {
  Comm& group = team_.summing(run.region);
  group.reduce_scatter_v(ctx, grads_.slice(run.range), runs_.counts(run, group.size()),
                         grads_.slice(runs_.own(run)));
}

void GradientSums::join() {
  if (SideStream* const side = team_.sums_side(); side != nullptr) {
    Event mark = side->mark();
    side->join(ctx_, mark);
  }
}

void GradientSums::give_up() {
  join();
  started_.clear();
}

void GradientSums::finish() {
  join();
  if (team_.embed() != nullptr) team_.embed()->all_reduce(ctx_, grads_.tree.embed);
  if (env::sabotage() == "expert_group")
    team_.expert().all_reduce(ctx_, grads_.slice(grads_.region(ParamStore::Region::kExperts)));
  for (const LayerRun& run : runs_.without(std::exchange(started_, {}))) reduce(ctx_, run);
}

}  // namespace hadal::train
