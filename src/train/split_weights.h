// Weights of the ranks of a tensor group, of which each holds a part of the split matrices
// (model/param_layout.h): out of whole checkpoints, and back into whole matrices.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "io/hf.h"
#include "parallel/team.h"

namespace hadal::train {

// What the tree has of a checkpoint of the whole model.
void read_weights(Context& ctx, const io::HfCheckpoint& checkpoint, const Team& team,
                  ModelParams<Tensor>& tree);

// A tree with its split matrices whole; the other leaves are the given ones.
struct WholeTree {
  ModelParams<Tensor> tree;
  std::vector<Block> memory;
};
// Collective over the tensor group. model: the whole one.
WholeTree gather_split(Context& ctx, const Config& model, Team& team,
                       const ModelParams<Tensor>& tree);

}  // namespace hadal::train
