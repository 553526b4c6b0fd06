// Blocks of a training step, and the moment that needs most of them.
// SPDX-License-Identifier: Apache-2.0
#include "plan/runtime_memory.h"

#include <algorithm>

#include "core/size_class.h"
#include "model/bytes.h"
#include "model/params.h"

namespace hadal::plan {
namespace {

constexpr DType kAct = DType::kF32;
constexpr int64_t kPageRows = 128;

class Blocks {
 public:
  explicit Blocks(const TrainPlan& p)
      : c(p.model), S(p.micro_batch_sequences), T(p.micro_batch_tokens()), D(c.hidden_size) {}

  static double block(size_t bytes) { return static_cast<double>(size_class(bytes)); }
  static double tensor(const Shape& shape) { return block(tensor_bytes(kAct, shape)); }

  // One flat tensor of a tree, as model/param_store.cc lays it out.
  double params(bool with_buffers) const {
    int64_t elements = 0;
    ModelParams<char> tree;
    resize(c, tree);
    for_each_param(
        c,
        [&](const ParamInfo& info, char&) {
          if (info.trained() || with_buffers)
            elements += (info.shape.num_elements() + 63) / 64 * 64;
        },
        tree);
    return tensor({elements});
  }

  double row_pool() const {
    const int64_t pages = std::max<int64_t>(1, c.num_moe_layers() * experts::max_pages(c, T));
    return block(static_cast<size_t>(pages) * experts::page_bytes(c, kAct) +
                 tensor_bytes(DType::kI32, {pages}) + tensor_bytes(DType::kI32, {1}));
  }

  // A layer between forward and backward, without its pages.
  double saved(bool is_moe, int64_t tokens) const {
    double sum =
        block(ByteCount().add(kAct, {tokens, D}).add(kAct, {tokens}).add(kAct, {tokens}).total()) +
        block(mla::saved_bytes(c, tokens, kAct));
    if (!is_moe) return sum + block(mlp::saved_bytes(c.intermediate_size, tokens, kAct));
    sum +=
        block(gate::saved_bytes(c, tokens, S, kAct)) + block(experts::saved_bytes(c, tokens, kAct));
    if (c.n_shared_experts > 0)
      sum += block(mlp::saved_bytes(c.shared_intermediate_size(), tokens, kAct));
    return sum;
  }

  // What its backward takes beyond that, at most: while the experts run, or while attention does.
  double backward(bool is_moe, int64_t tokens) const {
    const int64_t H = c.num_attention_heads, F = c.moe_intermediate_size;
    double kept = block(ByteCount()
                            .add(kAct, {tokens, D})
                            .add(kAct, {tokens, D})
                            .add(kAct, {tokens, D})
                            .add(kAct, {tokens, D})
                            .add(kAct, {D})
                            .add(kAct, {D})
                            .total());
    double while_experts = 0.0;
    if (is_moe) {
      const int64_t pages = experts::max_pages(c, tokens);
      ByteCount rows;
      rows.add(kAct, {pages, kPageRows, D}).add(kAct, {pages * kPageRows});
      if (c.n_shared_experts > 0) {
        rows.add(kAct, {tokens, D});
        kept += block(mlp::deferred_bytes(c.shared_intermediate_size(), tokens, kAct));
      }
      kept += block(rows.total()) + block(experts::deferred_bytes(c, tokens, kAct));
      while_experts = kept + tensor({pages, kPageRows, F});
      kept += block(gate::deferred_bytes(c, tokens, kAct));
    } else {
      kept += block(mlp::deferred_bytes(c.intermediate_size, tokens, kAct));
    }
    const int64_t Dkv = c.qk_nope_head_dim + c.v_head_dim;
    const double while_attention =
        kept + tensor({tokens, D}) + block(mla::deferred_bytes(c, tokens, kAct)) +
        block(ByteCount()
                  .add(kAct, {tokens, H, c.qk_head_dim()})
                  .add(kAct, {tokens, H, Dkv})
                  .add(kAct, {tokens, c.qk_rope_head_dim})
                  .total()) +
        tensor({tokens, H, c.v_head_dim}) + tensor({tokens, c.qk_rope_head_dim}) +
        tensor({tokens, c.kv_lora_rank}) +
        (c.q_lora_rank > 0 ? tensor({tokens, c.q_lora_rank}) : 0.0);
    return std::max(while_experts, while_attention);
  }

  const Config& c;
  const int64_t S, T, D;
};

}  // namespace

RankMemory runtime_memory(const TrainPlan& p) {
  const Blocks b(p);
  const Config& c = p.model;
  const int64_t T = b.T, D = b.D, depths = c.num_nextn_predict_layers;
  const auto tokens_of = [&](int64_t depth) { return std::max<int64_t>(0, T - depth * b.S); };
  RankMemory m;
  m.masters = b.params(true);
  m.gradients = b.params(false);
  m.moments = 2.0 * b.params(false);

  // Saved by the whole micro-batch, the rows of all experts included.
  ByteCount states;
  for (int64_t l = 0; l <= c.num_hidden_layers; ++l) states.add(kAct, {T, D});
  m.activations = Blocks::block(states.add(kAct, {T, D}).add(kAct, {T}).total()) + b.row_pool();
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) m.activations += b.saved(c.is_moe_layer(l), T);
  double heads = Blocks::block(head::saved_bytes(c, T, kAct));
  for (int64_t k = 1; k <= depths; ++k) {
    const int64_t Tk = tokens_of(k);
    ByteCount own;
    for (int i = 0; i < 4; ++i) own.add(kAct, {Tk, D});
    for (int i = 0; i < 3; ++i) own.add(kAct, {Tk});
    m.activations += Blocks::block(own.total()) + b.saved(true, Tk);
    heads += Blocks::block(head::saved_bytes(c, Tk, kAct));
  }

  // Beside it: gradients of states, then either all logits, or the backward of the first layer.
  const double states_back = 2.0 * Blocks::tensor({T, D});
  double layer = 0.0;
  if (depths > 0) {
    const int64_t Tk = tokens_of(depths);
    layer = b.backward(true, Tk) + 3.0 * Blocks::tensor({Tk, D}) + Blocks::tensor({Tk, 2 * D}) +
            Blocks::block(ByteCount()
                              .add(kAct, {Tk, 2 * D})
                              .add(kAct, {Tk, D})
                              .add(kAct, {Tk, D})
                              .add(kAct, {D})
                              .add(kAct, {D})
                              .add(kAct, {D})
                              .total());
  } else {
    layer = b.backward(c.is_moe_layer(c.num_hidden_layers - 1), T);
  }
  m.workspace = states_back + std::max(heads, layer);
  return m;
}

}  // namespace hadal::plan
