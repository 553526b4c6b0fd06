// INT8 and INT4 weights as checkpoints hold them: compressed-tensors' "pack-quantized", symmetric,
// in groups of 128 along K.
//
//   N rows   K columns   G = ceil(K / 128) groups
//
// NAME.weight becomes NAME.weight_packed I32 [N, ceil(K/4) or ceil(K/8)] (unsigned, plus 128 or
// plus 8, the first element in the lowest bits), NAME.weight_scale BF16 [N, G] and
// NAME.weight_shape I64 [2]. An element is number * scale. Quantised are the matrices of products
// but wkv_b, which absorbed attention reads both ways; the head takes 8 bits in both formats.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "core/panels.h"
#include "io/hf_config.h"
#include "io/safetensors.h"
#include "model/params.h"

namespace hadal::io {

// Bits of a parameter in a checkpoint of `bits` (8 or 4): 0 where it is not quantised.
int bits_of_param(const ParamInfo& info, int bits);
Shape packed_shape(const Shape& matrix, int bits);  // [N, words]
Shape int_scale_shape(const Shape& matrix);         // [N, G]

// w [N, K] f32 -> words, scale. 8 bits: scale = max |w| / 127. 4 bits: the one of a few scales
// around max |w| / 7 with the least squared error. An Error that names the tensor if it holds
// infinities or NaN.
void quantise_int(std::string_view name, const float* w, int64_t N, int64_t K, int bits,
                  int32_t* words, bf16* scale);
// One row of words and scales -> y [K].
void dequantise_int_row(const int32_t* words, const bf16* scale, int64_t K, int bits, float* y);

// The quantization_config of such a checkpoint, and its check: an Error names what hadal does not
// read.
Json int_quantization_to_json(int bits);
void check_int_quantization(const JsonObject& quantization_config);

// Writes config.json, generation_config.json and the weights into an existing directory. What is
// not quantised is bf16 (router biases f32).
void save_int_checkpoint(const std::string& dir, const Config& config, const Weights& weights,
                         int bits, size_t max_shard_bytes);

}  // namespace hadal::io
