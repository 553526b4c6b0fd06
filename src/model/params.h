// The parameter tree of a DeepSeek-V3 model: names, shapes, decay flags, and one visitor.
//
//   D hidden   V vocabulary   Rq, Rkv latent ranks   Dn, Dr, Dv head widths   H heads
//   F hidden width of an MLP   E routed experts
//
// The same tree, with another leaf, holds weights (Operand), gradients, masters and moments
// (Tensor). Names are DeepSeek's own ("layers.3.attn.wkv_b", "mtp.0.block.ffn.gate.weight");
// Hugging Face names exist only in io/hf.cc.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "model/config.h"

namespace hadal {

namespace mla {
template <class Leaf>
struct Params {
  Leaf wq;                     // [H*(Dn+Dr), D]   only where q_lora_rank is 0
  Leaf wq_a, q_norm, wq_b;     // [Rq, D]  [Rq]  [H*(Dn+Dr), Rq]
  Leaf wkv_a, kv_norm, wkv_b;  // [Rkv+Dr, D]  [Rkv]  [H*(Dn+Dv), Rkv]   rows of a head: k_nope, v
  Leaf wo;                     // [D, H*Dv]
};
}  // namespace mla

namespace mlp {
template <class Leaf>
struct Params {
  Leaf w1, w3, w2;  // gate [F, D]  up [F, D]  down [D, F]
};
}  // namespace mlp

namespace gate {
template <class Leaf>
struct Params {
  Leaf weight;  // [E, D]
  Leaf bias;    // [E] f32   a buffer: moved by the bias update, never by the optimizer
};
}  // namespace gate

namespace experts {
template <class Leaf>
struct Params {
  std::vector<Leaf> w1, w3, w2;  // E of each: [F, D]  [F, D]  [D, F]
};
}  // namespace experts

namespace moe {
template <class Leaf>
struct Params {
  gate::Params<Leaf> gate;
  experts::Params<Leaf> experts;
  mlp::Params<Leaf> shared;  // unused where n_shared_experts is 0
};
}  // namespace moe

namespace block {
template <class Leaf>
struct Params {
  Leaf attn_norm, ffn_norm;  // [D]  [D]
  mla::Params<Leaf> attn;
  mlp::Params<Leaf> mlp;  // dense layers
  moe::Params<Leaf> moe;  // the others
};
}  // namespace block

namespace mtp {
template <class Leaf>
struct Params {
  Leaf enorm, hnorm;          // [D]  [D]
  Leaf eh_proj;               // [D, 2D]   columns: embedding, then hidden
  block::Params<Leaf> block;  // always MoE (layer index num_hidden_layers + k)
  Leaf norm;                  // [D]   shared_head.norm
};
}  // namespace mtp

template <class Leaf>
struct ModelParams {
  Leaf embed;  // [V, D]
  std::vector<block::Params<Leaf>> layers;
  Leaf norm;  // [D]
  Leaf head;  // [V, D]   empty where tie_word_embeddings: use head_of()
  std::vector<mtp::Params<Leaf>> mtp;

  Leaf& head_of(const Config& config) { return config.tie_word_embeddings ? embed : head; }
  const Leaf& head_of(const Config& config) const {
    return config.tie_word_embeddings ? embed : head;
  }
};

using Weights = ModelParams<Operand>;
using Grads = ModelParams<Tensor>;

enum class ParamKind : uint8_t {
  kMatrix,  // product weights: quantised in block-FP8 checkpoints
  kPlain,   // embedding, head, gate weight, eh_proj: matrices that are never quantised
  kNorm,    // gains
  kBuffer,  // router bias
};
// How expert and tensor parallelism split a parameter. Replicated ones are applied to the tokens of
// each rank: shared experts, embedding and head among them, which so need no transfer.
enum class ParamShard : uint8_t { kReplicated, kRows, kColumns, kExpert };

struct ParamInfo {
  std::string name;
  Shape shape;
  ParamKind kind;
  ParamShard shard;
  int64_t layer = -1;   // MTP module k: num_hidden_layers + k; -1: of no layer
  int64_t expert = -1;  // routed expert; -1: of none
  // In generation where ranks split heads: every one has all tokens, so the shared experts and the
  // head are split as well.
  ParamShard decode_shard = shard;
  // In generation where ranks split sequences: attention and the head are whole.
  ParamShard widths_shard = ParamShard::kReplicated;
  bool decay() const { return shape.rank >= 2; }  // weight decay on matrices only
  bool trained() const { return kind != ParamKind::kBuffer; }
  bool is_split() const { return shard == ParamShard::kRows || shard == ParamShard::kColumns; }
};

// Sizes the vectors of a tree for a config; leaves stay empty.
template <class Leaf>
void resize(const Config& config, ModelParams<Leaf>& tree);

// Calls visit(info, leaf...) for every parameter of the config, in a fixed order, over one or more
// trees of the same shape at once: weights, gradients and moments together.
template <class Visit, class... Trees>
void for_each_param(const Config& config, Visit&& visit, Trees&... trees);

// Of a tree whose absent parameters are empty leaves: leaves the experts that are there, in order,
// as modules compute with them. NOTE: for_each_param() does not fit such a tree any more.
template <class Leaf>
void drop_absent_experts(ModelParams<Leaf>& tree);

// ---- implementation ----------------------------------------------------------------------------

template <class Leaf>
void resize(const Config& config, ModelParams<Leaf>& tree) {
  const auto num_experts = static_cast<size_t>(config.n_routed_experts);
  const auto size_block = [&](block::Params<Leaf>& b, bool is_moe) {
    if (!is_moe) return;
    b.moe.experts.w1.resize(num_experts);
    b.moe.experts.w3.resize(num_experts);
    b.moe.experts.w2.resize(num_experts);
  };
  tree.layers.resize(static_cast<size_t>(config.num_hidden_layers));
  for (size_t l = 0; l < tree.layers.size(); ++l)
    size_block(tree.layers[l], config.is_moe_layer(static_cast<int64_t>(l)));
  tree.mtp.resize(static_cast<size_t>(config.num_nextn_predict_layers));
  for (auto& module : tree.mtp) size_block(module.block, true);
}

namespace detail {

template <class Visit, class... Blocks>
void visit_block(const Config& c, const std::string& prefix, int64_t layer, Visit& visit,
                 Blocks&... b) {
  const int64_t D = c.hidden_size, H = c.num_attention_heads;
  const int64_t Dq = H * c.qk_head_dim(), Dkv = H * (c.qk_nope_head_dim + c.v_head_dim);
  const auto at = [&](const char* name, Shape shape, ParamKind kind, ParamShard shard) {
    return ParamInfo{prefix + name, shape, kind, shard, layer};
  };
  using K = ParamKind;
  using S = ParamShard;
  visit(at("attn_norm", {D}, K::kNorm, S::kReplicated), b.attn_norm...);
  if (c.q_lora_rank == 0) {
    visit(at("attn.wq", {Dq, D}, K::kMatrix, S::kRows), b.attn.wq...);
  } else {
    visit(at("attn.wq_a", {c.q_lora_rank, D}, K::kMatrix, S::kReplicated), b.attn.wq_a...);
    visit(at("attn.q_norm", {c.q_lora_rank}, K::kNorm, S::kReplicated), b.attn.q_norm...);
    visit(at("attn.wq_b", {Dq, c.q_lora_rank}, K::kMatrix, S::kRows), b.attn.wq_b...);
  }
  visit(at("attn.wkv_a", {c.latent_dim(), D}, K::kMatrix, S::kReplicated), b.attn.wkv_a...);
  visit(at("attn.kv_norm", {c.kv_lora_rank}, K::kNorm, S::kReplicated), b.attn.kv_norm...);
  visit(at("attn.wkv_b", {Dkv, c.kv_lora_rank}, K::kMatrix, S::kRows), b.attn.wkv_b...);
  visit(at("attn.wo", {D, H * c.v_head_dim}, K::kMatrix, S::kColumns), b.attn.wo...);
  visit(at("ffn_norm", {D}, K::kNorm, S::kReplicated), b.ffn_norm...);
  const auto visit_mlp = [&](const char* name, int64_t F, S rows, S columns, auto&... m) {
    const auto part = [&](const char* matrix, Shape shape, S shard, S decode_shard) {
      ParamInfo info = at(concat(name, ".", matrix).c_str(), shape, K::kMatrix, shard);
      info.decode_shard = info.widths_shard = decode_shard;
      return info;
    };
    visit(part("w1", {F, D}, rows, S::kRows), m.w1...);
    visit(part("w3", {F, D}, rows, S::kRows), m.w3...);
    visit(part("w2", {D, F}, columns, S::kColumns), m.w2...);
  };
  if (!c.is_moe_layer(layer)) {
    visit_mlp("ffn", c.intermediate_size, S::kRows, S::kColumns, b.mlp...);
    return;
  }
  visit(at("ffn.gate.weight", {c.n_routed_experts, D}, K::kPlain, S::kReplicated),
        b.moe.gate.weight...);
  visit(at("ffn.gate.bias", {c.n_routed_experts}, K::kBuffer, S::kReplicated), b.moe.gate.bias...);
  const int64_t F = c.moe_intermediate_size;
  for (size_t e = 0; e < static_cast<size_t>(c.n_routed_experts); ++e) {
    const auto of_expert = [&](const char* name, Shape shape) {
      ParamInfo info =
          at(concat("ffn.experts.", e, ".", name).c_str(), shape, K::kMatrix, S::kExpert);
      info.expert = static_cast<int64_t>(e);
      return info;
    };
    visit(of_expert("w1", {F, D}), b.moe.experts.w1[e]...);
    visit(of_expert("w3", {F, D}), b.moe.experts.w3[e]...);
    visit(of_expert("w2", {D, F}), b.moe.experts.w2[e]...);
  }
  if (c.n_shared_experts > 0)
    visit_mlp("ffn.shared_experts", c.shared_intermediate_size(), S::kReplicated, S::kReplicated,
              b.moe.shared...);
}

}  // namespace detail

template <class Visit, class... Trees>
void for_each_param(const Config& c, Visit&& visit, Trees&... trees) {
  using K = ParamKind;
  using S = ParamShard;
  const int64_t D = c.hidden_size, V = c.vocab_size;
  visit(ParamInfo{"embed", {V, D}, K::kPlain, S::kReplicated}, trees.embed...);
  for (size_t l = 0; l < static_cast<size_t>(c.num_hidden_layers); ++l)
    detail::visit_block(c, concat("layers.", l, "."), static_cast<int64_t>(l), visit,
                        trees.layers[l]...);
  visit(ParamInfo{"norm", {D}, K::kNorm, S::kReplicated}, trees.norm...);
  if (!c.tie_word_embeddings) {
    ParamInfo head{"head", {V, D}, K::kPlain, S::kReplicated};
    head.decode_shard = S::kRows;
    visit(std::move(head), trees.head...);
  }
  for (size_t k = 0; k < static_cast<size_t>(c.num_nextn_predict_layers); ++k) {
    const std::string prefix = concat("mtp.", k, ".");
    const int64_t layer = c.num_hidden_layers + static_cast<int64_t>(k);
    const auto at = [&](const char* name, Shape shape, K kind) {
      return ParamInfo{prefix + name, shape, kind, S::kReplicated, layer};
    };
    visit(at("enorm", {D}, K::kNorm), trees.mtp[k].enorm...);
    visit(at("hnorm", {D}, K::kNorm), trees.mtp[k].hnorm...);
    visit(at("eh_proj", {D, 2 * D}, K::kPlain), trees.mtp[k].eh_proj...);
    detail::visit_block(c, prefix + "block.", layer, visit, trees.mtp[k].block...);
    visit(at("norm", {D}, K::kNorm), trees.mtp[k].norm...);
  }
}

template <class Leaf>
void drop_absent_experts(ModelParams<Leaf>& tree) {
  const auto drop = [](block::Params<Leaf>& b) {
    for (auto* leaves : {&b.moe.experts.w1, &b.moe.experts.w3, &b.moe.experts.w2})
      std::erase_if(*leaves, [](const Leaf& leaf) { return leaf.empty(); });
  };
  for (auto& layer : tree.layers) drop(layer);
  for (auto& module : tree.mtp) drop(module.block);
}

}  // namespace hadal
