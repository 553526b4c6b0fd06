// What ranks hold, by the rules of parallel/parallel_config.h.
// SPDX-License-Identifier: Apache-2.0
#include "plan/runtime_mesh.h"

#include <algorithm>

#include "plan/memory.h"

namespace hadal::plan {

ParallelConfig parallel_of(const TrainPlan& p) {
  return {.mesh = p.mesh, .schedule = p.schedule, .stages_per_rank = p.stages_per_rank};
}

RankShare share_of(const TrainPlan& p, int pp) {
  RankShare share{.experts = {.ways = expert_group(p)}, .dense = {.ways = replica_group(p)}};
  if (p.mesh.num_ranks() == 1) return share;
  share.holds = [&model = p.model, local = p.model.n_routed_experts / p.mesh.ep,
                 stages = stages_of(parallel_of(p), p.model, pp)](const ParamInfo& info) {
    return info.expert < local &&
           std::any_of(stages.begin(), stages.end(),
                       [&](const LocalStage& s) { return contains(s.range, info, model); });
  };
  return share;
}

bool shares_embedding(const TrainPlan& p) {
  const ParallelConfig parallel = parallel_of(p);
  return (p.model.num_nextn_predict_layers > 0 || p.model.tie_word_embeddings) &&
         holders_of(parallel, 0) != holders_of(parallel, num_stages(parallel) - 1);
}

}  // namespace hadal::plan
