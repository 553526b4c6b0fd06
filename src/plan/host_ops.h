// Operations of the CPU runtime (recipe f32), as src/model calls them, one rank.
//
// Everything that takes time in proportion to tokens or parameters is listed, with the shape that
// the call has; vectors of one layer (gains, counts) are not. Rates of these shapes come from
// bench/op_rates, which times each of them alone.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "plan/layer_ops.h"

namespace hadal::plan::host {

OpList attention_ops(const LayerShape& s, Pass pass);
OpList mlp_ops(const LayerShape& s, bool is_moe, Pass pass);
OpList head_ops(const LayerShape& s, Pass pass);
OpList embed_ops(const LayerShape& s, Pass pass);
OpList mtp_projection_ops(const LayerShape& s, Pass pass);
// Clearing gradients, their norm, AdamW.
OpList optimizer_ops(const TrainPlan& plan);

// Every different operation and shape of a step.
OpList all_ops(const TrainPlan& plan);

}  // namespace hadal::plan::host
