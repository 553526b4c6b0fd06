// The operations of every part of a layer, with shapes: what a chunk's time is summed from.
//
//   T tokens of a micro-batch on this rank   D model width   F hidden width   R received routed
//   rows
//
// Plans in f32, and those of one device in bf16, are runs of `hadal train`, and their lists the
// runtime's own (runtime_ops.h). All others follow the kernels of DeepSeek's published training
// trace of one overlapped chunk pair (trace_ops.cc). Exchanges between ranks are not here: chunk.h.
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

enum class Part : uint8_t {
  kAttention,      // norm, projections, core attention
  kDense,          // norm and a dense MLP
  kMoe,            // norm, router, shared and routed experts
  kHead,           // one use of the output head, with its loss
  kEmbed,          // the embedding
  kMtpProjection,  // what an MTP module has beside its block
};
inline constexpr Part kParts[] = {Part::kAttention, Part::kDense, Part::kMoe,
                                  Part::kHead,      Part::kEmbed, Part::kMtpProjection};

// What every list depends on.
struct LayerShape {
  const TrainPlan* plan = nullptr;
  int64_t tokens = 0;       // T
  int64_t routed_rows = 0;  // R
};
LayerShape layer_shape(const TrainPlan& plan);

OpList part_ops(const LayerShape& s, Part part, Pass pass);

namespace trace {
OpList part_ops(const LayerShape& s, Part part, Pass pass);
}  // namespace trace

}  // namespace hadal::plan
