// Operations of our own training step, as src/model, src/parallel and src/train call them on one
// rank: of one device, or of several CPU ranks.
//
// Every call whose time depends on tokens or parameters is listed, under the name that it has in
// src/ops and with its shape; what moves pages of the row pool and updates of gate biases are not.
// The backends run the same calls, so a list holds for CPU and GPU; `hadal bench rates` times each
// operation of a list alone and writes rates of it. Among several ranks, calls that all of a group
// make are operations too: an exchange of tokens with everything around its messages, reductions,
// gathers, and messages between stages.
//
// Names that end in _f32 have f32 operands or results whatever the recipe: router, head, gradients.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "parallel/stages.h"
#include "plan/layer_ops.h"

namespace hadal::plan::runtime {

// Of a rank with its share of the experts; exchanges between ranks are not here.
OpList part_ops(const LayerShape& s, Part part, Pass pass);
// One trip of a MoE layer's tokens among the ranks that share its experts.
enum class Trip : uint8_t { kDispatch, kCombine, kCombineBackward, kDispatchBackward };
OpUse exchange_op(const LayerShape& s, Trip trip);
// The states that a stage takes from the one before and hands to the one after, and their
// gradients, beside the messages.
OpList edge_ops(const TrainPlan& plan, const StageRange& stage, Pass pass);
// A message between stages.
OpUse message_op(const TrainPlan& plan);
// Of a pipeline rank, beside the micro-batches: clearing gradients, summing them and what was
// measured over the ranks, their norm, AdamW on this rank's share, gathering parameters, and the
// copies of weights that products read (bf16).
OpList optimizer_ops(const TrainPlan& plan, int pp);

// Every different operation and shape of a step, of all ranks.
OpList all_ops(const TrainPlan& plan);

}  // namespace hadal::plan::runtime
