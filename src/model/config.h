// Config: every field of a DeepSeek-V3 architecture, named as in Hugging Face's config.json.
//
// Explicit and validated; nothing is inferred from an unrelated field. Parsing lives in io/hf.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/precision.h"

namespace hadal {

enum class ScoringFunc : uint8_t { kSigmoid, kSoftmax };            // scoring_func
enum class TopkMethod : uint8_t { kNoauxTc, kGroupLimitedGreedy };  // topk_method: V3, V2

// rope_parameters (or the older rope_theta + rope_scaling). YaRN applies at every position and
// length whenever rope_type is "yarn" (notes, section 0).
struct RopeParameters {
  std::string rope_type = "default";  // "default" or "yarn"
  double rope_theta = 10000.0;
  double factor = 1.0;
  int64_t original_max_position_embeddings = 4096;
  double beta_fast = 32.0, beta_slow = 1.0;
  double mscale = 1.0, mscale_all_dim = 0.0;
  double attention_factor = 0.0;  // 0: from mscale and mscale_all_dim
};

struct Config {
  int64_t vocab_size = 129280;
  int64_t hidden_size = 7168;
  int64_t intermediate_size = 18432;     // dense layers
  int64_t moe_intermediate_size = 2048;  // one expert
  int64_t num_hidden_layers = 61;        // without MTP modules
  int64_t num_attention_heads = 128;
  int64_t q_lora_rank = 1536;  // 0 (null in JSON): one matrix wq
  int64_t kv_lora_rank = 512;
  int64_t qk_nope_head_dim = 128;
  int64_t qk_rope_head_dim = 64;
  int64_t v_head_dim = 128;
  int64_t n_routed_experts = 256;
  int64_t n_shared_experts = 1;  // one MLP of n_shared_experts * moe_intermediate_size
  int64_t num_experts_per_tok = 8;
  int64_t n_group = 8;
  int64_t topk_group = 4;
  int64_t first_k_dense_replace = 3;     // the first layers have a dense MLP
  int64_t num_nextn_predict_layers = 1;  // MTP depth D
  bool norm_topk_prob = true;
  double routed_scaling_factor = 2.5;
  ScoringFunc scoring_func = ScoringFunc::kSigmoid;
  TopkMethod topk_method = TopkMethod::kNoauxTc;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  bool rope_interleave = true;
  RopeParameters rope;
  int64_t max_position_embeddings = 163840;
  double initializer_range = 0.02;
  int64_t bos_token_id = 0;
  std::vector<int64_t> eos_token_ids = {1};

  Precision precision = {};  // of training; not in a checkpoint's config.json

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t latent_dim() const {
    return kv_lora_rank + qk_rope_head_dim;
  }  // cached per token and layer
  int64_t shared_intermediate_size() const { return n_shared_experts * moe_intermediate_size; }
  bool is_moe_layer(int64_t layer) const {
    return layer >= first_k_dense_replace;
  }                                // MTP blocks too
  int64_t num_moe_layers() const;  // MTP blocks included

  // Throws an Error that names the field, its value and the allowed range.
  void validate() const;
};

// Angular frequency of each rope pair, YaRN included (notes, section 8).    [qk_rope_head_dim / 2]
std::vector<double> rope_inv_freq(const Config& config);
// What cos and sin are multiplied by: m(mscale) / m(mscale_all_dim) under YaRN, else 1.
double rope_magnitude(const Config& config);
// What scores are multiplied by before softmax: 1/sqrt(Dn+Dr), times m(mscale_all_dim)^2 under
// YaRN.
double softmax_scale(const Config& config);

}  // namespace hadal
