// TrainRank: as the run's config says.
// SPDX-License-Identifier: Apache-2.0
#include "cli/train_rank.h"

#include <algorithm>

namespace hadal::cli {
namespace {

bool on_gpus(const train::RunConfig& run, const World* world) {
  return world != nullptr && run.train.device == "cuda";
}

}  // namespace

TrainRank::TrainRank(const train::RunConfig& run, World* world)
    : machine_(threads_of_rank(static_cast<int>(run.train.threads),
                               world == nullptr ? 1 : world->num_local()),
               on_gpus(run, world) ? gpu_of_rank(*world)
                                   : parse_device(run.train.device, "train.device")),
      ctx_(machine_.context()) {
  if (on_gpus(run, world))
    gpus_ = std::make_unique<NcclWorld>(
        *world, ctx_, NcclOptions{.line_ctas = std::max(1, run.parallel.link_sms)});
  if (world != nullptr) team_ = std::make_unique<Team>(run.parallel, run.model, world, gpus_.get());
}

}  // namespace hadal::cli
