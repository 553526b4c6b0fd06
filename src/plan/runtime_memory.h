// Device memory of our own training step on one device: what its Pool holds at most, block by
// block.
//
// The blocks are those that src/model and src/train take, with the sizes of model/bytes.h and the
// Pool's rounding; tests/unit/runtime_memory_test.cc compares with a Pool's own peak.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "plan/memory.h"

namespace hadal::plan {

// REQUIRES: plan.is_runtime().
RankMemory runtime_memory(const TrainPlan& plan);

}  // namespace hadal::plan
