// Reading and writing of config.json, key by key.
// SPDX-License-Identifier: Apache-2.0
#include "io/hf_config.h"

#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/tensor.h"
#include "io/int_weights.h"

namespace hadal::io {

namespace {

constexpr const char* kTransformersVersion = "5.17.0";  // whose layout is written
constexpr const char* kOther = "; choose another checkpoint";

// Keys of published configs that say nothing about the function of the model.
constexpr const char* kHarmless[] = {"_attn_implementation",
                                     "_name_or_path",
                                     "add_cross_attention",
                                     "architectures",
                                     "auto_map",
                                     "aux_loss_alpha",
                                     "bad_words_ids",
                                     "chunk_size_feed_forward",
                                     "cross_attention_hidden_size",
                                     "dtype",
                                     "ep_size",
                                     "finetuning_task",
                                     "head_dim",
                                     "id2label",
                                     "is_decoder",
                                     "is_encoder_decoder",
                                     "keys_to_ignore_at_inference",
                                     "label2id",
                                     "model_max_length",
                                     "output_attentions",
                                     "output_hidden_states",
                                     "output_scores",
                                     "pad_token_id",
                                     "prefix",
                                     "pretraining_tp",
                                     "problem_type",
                                     "return_dict",
                                     "return_dict_in_generate",
                                     "seq_aux",
                                     "task_specific_params",
                                     "tf_legacy_loss",
                                     "tokenizer_class",
                                     "torch_dtype",
                                     "torchscript",
                                     "transformers_version",
                                     "unsloth_fixed",
                                     "use_bfloat16",
                                     "use_cache"};

void check_string(const JsonObject& object, const char* key, const std::string& needed) {
  if (!object.has(key)) return;
  const std::string value = object.string(key);
  HADAL_CHECK(value == needed, object.where(), ": ", key, " is \"", value, "\"; hadal reads \"",
              needed, "\" only", kOther);
}

void check_integer(const JsonObject& object, const char* key, int64_t needed, const char* because) {
  if (!object.has(key)) return;
  const int64_t value = object.integer(key);
  HADAL_CHECK(value == needed, object.where(), ": ", key, " is ", value, "; hadal reads ", needed,
              " only", because, kOther);
}

// Features of other architectures that a deepseek_v3 config could ask for.
void check_supported(const JsonObject& object, const Config& config) {
  check_string(object, "hidden_act", "silu");
  HADAL_CHECK(!object.boolean("attention_bias", false), object.where(),
              ": attention_bias is true; hadal reads false only", kOther);
  HADAL_CHECK(object.number("attention_dropout", 0.0) == 0.0, object.where(),
              ": attention_dropout is ", object.number("attention_dropout", 0.0),
              "; hadal has no dropout: set it to 0");
  check_integer(object, "moe_layer_freq", 1, "");
  check_integer(object, "num_key_value_heads", config.num_attention_heads,
                " (num_attention_heads: the latent is shared by all heads)");
  check_integer(object, "qk_head_dim", config.qk_head_dim(),
                " (qk_nope_head_dim + qk_rope_head_dim)");
}

RopeParameters read_rope(const JsonObject& object, int64_t max_position_embeddings,
                         std::vector<std::string>* ignored) {
  HADAL_CHECK(!object.has("rope_parameters") || !object.has("rope_scaling"), object.where(),
              ": holds both rope_parameters and rope_scaling; remove rope_scaling");
  RopeParameters rope;
  rope.rope_theta = object.number("rope_theta", rope.rope_theta);
  const char* key = object.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!object.has(key)) return rope;

  const JsonObject inner = object.object(key);
  rope.rope_theta = inner.number("rope_theta", rope.rope_theta);
  HADAL_CHECK(!object.has("rope_theta") || object.number("rope_theta") == rope.rope_theta,
              object.where(), ": rope_theta is ", object.number("rope_theta", 0.0), " outside and ",
              rope.rope_theta, " inside ", key, "; remove one");
  rope.rope_type = inner.string("rope_type", inner.string("type", rope.rope_type));
  rope.factor = inner.number("factor", rope.factor);
  rope.original_max_position_embeddings =
      inner.integer("original_max_position_embeddings", max_position_embeddings);
  rope.beta_fast = inner.number("beta_fast", rope.beta_fast);
  rope.beta_slow = inner.number("beta_slow", rope.beta_slow);
  // Absent mscale is not 1: it leaves the magnitude at m(1) whatever mscale_all_dim says.
  rope.mscale = inner.number("mscale", 0.0);
  rope.mscale_all_dim = inner.number("mscale_all_dim", 0.0);
  rope.attention_factor = inner.number("attention_factor", 0.0);
  HADAL_CHECK(inner.boolean("truncate", true), inner.where(),
              ": truncate is false; hadal reads true only", kOther);
  HADAL_CHECK(inner.number("partial_rotary_factor", 1.0) == 1.0, inner.where(),
              ": partial_rotary_factor is not 1; hadal reads 1 only", kOther);
  if (ignored == nullptr)
    inner.check_no_unknown();
  else
    for (const std::string& name : inner.unknown()) ignored->push_back(concat(key, ".", name));
  return rope;
}

ScoringFunc read_scoring(const JsonObject& object) {
  const std::string name = object.string("scoring_func", "sigmoid");
  if (name == "sigmoid") return ScoringFunc::kSigmoid;
  if (name == "softmax") return ScoringFunc::kSoftmax;
  HADAL_FAIL(object.where(), ": scoring_func is \"", name, "\"; allowed: \"sigmoid\", \"softmax\"");
}

TopkMethod read_topk_method(const JsonObject& object) {
  const std::string name = object.string("topk_method", "noaux_tc");
  if (name == "noaux_tc") return TopkMethod::kNoauxTc;
  if (name == "group_limited_greedy") return TopkMethod::kGroupLimitedGreedy;
  HADAL_FAIL(object.where(), ": topk_method is \"", name,
             "\"; allowed: \"noaux_tc\", \"group_limited_greedy\"");
}

// null (or 0) says that the model has none.
int64_t integer_or_null(const JsonObject& object, const char* key) {
  return object.is_null(key) ? 0 : object.integer(key);
}

// Every field of the architecture. Unknown keys of rope go to `ignored`, or are errors without it.
Config read_fields(const JsonObject& object, std::vector<std::string>* ignored) {
  Config c;
  c.vocab_size = object.integer("vocab_size");
  c.hidden_size = object.integer("hidden_size");
  c.intermediate_size = object.integer("intermediate_size");
  c.moe_intermediate_size = object.integer("moe_intermediate_size");
  c.num_hidden_layers = object.integer("num_hidden_layers");
  c.num_attention_heads = object.integer("num_attention_heads");
  c.q_lora_rank = integer_or_null(object, "q_lora_rank");
  c.kv_lora_rank = object.integer("kv_lora_rank");
  c.qk_nope_head_dim = object.integer("qk_nope_head_dim");
  c.qk_rope_head_dim = object.integer("qk_rope_head_dim");
  c.v_head_dim = object.integer("v_head_dim");
  c.n_routed_experts = object.integer("n_routed_experts");
  c.n_shared_experts = integer_or_null(object, "n_shared_experts");
  c.num_experts_per_tok = object.integer("num_experts_per_tok");
  c.n_group = object.integer("n_group");
  c.topk_group = object.integer("topk_group");
  c.first_k_dense_replace = object.integer("first_k_dense_replace");
  c.num_nextn_predict_layers = object.integer("num_nextn_predict_layers", 0);
  c.norm_topk_prob = object.boolean("norm_topk_prob");
  c.routed_scaling_factor = object.number("routed_scaling_factor");
  c.scoring_func = read_scoring(object);
  c.topk_method = read_topk_method(object);
  c.rms_norm_eps = object.number("rms_norm_eps");
  c.tie_word_embeddings = object.boolean("tie_word_embeddings", false);
  c.rope_interleave = object.boolean("rope_interleave", true);
  c.max_position_embeddings = object.integer("max_position_embeddings");
  c.rope = read_rope(object, c.max_position_embeddings, ignored);
  c.initializer_range = object.number("initializer_range", 0.02);
  c.bos_token_id = object.is_null("bos_token_id") ? -1 : object.integer("bos_token_id", 0);
  if (object.is_null("eos_token_id"))
    c.eos_token_ids.clear();
  else if (object.has("eos_token_id"))
    c.eos_token_ids = object.integers("eos_token_id");
  check_supported(object, c);
  for (const char* key : kHarmless) object.know(key);
  return c;
}

// Messages of Config::validate() lead with "config: "; here with the file.
void validate(const Config& config, const std::string& where) {
  try {
    config.validate();
  } catch (const Error& error) {
    constexpr std::string_view kLead = "config: ";
    std::string message = error.what();
    if (message.starts_with(kLead)) message = message.substr(kLead.size());
    HADAL_FAIL(where, ": ", message);
  }
}

Quantization read_quantization(const JsonObject& object, std::vector<std::string>* ignored) {
  Quantization quantization;
  if (!object.has("quantization_config")) return quantization;
  const JsonObject inner = object.object("quantization_config");
  const std::string method = inner.string("quant_method");
  if (method == "compressed-tensors") {
    check_int_quantization(inner);  // which tensors are quantised is seen from their names
    return quantization;
  }
  HADAL_CHECK(method == "fp8", inner.where(), ": quant_method is \"", method,
              "\"; hadal reads \"fp8\" with 128 x 128 blocks, or unquantised checkpoints", kOther);
  check_string(inner, "fmt", "e4m3");
  check_string(inner, "activation_scheme", "dynamic");
  const std::vector<int64_t> block = inner.integers("weight_block_size");
  HADAL_CHECK((block == std::vector<int64_t>{kScaleBlock, kScaleBlock}), inner.where(),
              ": weight_block_size is ", inner.json()["weight_block_size"].dump(),
              "; hadal reads [128,128] only", kOther);
  check_string(inner, "scale_fmt", "ue8m0");
  quantization.fp8 = true;
  if (inner.has("scale_fmt")) quantization.scale_format = ScaleFormat::kPowerOfTwo;
  // Which tensors are quantised is seen from their scales.
  for (const char* key : {"modules_to_not_convert", "ignored_layers"}) inner.know(key);
  for (const std::string& name : inner.unknown()) ignored->push_back("quantization_config." + name);
  return quantization;
}

Json rope_to_json(const RopeParameters& rope) {
  Json json = {{"rope_type", rope.rope_type}, {"rope_theta", rope.rope_theta}};
  if (rope.rope_type == "default") return json;
  json["type"] = rope.rope_type;
  json["factor"] = rope.factor;
  json["original_max_position_embeddings"] = rope.original_max_position_embeddings;
  json["beta_fast"] = rope.beta_fast;
  json["beta_slow"] = rope.beta_slow;
  if (rope.mscale != 0.0) json["mscale"] = rope.mscale;
  if (rope.mscale_all_dim != 0.0) json["mscale_all_dim"] = rope.mscale_all_dim;
  if (rope.attention_factor != 0.0) json["attention_factor"] = rope.attention_factor;
  return json;
}

Json token_or_null(int64_t id) { return id < 0 ? Json(nullptr) : Json(id); }

Json eos_to_json(const Config& config) {
  if (config.eos_token_ids.empty()) return nullptr;
  if (config.eos_token_ids.size() == 1) return config.eos_token_ids[0];
  return config.eos_token_ids;
}

}  // namespace

HfConfig read_hf_config(const std::string& path) {
  const JsonObject object = JsonObject::read(path);
  const std::string type = object.string("model_type");
  HADAL_CHECK(type != "deepseek_v2", path,
              ": model_type is \"deepseek_v2\"; hadal reads DeepSeek-V3 "
              "models (deepseek_v3), not DeepSeek-V2",
              kOther);
  check_string(object, "model_type", "deepseek_v3");
  HfConfig result;
  result.config = read_fields(object, &result.ignored);
  result.quantization = read_quantization(object, &result.ignored);
  for (const std::string& name : object.unknown()) result.ignored.push_back(name);
  validate(result.config, path);
  return result;
}

Config model_from_json(const JsonObject& object) {
  check_string(object, "model_type", "deepseek_v3");
  Config config = read_fields(object, nullptr);
  object.check_no_unknown();
  validate(config, object.where());
  return config;
}

Json hf_config_to_json(const Config& c, DType plain, const Quantization& quantization) {
  Json json = {{"architectures", {"DeepseekV3ForCausalLM"}},
               {"attention_bias", false},
               {"attention_dropout", 0.0},
               {"bos_token_id", token_or_null(c.bos_token_id)},
               {"dtype", plain == DType::kBF16 ? "bfloat16" : "float32"},
               {"eos_token_id", eos_to_json(c)},
               {"first_k_dense_replace", c.first_k_dense_replace},
               {"head_dim", c.qk_rope_head_dim},
               {"hidden_act", "silu"},
               {"hidden_size", c.hidden_size},
               {"initializer_range", c.initializer_range},
               {"intermediate_size", c.intermediate_size},
               {"kv_lora_rank", c.kv_lora_rank},
               {"max_position_embeddings", c.max_position_embeddings},
               {"model_type", "deepseek_v3"},
               {"moe_intermediate_size", c.moe_intermediate_size},
               {"n_group", c.n_group},
               {"n_routed_experts", c.n_routed_experts},
               {"n_shared_experts", c.n_shared_experts},
               {"norm_topk_prob", c.norm_topk_prob},
               {"num_attention_heads", c.num_attention_heads},
               {"num_experts_per_tok", c.num_experts_per_tok},
               {"num_hidden_layers", c.num_hidden_layers},
               {"num_key_value_heads", c.num_attention_heads},
               {"num_nextn_predict_layers", c.num_nextn_predict_layers},
               {"pad_token_id", nullptr},
               {"pretraining_tp", 1},
               {"q_lora_rank", c.q_lora_rank == 0 ? Json(nullptr) : Json(c.q_lora_rank)},
               {"qk_head_dim", c.qk_head_dim()},
               {"qk_nope_head_dim", c.qk_nope_head_dim},
               {"qk_rope_head_dim", c.qk_rope_head_dim},
               {"rms_norm_eps", c.rms_norm_eps},
               {"rope_interleave", c.rope_interleave},
               {"rope_parameters", rope_to_json(c.rope)},
               {"routed_scaling_factor", c.routed_scaling_factor},
               {"tie_word_embeddings", c.tie_word_embeddings},
               {"topk_group", c.topk_group},
               {"transformers_version", kTransformersVersion},
               {"use_cache", true},
               {"v_head_dim", c.v_head_dim},
               {"vocab_size", c.vocab_size}};
  // transformers has one gate, so these keys are not among those it writes.
  if (c.scoring_func == ScoringFunc::kSoftmax) json["scoring_func"] = "softmax";
  if (c.topk_method == TopkMethod::kGroupLimitedGreedy)
    json["topk_method"] = "group_limited_greedy";
  if (!quantization.fp8) return json;
  json["quantization_config"] = {{"quant_method", "fp8"},
                                 {"fmt", "e4m3"},
                                 {"activation_scheme", "dynamic"},
                                 {"weight_block_size", {kScaleBlock, kScaleBlock}}};
  if (quantization.scale_format == ScaleFormat::kPowerOfTwo)
    json["quantization_config"]["scale_fmt"] = "ue8m0";
  return json;
}

// NOTE: transformers leaves out what is null here, unlike in config.json.
Json generation_config_to_json(const Config& config) {
  Json json = {{"_from_model_config", true},
               {"output_attentions", false},
               {"output_hidden_states", false},
               {"transformers_version", kTransformersVersion},
               {"use_cache", true}};
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (!config.eos_token_ids.empty()) json["eos_token_id"] = eos_to_json(config);
  return json;
}

}  // namespace hadal::io
