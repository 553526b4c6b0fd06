// Blocks of a training step, and the moment that needs most of them.
// SPDX-License-Identifier: Apache-2.0
#include "plan/runtime_memory.h"

#include <algorithm>

#include "core/size_class.h"
#include "model/bytes.h"
#include "model/params.h"

namespace hadal::plan {
namespace {

constexpr DType kStat = DType::kF32;
constexpr int64_t kPageRows = 128;

class Blocks {
 public:
  explicit Blocks(const TrainPlan& p)
      : c(p.model),
        S(p.micro_batch_sequences),
        T(p.micro_batch_tokens()),
        D(c.hidden_size),
        act(activation_dtype(p.recipe)) {}

  static double block(size_t bytes) { return static_cast<double>(size_class(bytes)); }
  double tensor(const Shape& shape) const { return block(tensor_bytes(act, shape)); }

  // One flat tensor of a tree, as model/param_store.cc lays it out.
  enum class Extent : uint8_t { kAll, kTrained, kMatrices };
  double params(Extent extent, DType dtype) const {
    int64_t elements = 0;
    ModelParams<char> tree;
    resize(c, tree);
    for_each_param(
        c,
        [&](const ParamInfo& info, char&) {
          const bool is_matrix =
              info.kind != ParamKind::kNorm && !info.name.ends_with("gate.weight");
          if (extent == Extent::kAll ||
              (info.trained() && (extent == Extent::kTrained || is_matrix)))
            elements += (info.shape.num_elements() + 63) / 64 * 64;
        },
        tree);
    return block(tensor_bytes(dtype, {elements}));
  }

  double row_pool() const {
    const int64_t pages = std::max<int64_t>(1, c.num_moe_layers() * experts::max_pages(c, T));
    return block(static_cast<size_t>(pages) * experts::page_bytes(c, act) +
                 tensor_bytes(DType::kI32, {pages}) + tensor_bytes(DType::kI32, {1}));
  }

  // A layer between forward and backward, without its pages.
  double saved(bool is_moe, int64_t tokens) const {
    double sum =
        block(ByteCount().add(act, {tokens, D}).add(kStat, {tokens}).add(kStat, {tokens}).total()) +
        block(mla::saved_bytes(c, tokens, act));
    if (!is_moe) return sum + block(mlp::saved_bytes(c.intermediate_size, tokens, act));
    sum +=
        block(gate::saved_bytes(c, tokens, S, act)) + block(experts::saved_bytes(c, tokens, act));
    if (c.n_shared_experts > 0)
      sum += block(mlp::saved_bytes(c.shared_intermediate_size(), tokens, act));
    return sum;
  }

  // What its backward takes beyond that, at most: while the MLP or the experts run, or while
  // attention does, when what the MLP had saved is gone.
  double backward(bool is_moe, int64_t tokens) const {
    const int64_t F = is_moe ? c.moe_intermediate_size : c.intermediate_size;
    double kept = block(ByteCount()
                            .add(act, {tokens, D})
                            .add(act, {tokens, D})
                            .add(act, {tokens, D})
                            .add(act, {tokens, D})
                            .add(kStat, {D})
                            .add(kStat, {D})
                            .total());
    if (!is_moe) {
      kept += block(mlp::deferred_bytes(F, tokens, act));
      return std::max(kept + tensor({tokens, F}) + panels(tokens, F),
                      kept + attention(tokens) - block(mlp::saved_bytes(F, tokens, act)));
    }
    const int64_t pages = experts::max_pages(c, tokens);
    ByteCount rows;
    rows.add(act, {pages, kPageRows, D}).add(kStat, {pages * kPageRows});
    kept += block(experts::deferred_bytes(c, tokens, act));
    if (const int64_t shared = c.shared_intermediate_size(); shared > 0) {
      rows.add(act, {tokens, D});
      kept += block(mlp::deferred_bytes(shared, tokens, act)) -
              block(mlp::saved_bytes(shared, tokens, act));
    }
    const double while_experts = kept + block(rows.total()) + tensor({pages, kPageRows, F}) +
                                 panels(tokens * c.num_experts_per_tok, D);
    const double while_attention = kept + block(gate::deferred_bytes(c, tokens, act)) -
                                   block(gate::saved_bytes(c, tokens, S, act)) + attention(tokens);
    return std::max(while_experts, while_attention);
  }

  // A product on the CPU puts its rows into panels first (ops/cpu/product.cc).
  double panels(int64_t rows, int64_t width) const {
    return act == kStat ? tensor({rows, width}) : 0.0;
  }

  // mla::backward_input, and its input's gradient; the last product is the widest.
  double attention(int64_t tokens) const {
    const int64_t H = c.num_attention_heads, Dkv = c.qk_nope_head_dim + c.v_head_dim;
    return tensor({tokens, D}) + block(mla::deferred_bytes(c, tokens, act)) +
           block(ByteCount()
                     .add(act, {tokens, H, c.qk_head_dim()})
                     .add(act, {tokens, H, Dkv})
                     .add(act, {tokens, c.qk_rope_head_dim})
                     .total()) +
           tensor({tokens, H, c.v_head_dim}) + tensor({tokens, c.qk_rope_head_dim}) +
           tensor({tokens, c.kv_lora_rank}) +
           (c.q_lora_rank > 0 ? tensor({tokens, c.q_lora_rank}) : 0.0) +
           panels(tokens, H * c.qk_head_dim());
  }

  const Config& c;
  const int64_t S, T, D;
  const DType act;
};

}  // namespace

RankMemory runtime_memory(const TrainPlan& p) {
  const Blocks b(p);
  const Config& c = p.model;
  const int64_t T = b.T, D = b.D, depths = c.num_nextn_predict_layers;
  const auto tokens_of = [&](int64_t depth) { return std::max<int64_t>(0, T - depth * b.S); };
  RankMemory m;
  const DType act = b.act;
  if (act != kStat) m.weights = b.params(Blocks::Extent::kMatrices, act);
  m.masters = b.params(Blocks::Extent::kAll, kStat);
  m.gradients = b.params(Blocks::Extent::kTrained, kStat);
  m.moments = 2.0 * m.gradients;

  // Saved by the whole micro-batch, the rows of all experts included.
  ByteCount states;
  for (int64_t l = 0; l <= c.num_hidden_layers; ++l) states.add(act, {T, D});
  m.activations = Blocks::block(states.add(act, {T, D}).add(kStat, {T}).total()) + b.row_pool();
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) m.activations += b.saved(c.is_moe_layer(l), T);
  double heads = Blocks::block(head::saved_bytes(c, T, act));
  for (int64_t k = 1; k <= depths; ++k) {
    const int64_t Tk = tokens_of(k);
    ByteCount own;
    for (int i = 0; i < 4; ++i) own.add(act, {Tk, D});
    for (int i = 0; i < 3; ++i) own.add(kStat, {Tk});
    m.activations += Blocks::block(own.total()) + b.saved(true, Tk);
    heads += Blocks::block(head::saved_bytes(c, Tk, act));
  }

  // Beside it: gradients of states, then either all logits, or the backward of the first layer.
  const double states_back = 2.0 * b.tensor({T, D});
  double layer = 0.0;
  if (depths > 0) {
    const int64_t Tk = tokens_of(depths);
    layer = b.backward(true, Tk) + 3.0 * b.tensor({Tk, D}) + b.tensor({Tk, 2 * D}) +
            Blocks::block(ByteCount()
                              .add(act, {Tk, 2 * D})
                              .add(act, {Tk, D})
                              .add(act, {Tk, D})
                              .add(kStat, {D})
                              .add(kStat, {D})
                              .add(kStat, {D})
                              .total());
  } else {
    layer = b.backward(c.is_moe_layer(c.num_hidden_layers - 1), T);
  }
  // Logits of a chunk where all of them are not kept, and their gradients where in another type.
  const int64_t chunk = std::min(T, loss_chunk_tokens(c));
  if (chunk < T) heads += Blocks::block(tensor_bytes(kStat, {chunk, c.vocab_size}));
  heads += b.panels(chunk, c.vocab_size);
  if (act != kStat) heads += b.tensor({chunk, c.vocab_size});
  m.workspace = states_back + std::max(heads, layer);
  return m;
}

}  // namespace hadal::plan
