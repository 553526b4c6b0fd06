// The ranks of a plan as `hadal train` has them: the config of its mesh, and what each rank holds.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/param_layout.h"
#include "parallel/parallel_config.h"
#include "plan/train_plan.h"

namespace hadal::plan {

// REQUIRES of all: plan.is_runtime(); the plan outlives what is returned.
ParallelConfig parallel_of(const TrainPlan& plan);
// What a rank of the pipeline holds; ranks that differ in dp alone hold as much.
RankShare share_of(const TrainPlan& plan, int pp);
// The embedding is on the first and on the last pipeline rank, which sum its gradients.
bool shares_embedding(const TrainPlan& plan);

}  // namespace hadal::plan
