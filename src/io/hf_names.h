// Names of weights: the model's own (model/params.h) and Hugging Face's.
//
// layers.3.attn.wkv_a    <->  model.layers.3.self_attn.kv_a_proj_with_mqa.weight
// mtp.0.block.attn_norm  <->  model.layers.L.input_layernorm.weight, L = num_hidden_layers
// mtp.0.norm             <->  model.layers.L.shared_head.norm.weight
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "model/config.h"

namespace hadal::io {

// An internal error for names that model/params.h does not make.
std::string hf_name(const Config& config, std::string_view name);

// Empty for names that are none of the model's parameters, the MTP copies of the embedding and the
// head among them. Layer and expert numbers are not compared with the config's.
std::optional<std::string> reference_name(const Config& config, std::string_view hf_name);

// The copies that a checkpoint carries in the layer of MTP module k.
std::string hf_mtp_embed_name(const Config& config, int64_t module);  // of the embedding
std::string hf_mtp_head_name(const Config& config, int64_t module);   // of the head
// "model.layers.61.", the names of MTP module k.
std::string hf_mtp_prefix(const Config& config, int64_t module);

}  // namespace hadal::io
