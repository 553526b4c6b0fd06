// Operations of our own training step on one device, as src/model and src/train call them.
//
// Every call whose time depends on tokens or parameters is listed, under the name that it has in
// src/ops and with its shape; what moves pages of the row pool and updates of gate biases are not.
// The backends run the same calls, so a list holds for CPU and GPU; `hadal bench rates` times each
// operation of a list alone and writes rates of it.
//
// Names that end in _f32 have f32 operands or results whatever the recipe: router, head, gradients.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "plan/layer_ops.h"

namespace hadal::plan::runtime {

OpList part_ops(const LayerShape& s, Part part, Pass pass);
// Clearing gradients, their norm, AdamW, and the copies of weights that products read (bf16).
OpList optimizer_ops(const TrainPlan& plan);

// Every different operation and shape of a step.
OpList all_ops(const TrainPlan& plan);

}  // namespace hadal::plan::runtime
