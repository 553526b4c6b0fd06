// Memory: what each rank holds while it trains, by class of tensor.
//
// Parameters and their shards are summed over model/params.h's visitor. Activations of recipes bf16
// and f32 come from model/bytes.h, the functions that the runtime allocates with; those of fp8 are
// listed here, after the report (3.2.3, 3.3), until the runtime has that recipe.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "model/bytes.h"
#include "parallel/stages.h"
#include "plan/train_plan.h"

namespace hadal::plan {

struct RankMemory {
  double weights = 0.0;        // by format: FP8 with scales, bf16, or f32 masters themselves
  double masters = 0.0;        // f32, this rank's ZeRO-1 shard
  double moments = 0.0;        // two, its shard
  double gradients = 0.0;      // f32, whole: accumulated over micro-batches
  double activations = 0.0;    // of all micro-batches in flight, at their most
  double deferred = 0.0;       // operands of weight halves that wait, at the same moment
  double workspace = 0.0;      // what one layer needs while it runs
  double communication = 0.0;  // buffers of exchanges and pipeline messages
  double host = 0.0;           // EMA of parameters, in host memory

  double device() const {
    return weights + masters + moments + gradients + activations + deferred + workspace +
           communication;
  }
};
// Names and values of the device classes, in a fixed order.
std::vector<std::pair<std::string, double>> memory_classes(const RankMemory& memory);

// What a micro-batch leaves in one layer between forward and the input half, and between the
// halves.
struct LayerBytes {
  double saved = 0.0, deferred = 0.0, workspace = 0.0;
};
LayerBytes layer_bytes(const TrainPlan& plan, bool is_moe);

// Elements of parameters of one stage on one rank, by how they are split.
struct StageParams {
  double matrices = 0.0;  // replicated over dp; FP8 in recipe fp8
  double plain = 0.0;     // embedding, head, router, eh_proj, norms: never FP8
  double experts = 0.0;   // of this rank's share of the experts
  double total() const { return matrices + plain + experts; }
};
// Sums model/params.h's visitor once, which takes longer than all else of a plan: every layer of a
// kind has the same parameters.
class ParamSums {
 public:
  explicit ParamSums(const Config& config);
  StageParams of(const Mesh& mesh, const StageRange& stage) const;
  const ParamCounts& counts() const { return counts_; }

 private:
  // By kind and split; `split` ones are shared out by tp, experts by ep.
  struct Sum {
    double matrices = 0.0, split_matrices = 0.0, plain = 0.0, split_plain = 0.0, experts = 0.0;
  };
  Config config_;
  ParamCounts counts_;
  Sum embed_, head_, dense_, moe_, mtp_;
};

// [pp] of the mesh. stages: ChunkCosts::stages().
std::vector<RankMemory> plan_memory(const TrainPlan& plan, const std::vector<StageRange>& stages,
                                    const Schedule& schedule, const ParamSums& sums);

// Ranks that hold copies of a replicated parameter, and of an expert: over which ZeRO-1 shards.
int replica_group(const TrainPlan& plan);
int expert_group(const TrainPlan& plan);

// Bytes of one parameter's weight copy and its two moments, beside the f32 master and gradient.
double weight_bytes(Recipe recipe, bool is_plain);
double moment_bytes(Recipe recipe);

}  // namespace hadal::plan
