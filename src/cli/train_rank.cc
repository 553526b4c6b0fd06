// TrainRank: as the run's config says.
// SPDX-License-Identifier: Apache-2.0
#include "cli/train_rank.h"

#include <algorithm>

namespace hadal::cli {
namespace {

bool on_gpus(const train::RunConfig& run, const World* world) {
  return world != nullptr && run.train.device == "cuda";
}

std::unique_ptr<NcclWorld> world_of_gpus(const train::RunConfig& run, World* world, Context& ctx) {
  if (!on_gpus(run, world)) return nullptr;
  return std::make_unique<NcclWorld>(*world, ctx,
                                     NcclOptions{.line_ctas = std::max(1, run.parallel.link_sms)});
}

}  // namespace

TrainRank::TrainRank(const train::RunConfig& run, World* world)
    : machine_(threads_of_rank(static_cast<int>(run.train.threads),
                               world == nullptr ? 1 : world->num_local()),
               on_gpus(run, world) ? gpu_of_rank(*world)
                                   : parse_device(run.train.device, "train.device")),
      ctx_(machine_.context()),
      gpus_(world_of_gpus(run, world, ctx_)),
      team_(run.parallel, run.model, world, gpus_.get()) {}

}  // namespace hadal::cli
