// Memory of our own training step: what the Pool of each rank holds at most, block by block.
//
// The blocks are those that src/model and src/train take, with the sizes of model/bytes.h and the
// Pool's rounding; tests/unit/runtime_memory_test.cc compares with a Pool's own peak.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "plan/memory.h"

namespace hadal::plan {

// [pp]   REQUIRES: plan.is_runtime(), check_train_plan() passed. With ep > 1 what experts need is
// that of tokens that pick experts evenly; the rings between ranks, 256 KiB each, are not counted.
std::vector<RankMemory> runtime_memory(const TrainPlan& plan);

}  // namespace hadal::plan
