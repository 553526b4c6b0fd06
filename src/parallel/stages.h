// Stages: which layers each stage of a pipeline holds.
//
// Layers stand in order; the embedding is in the first stage, the head and the MTP modules in the
// last. A stage with less to do for its layers gets more of them, so that the slowest stage is as
// fast as it can be. Pure.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"

namespace hadal {

struct StageRange {
  int64_t first_layer = 0, num_layers = 0;  // of the main model
  int64_t num_mtp = 0;
  bool has_embed = false, has_head = false;
};

// Cost of a stage: its layers and MTP modules, 1 each, and head_cost for every use of the head (the
// main model's and each MTP module's).
struct StageCosts {
  double head_cost = 0.0;
};

// Fills stages from the first with as many layers as the cheapest possible slowest stage allows.
// REQUIRES: 1 <= num_stages <= num_hidden_layers.
std::vector<StageRange> split_stages(const Config& config, int num_stages, StageCosts costs);

}  // namespace hadal
