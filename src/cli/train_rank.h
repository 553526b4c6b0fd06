// A rank of a training run: its machine, and its place in the mesh.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "cli/options.h"
#include "parallel/team.h"
#include "train/run_config.h"

namespace hadal::cli {

class TrainRank {
 public:
  // world: none where the rank is alone.
  TrainRank(const train::RunConfig& run, World* world);

  Context& context() { return ctx_; }
  Team& team() { return team_; }

 private:
  Machine machine_;
  Context ctx_;
  std::unique_ptr<NcclWorld> gpus_;  // where ranks have GPUs
  Team team_;
};

}  // namespace hadal::cli
