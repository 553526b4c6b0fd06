// Names of weights in both directions, each row by its literal.
// SPDX-License-Identifier: Apache-2.0
#include "io/hf_names.h"

#include <gtest/gtest.h>

#include <utility>

#include "io/hf_config.h"
#include "model/params.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

TEST(HfNames, GoBothWays) {
  Config config = read_hf_config("tests/goldens/base/config.json").config;
  const std::pair<const char*, const char*> names[] = {
      {"embed", "model.embed_tokens.weight"},
      {"norm", "model.norm.weight"},
      {"head", "lm_head.weight"},
      {"layers.0.attn_norm", "model.layers.0.input_layernorm.weight"},
      {"layers.0.ffn_norm", "model.layers.0.post_attention_layernorm.weight"},
      {"layers.0.attn.wq", "model.layers.0.self_attn.q_proj.weight"},
      {"layers.0.attn.wq_a", "model.layers.0.self_attn.q_a_proj.weight"},
      {"layers.0.attn.q_norm", "model.layers.0.self_attn.q_a_layernorm.weight"},
      {"layers.0.attn.wq_b", "model.layers.0.self_attn.q_b_proj.weight"},
      {"layers.3.attn.wkv_a", "model.layers.3.self_attn.kv_a_proj_with_mqa.weight"},
      {"layers.3.attn.kv_norm", "model.layers.3.self_attn.kv_a_layernorm.weight"},
      {"layers.3.attn.wkv_b", "model.layers.3.self_attn.kv_b_proj.weight"},
      {"layers.3.attn.wo", "model.layers.3.self_attn.o_proj.weight"},
      {"layers.0.ffn.w1", "model.layers.0.mlp.gate_proj.weight"},
      {"layers.0.ffn.w3", "model.layers.0.mlp.up_proj.weight"},
      {"layers.0.ffn.w2", "model.layers.0.mlp.down_proj.weight"},
      {"layers.1.ffn.gate.weight", "model.layers.1.mlp.gate.weight"},
      {"layers.1.ffn.gate.bias", "model.layers.1.mlp.gate.e_score_correction_bias"},
      {"layers.1.ffn.experts.15.w1", "model.layers.1.mlp.experts.15.gate_proj.weight"},
      {"layers.1.ffn.experts.15.w3", "model.layers.1.mlp.experts.15.up_proj.weight"},
      {"layers.1.ffn.experts.15.w2", "model.layers.1.mlp.experts.15.down_proj.weight"},
      {"layers.1.ffn.shared_experts.w1", "model.layers.1.mlp.shared_experts.gate_proj.weight"},
      {"mtp.0.enorm", "model.layers.4.enorm.weight"},
      {"mtp.0.hnorm", "model.layers.4.hnorm.weight"},
      {"mtp.0.eh_proj", "model.layers.4.eh_proj.weight"},
      {"mtp.0.norm", "model.layers.4.shared_head.norm.weight"},
      {"mtp.1.block.attn_norm", "model.layers.5.input_layernorm.weight"},
  };
  for (const auto& [name, hf] : names) {
    EXPECT_EQ(hf_name(config, name), hf);
    EXPECT_EQ(reference_name(config, hf), name);
  }
  EXPECT_EQ(reference_name(config, "model.layers.4.embed_tokens.weight"), std::nullopt);
  EXPECT_EQ(reference_name(config, "model.layers.x.enorm.weight"), std::nullopt);
  EXPECT_EQ(reference_name(config, "model.layers.3.enorm.weight"), std::nullopt);
  EXPECT_ERROR(hf_name(config, "layers.3.attn.w"),
               "internal error: layers.3.attn.w is not the name of a parameter");
  int count = 0;
  for (int64_t rank : {int64_t{24}, int64_t{0}}) {
    config.q_lora_rank = rank;
    for_each_param(config, [&](const ParamInfo& info) {
      EXPECT_EQ(reference_name(config, hf_name(config, info.name)), info.name);
      ++count;
    });
  }
  EXPECT_GT(count, 400);
}

}  // namespace
}  // namespace hadal::io
