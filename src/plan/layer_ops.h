// The operations of every part of a layer, with shapes: what a chunk's time is summed from.
//
//   T tokens of a micro-batch on this rank   D model width   F hidden width   R received routed
//   rows
//
// For GPUs (recipes fp8 and bf16), after the kernels of DeepSeek's published training trace of one
// overlapped chunk pair; recipe f32 is the CPU runtime's, in host_ops.h. Exchanges between ranks
// are not here: chunk.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "plan/train_plan.h"

namespace hadal::plan {

struct OpUse {
  std::string op;
  OpShape shape;
  int64_t times = 1;
};
using OpList = std::vector<OpUse>;

enum class Pass : uint8_t { kForward, kBackwardInput, kBackwardWeight };
inline constexpr Pass kPasses[] = {Pass::kForward, Pass::kBackwardInput, Pass::kBackwardWeight};

// What every list depends on.
struct LayerShape {
  const TrainPlan* plan = nullptr;
  int64_t tokens = 0;       // T
  int64_t routed_rows = 0;  // R
};
LayerShape layer_shape(const TrainPlan& plan);

// Norm, projections, core attention.
OpList attention_ops(const LayerShape& s, Pass pass);
// Norm, and a dense MLP or router, shared and routed experts.
OpList mlp_ops(const LayerShape& s, bool is_moe, Pass pass);
// One use of the output head, with its loss; the embedding; an MTP module's own projection.
OpList head_ops(const LayerShape& s, Pass pass);
OpList embed_ops(const LayerShape& s, Pass pass);
OpList mtp_projection_ops(const LayerShape& s, Pass pass);

}  // namespace hadal::plan
