// Both directions of the name tables, from the same rows.
// SPDX-License-Identifier: Apache-2.0
#include "io/hf_names.h"

#include <charconv>

#include "core/check.h"

namespace hadal::io {

namespace {

struct Row {
  std::string_view name, hf;
};

constexpr Row kModel[] = {
    {"embed", "model.embed_tokens.weight"},
    {"norm", "model.norm.weight"},
    {"head", "lm_head.weight"},
};
constexpr Row kMtp[] = {
    {"enorm", "enorm.weight"},
    {"hnorm", "hnorm.weight"},
    {"eh_proj", "eh_proj.weight"},
    {"norm", "shared_head.norm.weight"},
};
constexpr Row kBlock[] = {
    {"attn_norm", "input_layernorm.weight"},
    {"ffn_norm", "post_attention_layernorm.weight"},
    {"attn.wq", "self_attn.q_proj.weight"},
    {"attn.wq_a", "self_attn.q_a_proj.weight"},
    {"attn.q_norm", "self_attn.q_a_layernorm.weight"},
    {"attn.wq_b", "self_attn.q_b_proj.weight"},
    {"attn.wkv_a", "self_attn.kv_a_proj_with_mqa.weight"},
    {"attn.kv_norm", "self_attn.kv_a_layernorm.weight"},
    {"attn.wkv_b", "self_attn.kv_b_proj.weight"},
    {"attn.wo", "self_attn.o_proj.weight"},
    {"ffn.gate.weight", "mlp.gate.weight"},
    {"ffn.gate.bias", "mlp.gate.e_score_correction_bias"},
};
// After "ffn." / "mlp.", "ffn.experts.7." / "mlp.experts.7.", "ffn.shared_experts." alike.
constexpr Row kMlp[] = {
    {"w1", "gate_proj.weight"},
    {"w3", "up_proj.weight"},
    {"w2", "down_proj.weight"},
};

template <size_t N>
std::optional<std::string> translate(const Row (&rows)[N], std::string_view text, bool to_hf) {
  for (const Row& row : rows)
    if (text == (to_hf ? row.name : row.hf)) return std::string(to_hf ? row.hf : row.name);
  return std::nullopt;
}

// Takes "7." off the front of text.
std::optional<int64_t> take_number(std::string_view& text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || number < 0 || end == text.data() + text.size() || *end != '.')
    return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()) + 1);
  return number;
}

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

// A name within a layer.
std::optional<std::string> translate_block(std::string_view text, bool to_hf) {
  if (auto name = translate(kBlock, text, to_hf)) return name;
  if (!take(text, to_hf ? "ffn." : "mlp.")) return std::nullopt;
  std::string prefix = to_hf ? "mlp." : "ffn.";
  if (take(text, "shared_experts.")) {
    prefix += "shared_experts.";
  } else if (take(text, "experts.")) {
    const auto expert = take_number(text);
    if (!expert) return std::nullopt;
    prefix += concat("experts.", *expert, ".");
  }
  auto name = translate(kMlp, text, to_hf);
  if (name) name->insert(0, prefix);
  return name;
}

}  // namespace

std::string hf_name(const Config& config, std::string_view name) {
  if (const auto found = translate(kModel, name, true)) return *found;
  std::string_view rest = name;
  std::optional<std::string> found;
  int64_t layer = 0;
  if (take(rest, "layers.")) {
    const auto number = take_number(rest);
    HADAL_CHECK(number, "internal error: ", name, " is not the name of a parameter");
    layer = *number;
    found = translate_block(rest, true);
  } else if (take(rest, "mtp.")) {
    const auto number = take_number(rest);
    HADAL_CHECK(number, "internal error: ", name, " is not the name of a parameter");
    layer = config.num_hidden_layers + *number;
    found = take(rest, "block.") ? translate_block(rest, true) : translate(kMtp, rest, true);
  }
  HADAL_CHECK(found, "internal error: ", name, " is not the name of a parameter");
  return concat("model.layers.", layer, ".", *found);
}

std::optional<std::string> reference_name(const Config& config, std::string_view hf_name) {
  if (auto found = translate(kModel, hf_name, false)) return found;
  std::string_view rest = hf_name;
  if (!take(rest, "model.layers.")) return std::nullopt;
  const auto layer = take_number(rest);
  if (!layer) return std::nullopt;
  const int64_t module = *layer - config.num_hidden_layers;
  if (auto found = translate_block(rest, false))
    return (module < 0 ? concat("layers.", *layer, ".") : concat("mtp.", module, ".block.")) +
           *found;
  if (module < 0) return std::nullopt;
  if (auto found = translate(kMtp, rest, false)) return concat("mtp.", module, ".") + *found;
  return std::nullopt;
}

std::string hf_mtp_prefix(const Config& config, int64_t module) {
  return concat("model.layers.", config.num_hidden_layers + module, ".");
}

std::string hf_mtp_embed_name(const Config& config, int64_t module) {
  return hf_mtp_prefix(config, module) + "embed_tokens.weight";
}

std::string hf_mtp_head_name(const Config& config, int64_t module) {
  return hf_mtp_prefix(config, module) + "shared_head.head.weight";
}

}  // namespace hadal::io
