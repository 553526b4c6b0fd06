// Fp8Weights: one block for all matrices; experts of a layer are quantised by one call.
// SPDX-License-Identifier: Apache-2.0
#include "model/fp8_weights.h"

#include <span>

#include "model/bytes.h"
#include "ops/fp8.h"

namespace hadal {
namespace {

// Rows start at multiples of what the copy engine reads.
constexpr int64_t kRowUnit = 16;
Shape padded(int64_t rows, int64_t cols) {
  return {rows, (cols + kRowUnit - 1) / kRowUnit * kRowUnit};
}

struct MatrixShapes {
  Shape data, transposed, scale, transposed_scale;
  explicit MatrixShapes(const Shape& w)
      : data(padded(w[0], w[1])),
        transposed(padded(w[1], w[0])),
        scale{ops::num_tiles(w[0]), ops::num_tiles(w[1])},
        transposed_scale{ops::num_tiles(w[1]), ops::num_tiles(w[0])} {}
};

// Those of the experts that are held.
void quantise_held(Context& ctx, const std::vector<Tensor>& from, const std::vector<Operand>& to) {
  std::vector<Tensor> w;
  std::vector<Operand> q;
  for (size_t e = 0; e < from.size(); ++e) {
    if (from[e].empty()) continue;
    w.push_back(from[e]);
    q.push_back(to[e]);
  }
  if (!w.empty()) ops::quantise_weights(ctx, w, q);
}

void quantise_experts(Context& ctx, experts::Params<Tensor>& from, experts::Params<Operand>& to) {
  quantise_held(ctx, from.w1, to.w1);
  quantise_held(ctx, from.w3, to.w3);
  quantise_held(ctx, from.w2, to.w2);
}

}  // namespace

Fp8Weights::Fp8Weights(Context& ctx, const Config& config, ModelParams<Tensor>& masters)
    : config_(config) {
  resize(config_, tree_);
  ByteCount bytes;
  for_each_param(
      config_,
      [&](const ParamInfo& info, Tensor& master) {
        if (info.kind != ParamKind::kMatrix || master.empty()) return;
        const MatrixShapes s(info.shape);
        bytes.add(DType::kE4M3, s.data)
            .add(DType::kE4M3, s.transposed)
            .add(DType::kF32, s.scale)
            .add(DType::kF32, s.transposed_scale);
      },
      masters);
  memory_ = ctx.memory.take(bytes.total());
  for_each_param(
      config_,
      [&](const ParamInfo& info, Operand& o, Tensor& master) {
        if (info.kind != ParamKind::kMatrix || master.empty()) return;
        const MatrixShapes s(info.shape);
        o.data = memory_.tensor(DType::kE4M3, s.data).cols(0, info.shape[1]);
        o.transposed = memory_.tensor(DType::kE4M3, s.transposed).cols(0, info.shape[0]);
        o.scale = memory_.tensor(DType::kF32, s.scale);
        o.transposed_scale = memory_.tensor(DType::kF32, s.transposed_scale);
      },
      tree_, masters);
}

Weights Fp8Weights::weights_of(ModelParams<Tensor>& masters, ModelParams<Tensor>* copies) const {
  Weights weights, mine = tree_;
  resize(config_, weights);
  const auto fill = [](const ParamInfo&, Operand& to, Tensor& from) {
    if (!from.empty()) to = Operand(from);
  };
  for_each_param(config_, fill, weights, masters);
  if (copies != nullptr) for_each_param(config_, fill, weights, *copies);
  for_each_param(
      config_,
      [](const ParamInfo&, Operand& to, Operand& from) {
        if (!from.empty()) to = from;
      },
      weights, mine);
  drop_absent_experts(weights);
  return weights;
}

void Fp8Weights::quantise(Context& ctx, ModelParams<Tensor>& masters) {
  const int64_t layers = config_.num_hidden_layers + config_.num_nextn_predict_layers;
  for (int64_t layer = 0; layer < layers; ++layer) quantise_layer(ctx, masters, layer);
}

void Fp8Weights::quantise_layer(Context& ctx, ModelParams<Tensor>& masters, int64_t layer) {
  const auto block_of = [&](auto& tree) -> auto& {
    const int64_t module = layer - config_.num_hidden_layers;
    return module < 0 ? tree.layers[static_cast<size_t>(layer)]
                      : tree.mtp[static_cast<size_t>(module)].block;
  };
  block::Params<Tensor>& from = block_of(masters);
  block::Params<Operand>& to = block_of(tree_);
  const auto quantise_matrix = [&](const ParamInfo& info, Tensor& w, Operand& q) {
    if (info.kind == ParamKind::kMatrix && info.shard != ParamShard::kExpert && !w.empty())
      ops::quantise_weights(ctx, std::span<const Tensor>(&w, 1), std::span<const Operand>(&q, 1));
  };
  detail::visit_block(config_, "", layer, quantise_matrix, from, to);
  quantise_experts(ctx, from.moe.experts, to.moe.experts);
}

}  // namespace hadal
