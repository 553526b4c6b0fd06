// Split weights: a layer's matrices at a time, so that no more of the model is ever whole.
// SPDX-License-Identifier: Apache-2.0
#include "train/split_weights.h"

#include "core/check.h"
#include "ops/copy.h"

namespace hadal::train {
namespace {

// The rows or columns of a whole matrix that a rank of the tensor group holds.
Tensor part_of(const Tensor& whole, const ParamInfo& info, const Share& tensor) {
  const int dim = info.shard == ParamShard::kRows ? 0 : 1;
  const int64_t n = whole.dim(dim) / tensor.ways;
  return dim == 0 ? whole.rows(tensor.index * n, n) : whole.cols(tensor.index * n, n);
}

}  // namespace

void read_weights(Context& ctx, const io::HfCheckpoint& checkpoint, const Team& team,
                  ModelParams<Tensor>& tree) {
  const Share tensor = team.share().tensor;
  if (tensor.ways == 1) return io::read_weights(ctx, checkpoint, tree);
  const Config& model = checkpoint.config;
  ModelParams<Tensor> unsplit = tree;
  for_each_param(
      model,
      [](const ParamInfo& info, Tensor& leaf) {
        if (info.is_split()) leaf = Tensor();
      },
      unsplit);
  io::read_weights(ctx, checkpoint, unsplit);
  const int64_t layers = model.num_hidden_layers + model.num_nextn_predict_layers;
  for (int64_t layer = 0; layer < layers; ++layer) {
    ModelParams<Tensor> whole;
    resize(model, whole);
    std::vector<Block> memory;
    for_each_param(
        model,
        [&](const ParamInfo& info, Tensor& to, Tensor& held) {
          if (info.layer == layer && info.is_split() && !held.empty())
            memory.push_back(ctx.memory.take_tensor(held.dtype(), info.shape, &to));
        },
        whole, tree);
    if (memory.empty()) continue;
    io::read_weights(ctx, checkpoint, whole);
    for_each_param(
        model,
        [&](const ParamInfo& info, Tensor& from, Tensor& held) {
          if (!from.empty()) ops::cast(ctx, part_of(from, info, tensor), held);
        },
        whole, tree);
  }
}

WholeTree gather_split(Context& ctx, const Config& model, Team& team,
                       const ModelParams<Tensor>& tree) {
  WholeTree whole;
  whole.tree = tree;
  const int ways = team.tensor().size();
  if (ways == 1) return whole;
  for_each_param(
      model,
      [&](const ParamInfo& info, Tensor& leaf) {
        if (!info.is_split() || leaf.empty()) return;
        const Tensor held = leaf;
        const int64_t n = held.num_elements();
        Tensor parts;
        const Block memory = ctx.memory.take_tensor(held.dtype(), {ways * n}, &parts);
        team.tensor().all_gather(ctx, held, parts);
        whole.memory.push_back(ctx.memory.take_tensor(held.dtype(), info.shape, &leaf));
        for (int r = 0; r < ways; ++r)
          ops::cast(ctx, parts.rows(r * n, n).view(held.shape()), part_of(leaf, info, {ways, r}));
      },
      whole.tree);
  return whole;
}

}  // namespace hadal::train
