// config.json: the goldens' and the released model's, old and new spelling, and what is refused.
// SPDX-License-Identifier: Apache-2.0
#include "io/hf_config.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "model/params.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using hadal::testing::TempDir;

const std::string kGoldens = "tests/goldens/";

class HfConfigTest : public ::testing::Test {
 protected:
  TempDir dir_;

  std::string config_error(const std::function<void(Json&)>& change) {
    Json config = read_json(kGoldens + "base/config.json");
    change(config);
    write_json(dir_ / "config.json", config);
    try {
      read_hf_config(dir_ / "config.json");
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with(dir_ / "config.json")) << message;
      return message.substr((dir_ / "config.json").size());
    }
    return "no error";
  }
};

TEST_F(HfConfigTest, ConfigOfBase) {
  const HfConfig parsed = read_hf_config(kGoldens + "base/config.json");
  const Config& c = parsed.config;
  EXPECT_FALSE(parsed.quantization.fp8);
  EXPECT_EQ(c.vocab_size, 320);
  EXPECT_EQ(c.hidden_size, 64);
  EXPECT_EQ(c.intermediate_size, 160);
  EXPECT_EQ(c.moe_intermediate_size, 24);
  EXPECT_EQ(c.num_hidden_layers, 4);
  EXPECT_EQ(c.num_attention_heads, 4);
  EXPECT_EQ(c.q_lora_rank, 24);
  EXPECT_EQ(c.kv_lora_rank, 16);
  EXPECT_EQ(c.qk_nope_head_dim, 16);
  EXPECT_EQ(c.qk_rope_head_dim, 8);
  EXPECT_EQ(c.v_head_dim, 12);
  EXPECT_EQ(c.n_routed_experts, 16);
  EXPECT_EQ(c.n_shared_experts, 1);
  EXPECT_EQ(c.num_experts_per_tok, 4);
  EXPECT_EQ(c.n_group, 4);
  EXPECT_EQ(c.topk_group, 2);
  EXPECT_EQ(c.first_k_dense_replace, 1);
  EXPECT_EQ(c.max_position_embeddings, 512);
  EXPECT_EQ(c.routed_scaling_factor, 2.5);
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.initializer_range, 0.08);
  EXPECT_EQ(c.rope.rope_type, "default");
  EXPECT_EQ(c.rope.rope_theta, 10000.0);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_TRUE(c.rope_interleave);
  EXPECT_FALSE(c.tie_word_embeddings);
}

TEST_F(HfConfigTest, ConfigOfOdd) {
  const Config c = read_hf_config(kGoldens + "odd/config.json").config;
  EXPECT_EQ(c.rope.rope_type, "yarn");
  EXPECT_EQ(c.rope.factor, 8.0);
  EXPECT_EQ(c.rope.original_max_position_embeddings, 64);
  EXPECT_EQ(c.rope.mscale, 0.707);
  EXPECT_EQ(c.rope.mscale_all_dim, 1.0);
  EXPECT_FALSE(c.rope_interleave);
  EXPECT_FALSE(c.norm_topk_prob);
  EXPECT_TRUE(c.tie_word_embeddings);
}

TEST_F(HfConfigTest, OldSpellingOfRope) {
  Json config = read_json(kGoldens + "base/config.json");
  config.erase("rope_parameters");
  config["rope_theta"] = 50000;
  write_json(dir_ / "plain.json", config);
  EXPECT_EQ(read_hf_config(dir_ / "plain.json").config.rope.rope_theta, 50000.0);
  config["rope_scaling"] = {{"type", "yarn"},
                            {"factor", 40},
                            {"beta_fast", 32},
                            {"beta_slow", 1},
                            {"mscale", 1.0},
                            {"mscale_all_dim", 1.0},
                            {"original_max_position_embeddings", 4096}};
  config["n_shared_experts"] = nullptr;
  config["q_lora_rank"] = nullptr;
  config["eos_token_id"] = {1, 2};
  config["ep_size"] = 4;
  config["some_new_key"] = 1;
  write_json(dir_ / "yarn.json", config);
  const HfConfig parsed = read_hf_config(dir_ / "yarn.json");
  EXPECT_EQ(parsed.config.rope.rope_type, "yarn");
  EXPECT_EQ(parsed.config.rope.factor, 40.0);
  EXPECT_EQ(parsed.config.rope.mscale, 1.0);
  EXPECT_EQ(parsed.config.n_shared_experts, 0);
  EXPECT_EQ(parsed.config.q_lora_rank, 0);
  EXPECT_EQ(parsed.config.eos_token_ids, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(parsed.ignored, (std::vector<std::string>{"some_new_key"}));
}

// Without mscale the magnitude is m(1), whatever mscale_all_dim says, as in transformers.
TEST_F(HfConfigTest, AbsentMscaleStaysAbsent) {
  Json config = read_json(kGoldens + "odd/config.json");
  config["rope_parameters"].erase("mscale");
  write_json(dir_ / "config.json", config);
  const Config c = read_hf_config(dir_ / "config.json").config;
  EXPECT_NEAR(rope_magnitude(c), 1.2079441541679836, 1e-15);
  EXPECT_EQ(hf_config_to_json(c, DType::kF32, {}), config);
}

// The keys and values of the released DeepSeek-V3 (scale_fmt as in V3.1).
TEST_F(HfConfigTest, ReleasedConfig) {
  const Json released = parse_json(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "aux_loss_alpha": 0.001,
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3,
    "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "pretraining_tp": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": true,
    "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true,
    "v_head_dim": 128, "vocab_size": 129280})",
                                   "released");
  write_json(dir_ / "config.json", released);
  const HfConfig parsed = read_hf_config(dir_ / "config.json");
  EXPECT_TRUE(parsed.ignored.empty());
  EXPECT_EQ(parsed.quantization.scale_format, ScaleFormat::kPowerOfTwo);
  EXPECT_NEAR(softmax_scale(parsed.config), 0.1352338, 5e-8);
  int64_t main = 0, mtp = 0;
  for_each_param(parsed.config, [&](const ParamInfo& info) {
    (info.name.starts_with("mtp.") ? mtp : main) += info.shape.num_elements();
  });
  EXPECT_EQ(main / 10'000'000, 67102);  // 671.03B with the router biases
  EXPECT_EQ(mtp / 10'000'000, 1161);
  const Json again = hf_config_to_json(parsed.config, DType::kBF16, parsed.quantization);
  write_json(dir_ / "config.json", again);
  EXPECT_EQ(hf_config_to_json(read_hf_config(dir_ / "config.json").config, DType::kBF16,
                              parsed.quantization),
            again);
}

TEST_F(HfConfigTest, WrittenConfigsHaveTheSameKeysAndValues) {
  for (const char* name : {"base", "odd", "v3_heads"}) {
    const std::string path = kGoldens + name;
    const HfConfig parsed = read_hf_config(path + "/config.json");
    EXPECT_EQ(hf_config_to_json(parsed.config, DType::kF32, parsed.quantization),
              read_json(path + "/config.json"))
        << name;
    EXPECT_EQ(generation_config_to_json(parsed.config),
              read_json(path + "/generation_config.json"));
  }
}

// As transformers does: null in config.json, and nothing in generation_config.json.
TEST_F(HfConfigTest, AbsentSpecialTokens) {
  Config config = read_hf_config(kGoldens + "base/config.json").config;
  config.bos_token_id = -1;
  config.eos_token_ids.clear();
  const Json written = hf_config_to_json(config, DType::kF32, {});
  EXPECT_TRUE(written.at("bos_token_id").is_null() && written.at("eos_token_id").is_null());
  const Json generation = generation_config_to_json(config);
  EXPECT_FALSE(generation.contains("bos_token_id") || generation.contains("eos_token_id"));
}

TEST_F(HfConfigTest, ConfigsThatCannotBeHonoured) {
  const auto set = [&](const char* key, const Json& value) {
    return config_error([&](Json& config) { config[key] = value; });
  };
  EXPECT_EQ(set("model_type", "deepseek_v2"),
            ": model_type is \"deepseek_v2\"; hadal reads DeepSeek-V3 models (deepseek_v3), not "
            "DeepSeek-V2; choose another checkpoint");
  EXPECT_EQ(
      set("model_type", "llama"),
      ": model_type is \"llama\"; hadal reads \"deepseek_v3\" only; choose another checkpoint");
  EXPECT_EQ(set("hidden_act", "gelu"),
            ": hidden_act is \"gelu\"; hadal reads \"silu\" only; choose another checkpoint");
  EXPECT_EQ(set("attention_bias", true),
            ": attention_bias is true; hadal reads false only; choose another checkpoint");
  EXPECT_EQ(set("attention_dropout", 0.1),
            ": attention_dropout is 0.1; hadal has no dropout: set it to 0");
  EXPECT_EQ(set("moe_layer_freq", 2),
            ": moe_layer_freq is 2; hadal reads 1 only; choose another checkpoint");
  EXPECT_EQ(
      set("num_key_value_heads", 2),
      ": num_key_value_heads is 2; hadal reads 4 only (num_attention_heads: the latent is shared "
      "by all heads); choose another checkpoint");
  EXPECT_EQ(
      set("qk_head_dim", 32),
      ": qk_head_dim is 32; hadal reads 24 only (qk_nope_head_dim + qk_rope_head_dim); choose "
      "another checkpoint");
  EXPECT_EQ(
      set("num_attention_heads", 0),
      ": num_key_value_heads is 4; hadal reads 0 only (num_attention_heads: the latent is shared "
      "by all heads); choose another checkpoint");
  EXPECT_EQ(set("hidden_size", 0), ": hidden_size is 0; allowed: 1 to 16777216");
  EXPECT_EQ(set("hidden_size", "64"), ": hidden_size is \"64\"; an integer is needed");
  EXPECT_EQ(set("scoring_func", "tanh"),
            ": scoring_func is \"tanh\"; allowed: \"sigmoid\", \"softmax\"");
  EXPECT_EQ(set("topk_method", "greedy"),
            ": topk_method is \"greedy\"; allowed: \"noaux_tc\", \"group_limited_greedy\"");
  EXPECT_EQ(set("rope_scaling", {{"type", "yarn"}}),
            ": holds both rope_parameters and rope_scaling; remove rope_scaling");
  EXPECT_EQ(set("rope_theta", 5000),
            ": rope_theta is 5000 outside and 10000 inside rope_parameters; remove one");
  EXPECT_EQ(set("rope_parameters", {{"rope_type", "linear"}}),
            ": rope_type is \"linear\"; allowed: \"default\", \"yarn\"");
  EXPECT_EQ(
      set("rope_parameters", {{"rope_type", "yarn"}, {"truncate", false}}),
      ": rope_parameters: truncate is false; hadal reads true only; choose another checkpoint");
  EXPECT_EQ(config_error([](Json& config) { config.erase("q_lora_rank"); }),
            ": q_lora_rank is missing; add it");
}

TEST_F(HfConfigTest, QuantizationConfigs) {
  const auto set = [&](const Json& value) {
    return config_error([&](Json& config) { config["quantization_config"] = value; });
  };
  EXPECT_EQ(set({{"quant_method", "awq"}}),
            ": quantization_config: quant_method is \"awq\"; hadal reads \"fp8\" with 128 x 128 "
            "blocks, or unquantised checkpoints; choose another checkpoint");
  EXPECT_EQ(
      set({{"quant_method", "fp8"}, {"weight_block_size", {64, 128}}}),
      ": quantization_config: weight_block_size is [64,128]; hadal reads [128,128] only; choose "
      "another checkpoint");
  EXPECT_EQ(set({{"quant_method", "fp8"}}),
            ": quantization_config: weight_block_size is missing; add it");
  EXPECT_EQ(set({{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}, {"fmt", "e5m2"}}),
            ": quantization_config: fmt is \"e5m2\"; hadal reads \"e4m3\" only; choose another "
            "checkpoint");
  Json config = read_json(kGoldens + "v3_heads/config.json");
  config["quantization_config"]["scale_fmt"] = "ue8m0";
  write_json(dir_ / "config.json", config);
  const Quantization quantization = read_hf_config(dir_ / "config.json").quantization;
  EXPECT_TRUE(quantization.fp8);
  EXPECT_EQ(quantization.scale_format, ScaleFormat::kPowerOfTwo);
}

TEST_F(HfConfigTest, ModelOfARunRefusesUnknownKeys) {
  Json model = read_json(kGoldens + "base/config.json");
  EXPECT_EQ(model_from_json(JsonObject(model, "run.json: model")).hidden_size, 64);
  model.erase("model_type");
  EXPECT_EQ(model_from_json(JsonObject(model, "run.json: model")).hidden_size, 64);
  model["n_routed_expert"] = 3;
  EXPECT_ERROR(
      model_from_json(JsonObject(model, "run.json: model")),
      "run.json: model: unknown key \"n_routed_expert\"; did you mean \"n_routed_experts\"?");
  model.erase("n_routed_expert");
  model["rope_parameters"]["beta_fas"] = 3;
  EXPECT_ERROR(model_from_json(JsonObject(model, "run.json: model")),
               "run.json: model: rope_parameters: unknown key \"beta_fas\"; did you mean "
               "\"beta_fast\"?");
}

}  // namespace
}  // namespace hadal::io
