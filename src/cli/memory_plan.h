// MemoryPlan: what a process that generates is going to allocate, known before anything is loaded.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "cli/run_options.h"

namespace hadal::cli {

// What is going to run.
struct PlanInput {
  const OpenedModel& model;
  const ModelOptions& options;
  Decoder::Limits limits;
  int64_t num_logits;      // most rows that have logits at once
  int64_t num_states = 0;  // rows of states that are kept beside steps
};

// Bytes of each rank.
struct MemoryPlan {
  double weights = 0.0;  // those that stay mapped from the files are not counted
  double cache = 0.0, logits = 0.0;
  double step = 0.0;  // an upper bound of what modules hold at once
  double total() const { return weights + cache + logits + step; }
};
MemoryPlan plan_memory(const PlanInput& input);

// "memory: weights 1.0 MiB, cache ...", a line.
std::string describe(const MemoryPlan& plan, const PlanInput& input);
// An Error if the machine, or the GPU of a rank, cannot give it. `where`: that GPU.
void check_fits(const MemoryPlan& plan, const PlanInput& input, Device where);

}  // namespace hadal::cli
