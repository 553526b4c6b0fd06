// Hugging Face checkpoints: the goldens load whole, what we save reads back bit for bit, and every
// kind of damage is one sentence.
// SPDX-License-Identifier: Apache-2.0
#include "io/hf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "io/atomic.h"
#include "io/fp8.h"
#include "io/hf_names.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using hadal::testing::TempDir;
namespace fs = std::filesystem;

const std::string kGoldens = "tests/goldens/";

class Hf : public ::testing::Test {
 protected:
  ThreadPool threads_{2};
  Pool pool_;
  Context ctx_{Device{}, Stream{}, threads_, pool_};
  TempDir dir_;

  // A copy of a golden checkpoint whose tensors and config can be changed.
  std::string edited(
      const std::string& golden, const std::function<void(std::vector<TensorSource>&)>& change,
      const std::function<void(Json&)>& change_config = [](Json&) {}) {
    const SafetensorsFile file(kGoldens + golden + "/model.safetensors");
    std::vector<TensorSource> sources;
    for (const auto& [name, tensor] : file.tensors()) {
      TensorSource source{.name = name,
                          .type = tensor.type,
                          .shape = tensor.shape,
                          .data = tensor.data,
                          .fill = {}};
      sources.push_back(source);
    }
    change(sources);
    Json config = read_json(kGoldens + golden + "/config.json");
    change_config(config);
    write_safetensors_dir(dir_.path(), sources, size_t{1} << 40);
    write_json(dir_ / "config.json", config);
    return dir_.path();
  }

  static TensorSource& named(std::vector<TensorSource>& sources, const std::string& name) {
    for (TensorSource& source : sources)
      if (source.name == name) return source;
    HADAL_FAIL("test: no tensor ", name);
  }
  static void erase(std::vector<TensorSource>& sources, const std::string& name) {
    std::erase_if(sources, [&](const TensorSource& source) { return source.name == name; });
  }

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

void write_json_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

void expect_same_file(const SafetensorsFile& a, const SafetensorsFile& b) {
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (const auto& [name, tensor] : a.tensors()) {
    const StoredTensor& other = b.at(name);
    EXPECT_EQ(tensor.type, other.type) << name;
    EXPECT_EQ(tensor.shape, other.shape) << name;
    ASSERT_EQ(tensor.bytes, other.bytes) << name;
    EXPECT_EQ(std::memcmp(tensor.data, other.data, tensor.bytes), 0) << name;
  }
}

TEST_F(Hf, GoldensLoadWhole) {
  for (const char* name : {"base", "odd", "v3_heads"}) {
    const HfCheckpoint checkpoint = open_checkpoint(kGoldens + name);
    EXPECT_TRUE(checkpoint.ignored.empty()) << name;
    EXPECT_EQ(checkpoint.config.num_nextn_predict_layers, 1);
    Weights weights;
    const Block block = load_weights(ctx_, checkpoint, WeightFormat::kKeep, weights);
    EXPECT_EQ(block.size(), 0u) << name;  // all of it used in place
    EXPECT_EQ(weights.embed.data.shape(),
              (Shape{checkpoint.config.vocab_size, checkpoint.config.hidden_size}));
    EXPECT_EQ(weights.head.empty(), checkpoint.config.tie_word_embeddings);
  }
}

TEST_F(Hf, ConfigOfBase) {
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

TEST_F(Hf, ConfigOfOdd) {
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

TEST_F(Hf, OldSpellingOfRope) {
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

// The keys and values of the released DeepSeek-V3 (scale_fmt as in V3.1).
TEST_F(Hf, ReleasedConfig) {
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

// Random damage to a config or an index: an Error or a config, never a crash.
TEST_F(Hf, RandomDamageNeverCrashes) {
  const HfCheckpoint base = open_checkpoint(kGoldens + "base");
  Weights weights;
  const Block block = load_weights(ctx_, base, WeightFormat::kKeep, weights);
  save_checkpoint(dir_.path(), base.config, weights, {.max_shard_bytes = 1'000'000});
  const Rng rng(11, stream_id("damage"));
  uint64_t draw = 0;
  int errors = 0, reads = 0;
  for (const char* name : {"config.json", "model.safetensors.index.json"}) {
    const std::string good = read_file(dir_ / name, 1 << 20);
    for (int round = 0; round < 300; ++round) {
      std::string text = good;
      const size_t at = rng.u64(draw++) % text.size();
      switch (rng.u64(draw++) % 4) {
        case 0:
          text[at] = static_cast<char>(rng.u64(draw++));
          break;
        case 1:
          text[at] = "0123456789{}[]\",:-e."[rng.u64(draw++) % 20];
          break;
        case 2:
          text.erase(at, 1 + rng.u64(draw++) % 20);
          break;
        default:
          text.insert(at, text.substr(rng.u64(draw++) % text.size(), 9));
      }
      write_json_text(dir_ / name, text);
      try {
        open_checkpoint(dir_.path());
        ++reads;
      } catch (const Error&) {
        ++errors;
      }
    }
    write_json_text(dir_ / name, good);
  }
  EXPECT_GT(errors, 300);
  EXPECT_GT(reads, 10);
}

TEST_F(Hf, WrittenConfigsHaveTheSameKeysAndValues) {
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

TEST_F(Hf, ConfigsThatCannotBeHonoured) {
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

TEST_F(Hf, QuantizationConfigs) {
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

TEST_F(Hf, ModelOfARunRefusesUnknownKeys) {
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

TEST_F(Hf, NamesGoBothWays) {
  Config config = read_hf_config(kGoldens + "base/config.json").config;
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

TEST_F(Hf, SavedGoldensAreBitIdentical) {
  for (const char* name : {"base", "odd", "v3_heads"}) {
    const HfCheckpoint checkpoint = open_checkpoint(kGoldens + name);
    Weights weights;
    const Block block = load_weights(ctx_, checkpoint, WeightFormat::kKeep, weights);
    const TempDir out;
    save_checkpoint(out.path(), checkpoint.config, weights,
                    {.dtype = DType::kF32, .quantization = checkpoint.quantization});
    expect_same_file(SafetensorsFile(kGoldens + name + "/model.safetensors"),
                     SafetensorsFile(out / "model.safetensors"));
    EXPECT_TRUE(read_file(kGoldens + name + "/model.safetensors", 1 << 24) ==
                read_file(out / "model.safetensors", 1 << 24))
        << name;
    EXPECT_EQ(read_json(out / "config.json"), read_json(kGoldens + name + "/config.json"));
  }
}

// The sizes, types and names of a model that is trained here, through a tree of owned tensors.
TEST_F(Hf, TrainedTreeRoundTrip) {
  const HfCheckpoint checkpoint = open_checkpoint(kGoldens + "base");
  ModelParams<Tensor> tree;
  resize(checkpoint.config, tree);
  std::vector<Block> blocks;
  for_each_param(
      checkpoint.config,
      [&](const ParamInfo& info, Tensor& leaf) {
        blocks.push_back(pool_.take_tensor(DType::kF32, info.shape, &leaf));
      },
      tree);
  read_weights(ctx_, checkpoint, tree);
  save_checkpoint(dir_.path(), checkpoint.config, tree, {.max_shard_bytes = 300'000});
  const HfCheckpoint again = open_checkpoint(dir_.path());
  EXPECT_GE(again.files.num_files(), 7u);
  const SafetensorsFile before(kGoldens + "base/model.safetensors");
  ASSERT_EQ(again.files.tensors().size(), before.tensors().size());
  for (const auto& [name, tensor] : again.files.tensors())
    EXPECT_EQ(std::memcmp(tensor->data, before.at(name).data, tensor->bytes), 0) << name;
  blocks.clear();
}

TEST_F(Hf, Bf16KeepsBiasesInF32) {
  const HfCheckpoint checkpoint = open_checkpoint(kGoldens + "base");
  Weights weights;
  const Block block = load_weights(ctx_, checkpoint, WeightFormat::kF32, weights);
  save_checkpoint(dir_.path(), checkpoint.config, weights, {.dtype = DType::kBF16});
  EXPECT_EQ(read_json(dir_ / "config.json")["dtype"], "bfloat16");
  const HfCheckpoint half = open_checkpoint(dir_.path());
  for (const HfParam& param : half.params)
    EXPECT_EQ(param.data->type,
              param.info.kind == ParamKind::kBuffer ? StoredType::kF32 : StoredType::kBF16);

  Weights as_bf16, as_f32, as_f64, original;
  const Block b0 = load_weights(ctx_, half, WeightFormat::kBF16, as_bf16);
  const Block b1 = load_weights(ctx_, half, WeightFormat::kF32, as_f32);
  const Block b2 = load_weights(ctx_, half, WeightFormat::kF64, as_f64);
  const Block b3 = load_weights(ctx_, checkpoint, WeightFormat::kF32, original);
  for_each_param(
      half.config,
      [&](const ParamInfo& info, Operand& h, Operand& f, Operand& d, Operand& o) {
        const bool exact = info.kind == ParamKind::kNorm || info.kind == ParamKind::kBuffer ||
                           info.name.ends_with("gate.weight");
        EXPECT_EQ(h.data.dtype(), exact ? DType::kF32 : DType::kBF16) << info.name;
        EXPECT_EQ(f.data.dtype(), DType::kF32);
        EXPECT_EQ(d.data.dtype(), DType::kF64);
        for (int64_t i = 0; i < f.data.num_elements(); ++i) {
          const float source = o.data.data<float>()[i];
          const float want = info.kind == ParamKind::kBuffer ? source : to_f32(to_bf16(source));
          ASSERT_EQ(f.data.data<float>()[i], want) << info.name;
          ASSERT_EQ(d.data.data<double>()[i], static_cast<double>(want)) << info.name;
          ASSERT_EQ(load_element(h.data.raw(), h.data.dtype(), i), static_cast<double>(want));
        }
      },
      as_bf16, as_f32, as_f64, original);
}

TEST_F(Hf, Fp8Decodes) {
  const HfCheckpoint checkpoint = open_checkpoint(kGoldens + "v3_heads");
  Weights kept, decoded, bf16_weights;
  const Block b0 = load_weights(ctx_, checkpoint, WeightFormat::kKeep, kept);
  const Block b1 = load_weights(ctx_, checkpoint, WeightFormat::kF32, decoded);
  const Block b2 = load_weights(ctx_, checkpoint, WeightFormat::kBF16, bf16_weights);
  int quantised = 0;
  for_each_param(
      checkpoint.config,
      [&](const ParamInfo& info, Operand& q, Operand& f, Operand& h) {
        EXPECT_EQ(!q.scale.empty(), info.kind == ParamKind::kMatrix) << info.name;
        if (q.scale.empty()) return;
        ++quantised;
        const int64_t N = info.shape[0], K = info.shape[1];
        for (int64_t n = 0; n < N; ++n)
          for (int64_t k = 0; k < K; ++k) {
            const float scale = q.scale.data<float>()[n / 128 * q.scale.dim(1) + k / 128];
            const float want = to_f32(q.data.data<e4m3>()[n * K + k]) * scale;
            ASSERT_EQ(f.data.data<float>()[n * K + k], want) << info.name;
            ASSERT_EQ(h.data.data<bf16>()[n * K + k].bits, to_bf16(want).bits) << info.name;
          }
      },
      kept, decoded, bf16_weights);
  EXPECT_EQ(quantised, 8 + 2 * (5 + 17 * 3));
}

// Decoded weights, quantised again, are what they were: the largest element of a block is 448.
TEST_F(Hf, Fp8SavesWhatItDecodesTo) {
  const HfCheckpoint checkpoint = open_checkpoint(kGoldens + "v3_heads");
  Weights decoded;
  const Block b0 = load_weights(ctx_, checkpoint, WeightFormat::kF32, decoded);
  for (ScaleFormat format : {ScaleFormat::kF32, ScaleFormat::kPowerOfTwo}) {
    const TempDir out;
    const Quantization quantization{.fp8 = true, .scale_format = format};
    save_checkpoint(out.path(), checkpoint.config, decoded, {.quantization = quantization});
    const HfCheckpoint saved = open_checkpoint(out.path());
    EXPECT_EQ(saved.quantization.scale_format, format);
    Weights again;
    const Block b1 = load_weights(ctx_, saved, WeightFormat::kF32, again);
    for (const HfParam& param : saved.params) {
      if (param.scale == nullptr) continue;
      const auto* scale = reinterpret_cast<const float*>(param.scale->data);
      for (size_t i = 0; i < param.scale->bytes / 4; ++i)
        EXPECT_TRUE(format == ScaleFormat::kF32 || is_power_of_two(scale[i]));
    }
    for_each_param(
        saved.config,
        [&](const ParamInfo& info, Operand& a, Operand& b) {
          for (int64_t i = 0; i < a.data.num_elements(); ++i) {
            const float x = a.data.data<float>()[i], y = b.data.data<float>()[i];
            const float bound =
                info.kind != ParamKind::kMatrix ? 0.0f : std::fabs(x) / 16.0f + 1e-4f;
            ASSERT_LE(std::fabs(x - y), bound) << info.name;
          }
        },
        decoded, again);
    // A second trip changes nothing.
    const TempDir twice;
    save_checkpoint(twice.path(), saved.config, again, {.quantization = quantization});
    if (format == ScaleFormat::kPowerOfTwo) continue;
    Weights third;
    const HfCheckpoint saved_twice = open_checkpoint(twice.path());
    const Block b2 = load_weights(ctx_, saved_twice, WeightFormat::kF32, third);
    for_each_param(
        saved.config,
        [&](const ParamInfo& info, Operand& a, Operand& b) {
          for (int64_t i = 0; i < a.data.num_elements(); ++i)
            ASSERT_NEAR(a.data.data<float>()[i], b.data.data<float>()[i],
                        1e-6f * std::fabs(a.data.data<float>()[i]))
                << info.name;
        },
        again, third);
  }
}

TEST(Fp8, RaggedBlocksAndScales) {
  constexpr int64_t N = 130, K = 257;
  std::vector<float> w(N * K);
  for (int64_t i = 0; i < N * K; ++i)
    w[static_cast<size_t>(i)] = static_cast<float>(Rng(3, 4).normal(static_cast<uint64_t>(i)));
  w[0] = -7.0f;                      // block [0, 0]
  for (int64_t n = 128; n < N; ++n)  // block [1, 2]
    w[static_cast<size_t>(n * K + 256)] = 0.0f;
  ASSERT_EQ(scale_shape({N, K}), (Shape{2, 3}));
  std::vector<float> scale(6), power(6), row(K);
  block_scales("w", w.data(), N, K, ScaleFormat::kF32, scale.data());
  block_scales("w", w.data(), N, K, ScaleFormat::kPowerOfTwo, power.data());
  EXPECT_EQ(scale[0], 7.0f / 448.0f);
  EXPECT_EQ(power[0], 0x1p-6f);  // 7/448 is 2^-6 itself
  EXPECT_EQ(scale[5], 1e-4f / 448.0f);
  std::vector<e4m3> q(N * K);
  block_quantise(w.data(), scale.data(), N, K, q.data());
  for (int64_t n = 0; n < N; ++n) {
    block_dequantise_row(q.data() + n * K, scale.data() + n / 128 * 3, K, row.data());
    for (int64_t k = 0; k < K; ++k) {
      const float x = w[static_cast<size_t>(n * K + k)], y = row[static_cast<size_t>(k)];
      const float s = scale[static_cast<size_t>(n / 128 * 3 + k / 128)];
      ASSERT_LE(std::fabs(x - y), std::max(std::fabs(x) / 16.0f, s * 0x1p-10f) * 1.0001f);
    }
  }
  for (size_t b = 0; b < 6; ++b) {
    EXPECT_TRUE(is_power_of_two(power[b]));
    EXPECT_GE(power[b], scale[b]);
    EXPECT_LT(power[b], 2.0f * scale[b]);
  }
  w[257] = INFINITY;
  EXPECT_ERROR(
      block_scales("w", w.data(), N, K, ScaleFormat::kF32, scale.data()),
      "tensor w: element [1, 0] is inf; FP8 holds finite weights only: save as bf16 or f32, "
      "or train again");
}

TEST_F(Hf, UnalignedTensorsAreCopied) {
  // A header of a length that is no multiple of 4 puts every f32 at an odd address.
  std::string bytes = read_file(kGoldens + "base/model.safetensors", 1 << 24);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  ++length;
  std::memcpy(bytes.data(), &length, 8);
  bytes.insert(7 + length, 1, ' ');
  write_file_atomic(dir_ / "model.safetensors", bytes);
  fs::copy(kGoldens + "base/config.json", dir_ / "config.json");
  const HfCheckpoint moved = open_checkpoint(dir_.path()),
                     base = open_checkpoint(kGoldens + "base");
  Weights a, b;
  const Block b0 = load_weights(ctx_, moved, WeightFormat::kF32, a);
  const Block b1 = load_weights(ctx_, base, WeightFormat::kF32, b);
  EXPECT_GT(b0.size(), 1'000'000u);
  for_each_param(
      base.config,
      [&](const ParamInfo& info, Operand& x, Operand& y) {
        EXPECT_EQ(std::memcmp(x.data.raw(), y.data.raw(), static_cast<size_t>(x.data.num_bytes())),
                  0)
            << info.name;
      },
      a, b);
}

TEST_F(Hf, MtpModulesCanBeLeftOut) {
  const HfCheckpoint without = open_checkpoint(kGoldens + "base", 0);
  EXPECT_EQ(without.config.num_nextn_predict_layers, 0);
  EXPECT_ERROR(
      open_checkpoint(kGoldens + "base", 2),
      kGoldens + "base: 2 MTP modules asked for; allowed: 0 to num_nextn_predict_layers = 1");
  const std::string dir = edited("base", [](std::vector<TensorSource>& sources) {
    std::erase_if(sources,
                  [](const TensorSource& s) { return s.name.starts_with("model.layers.4."); });
  });
  EXPECT_ERROR(open_checkpoint(dir),
               dir +
                   ": config.json has num_nextn_predict_layers = 1, but the files hold no "
                   "model.layers.4.* tensors; set num_nextn_predict_layers to 0 to load the "
                   "checkpoint without that MTP module");
  EXPECT_EQ(open_checkpoint(dir, 0).config.num_nextn_predict_layers, 0);
}

TEST_F(Hf, MissingExtraAndMisshapenTensors) {
  const std::string file = dir_ / "model.safetensors";
  const std::string o_proj = "model.layers.3.self_attn.o_proj.weight";
  std::string dir = edited("base", [&](auto& sources) { erase(sources, o_proj); });
  EXPECT_ERROR(open_checkpoint(dir), dir + ": tensor " + o_proj +
                                         " [64, 48] is missing; download the checkpoint again, or "
                                         "correct config.json");
  edited("base", [&](auto& sources) { named(sources, o_proj).shape = {48, 64}; });
  EXPECT_ERROR(
      open_checkpoint(dir),
      file + ": tensor " + o_proj +
          " has the shape [48, 64]; config.json asks for [64, 48]; correct config.json, or use "
          "the files that belong to it");
  edited("base", [&](auto& sources) { named(sources, o_proj).type = StoredType::kI32; });
  EXPECT_ERROR(open_checkpoint(dir),
               file + ": tensor " + o_proj + " is I32; F32, BF16, F16, F64 or F8_E4M3 is needed");
  edited("base", [&](auto& sources) {
    sources.push_back(named(sources, o_proj));
    sources.back().name = "model.layers.3.self_attn.o_proj.bias";
  });
  EXPECT_ERROR(open_checkpoint(dir),
               file +
                   ": tensor model.layers.3.self_attn.o_proj.bias [64, 48] does not belong to the "
                   "model of config.json; correct config.json, or use the files that belong to it");
  edited(
      "base", [](auto&) {}, [](Json& config) { config.erase("num_nextn_predict_layers"); });
  EXPECT_ERROR(
      open_checkpoint(dir),
      file +
          ": tensor model.layers.4.eh_proj.weight belongs to an MTP module, but config.json "
          "has num_nextn_predict_layers = 0; correct num_nextn_predict_layers");
  edited("base", [&](auto& sources) {
    sources.push_back(named(sources, "model.norm.weight"));
    sources.back().name = "model.layers.0.self_attn.rotary_emb.inv_freq";
  });
  EXPECT_EQ(open_checkpoint(dir).params.size(), open_checkpoint(kGoldens + "base").params.size());
}

TEST_F(Hf, CopiesMustBeEqual) {
  std::vector<float> other(320 * 64, 1.0f);
  const std::string file = dir_ / "model.safetensors";
  for (const char* part : {"embed_tokens", "shared_head.head"}) {
    const std::string name = concat("model.layers.4.", part, ".weight");
    const std::string shared = part[0] == 'e' ? "model.embed_tokens.weight" : "lm_head.weight";
    edited("base", [&](auto& sources) { named(sources, name).data = other.data(); });
    EXPECT_ERROR(open_checkpoint(dir_.path()),
                 file + ": tensor " + name + " differs from " + shared +
                     ", which the model shares with it; hadal needs them equal: choose another "
                     "checkpoint");
    edited("base", [&](auto& sources) { erase(sources, name); });
    EXPECT_NO_THROW(open_checkpoint(dir_.path()));
  }
  edited("odd", [&](auto& sources) {
    sources.push_back(named(sources, "model.embed_tokens.weight"));
    sources.back().name = "lm_head.weight";
  });
  EXPECT_NO_THROW(open_checkpoint(dir_.path()));
}

TEST_F(Hf, Fp8NeedsScalesAndAConfig) {
  const std::string name = "model.layers.1.mlp.experts.3.up_proj.weight";
  const std::string file = dir_ / "model.safetensors";
  edited("v3_heads", [&](auto& sources) { erase(sources, name + "_scale_inv"); });
  EXPECT_ERROR(open_checkpoint(dir_.path()),
               file + ": tensor " + name + " is F8_E4M3, but " + name +
                   "_scale_inv is missing; download the checkpoint again");
  edited("v3_heads", [&](auto& sources) { named(sources, name + "_scale_inv").shape = {2, 1}; });
  EXPECT_ERROR(
      open_checkpoint(dir_.path()),
      file + ": tensor " + name +
          "_scale_inv has the shape [2, 1]; config.json asks for [1, 2]; correct config.json, "
          "or use the files that belong to it");
  edited("v3_heads",
         [&](auto& sources) { named(sources, name + "_scale_inv").type = StoredType::kI32; });
  EXPECT_ERROR(open_checkpoint(dir_.path()),
               file + ": tensor " + name + "_scale_inv is I32; F32 is needed");
  edited(
      "v3_heads", [](auto&) {}, [](Json& config) { config.erase("quantization_config"); });
  EXPECT_ERROR(open_checkpoint(dir_.path()),
               file +
                   ": tensor model.layers.0.self_attn.q_a_proj.weight is F8_E4M3, but config.json "
                   "has no quantization_config for it; add it");
}

TEST_F(Hf, NoCheckpointThere) {
  EXPECT_ERROR(open_checkpoint(dir_.path()),
               "cannot open " + dir_.path() +
                   "/config.json: No such file or directory; check the "
                   "path");
}

}  // namespace
}  // namespace hadal::io
