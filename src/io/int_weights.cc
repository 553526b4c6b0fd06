// Quantising, decoding and saving of INT8 and INT4 weights.
// SPDX-License-Identifier: Apache-2.0
#include "io/int_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/fp8.h"
#include "io/hf_names.h"

namespace hadal::io {
namespace {

constexpr float kSmallestAmax = 1e-30f;
constexpr const char* kOther = "; use another checkpoint";

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t per_word(int bits) { return 32 / bits; }

// Numbers of a group with a scale; returns the squared error.
double round_group(const float* w, int64_t n, int bits, float scale, int32_t* q) {
  const float low = bits == 8 ? -127.0f : -8.0f, high = bits == 8 ? 127.0f : 7.0f;
  double error = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const float x = std::clamp(std::nearbyint(w[i] / scale), low, high);
    q[i] = static_cast<int32_t>(x);
    const double d = static_cast<double>(w[i]) - static_cast<double>(x * scale);
    error += d * d;
  }
  return error;
}

// The numbers and the scale of one group.
bf16 quantise_group(const float* w, int64_t n, int bits, float amax, int32_t* q) {
  if (amax < kSmallestAmax) {
    std::fill(q, q + n, 0);
    return to_bf16(0.0f);
  }
  const float top = bits == 8 ? 127.0f : 7.0f;
  bf16 best = to_bf16(amax / top);
  double least = round_group(w, n, bits, to_f32(best), q);
  if (bits == 8) return best;
  int32_t trial[kIntGroup];
  for (const float factor : {0.95f, 0.9f, 0.85f, 0.8f, 0.75f}) {
    const bf16 scale = to_bf16(factor * amax / top);
    const double error = round_group(w, n, bits, to_f32(scale), trial);
    if (error >= least) continue;
    least = error;
    best = scale;
    std::copy(trial, trial + n, q);
  }
  return best;
}

StoredShape stored(const Shape& shape) {
  return {shape.dims.begin(), shape.dims.begin() + shape.rank};
}

// The operand's values in f32.
std::vector<float> values(const Operand& w) {
  const int64_t N = w.data.dim(0);
  HADAL_CHECK(w.data.dtype() != DType::kI32, "internal error: integer weights to quantise");
  std::vector<float> out(static_cast<size_t>(w.data.num_elements()));
  if (w.scale.empty()) {
    convert(w.data.raw(), w.data.dtype(), out.data(), DType::kF32, w.data.num_elements());
    return out;
  }
  const int64_t K = w.data.dim(1), blocks = w.scale.dim(1);
  for (int64_t n = 0; n < N; ++n)
    block_dequantise_row(w.data.data<e4m3>() + n * K,
                         w.scale.data<float>() + n / kScaleBlock * blocks, K, out.data() + n * K);
  return out;
}

// "model...down_proj.weight" -> "model...down_proj".
std::string module_of(const std::string& name) {
  constexpr std::string_view kSuffix = ".weight";
  return name.substr(0, name.size() - kSuffix.size());
}

void add_quantised(const std::string& name, const Operand& w, int bits,
                   std::vector<TensorSource>& list) {
  const std::string module = module_of(name);
  const Shape shape = w.data.shape();
  TensorSource packed, scale, dims;
  packed.name = module + ".weight_packed";
  packed.type = StoredType::kI32;
  packed.shape = stored(packed_shape(shape, bits));
  packed.fill = [name, w, bits](void* out) {
    const int64_t N = w.data.dim(0), K = w.data.dim(1);
    std::vector<bf16> unused(static_cast<size_t>(N * ceil_div(K, kIntGroup)));
    quantise_int(name, values(w).data(), N, K, bits, static_cast<int32_t*>(out), unused.data());
  };
  scale.name = module + ".weight_scale";
  scale.type = StoredType::kBF16;
  scale.shape = stored(int_scale_shape(shape));
  scale.fill = [name, w, bits](void* out) {
    const int64_t N = w.data.dim(0), K = w.data.dim(1);
    std::vector<int32_t> unused(static_cast<size_t>(packed_shape({N, K}, bits).num_elements()));
    quantise_int(name, values(w).data(), N, K, bits, unused.data(), static_cast<bf16*>(out));
  };
  dims.name = module + ".weight_shape";
  dims.type = StoredType::kI64;
  dims.shape = {2};
  dims.fill = [shape](void* out) {
    const int64_t d[2] = {shape[0], shape[1]};
    std::memcpy(out, d, sizeof(d));
  };
  list.push_back(std::move(packed));
  list.push_back(std::move(scale));
  list.push_back(std::move(dims));
}

TensorSource plain(const std::string& name, const Operand& w, DType dtype) {
  if (w.data.dtype() == dtype) return source_of(name, w.data);
  TensorSource source;
  source.name = name;
  source.type = to_stored_type(dtype);
  source.shape = stored(w.data.shape());
  source.fill = [w, dtype](void* out) {
    const std::vector<float> x = values(w);
    convert(x.data(), DType::kF32, out, dtype, w.data.num_elements());
  };
  return source;
}

Json group_json(int bits, const std::vector<std::string>& targets) {
  return {{"targets", targets},
          {"weights",
           {{"num_bits", bits},
            {"type", "int"},
            {"symmetric", true},
            {"strategy", "group"},
            {"group_size", kIntGroup},
            {"dynamic", false}}}};
}

}  // namespace

int bits_of_param(const ParamInfo& info, int bits) {
  if (info.name == "head") return 8;
  if (info.kind != ParamKind::kMatrix || info.name.ends_with("attn.wkv_b")) return 0;
  return bits;
}

Shape packed_shape(const Shape& matrix, int bits) {
  return {matrix[0], ceil_div(matrix[1], per_word(bits))};
}
Shape int_scale_shape(const Shape& matrix) { return {matrix[0], ceil_div(matrix[1], kIntGroup)}; }

void quantise_int(std::string_view name, const float* w, int64_t N, int64_t K, int bits,
                  int32_t* words, bf16* scale) {
  const int64_t row_words = ceil_div(K, per_word(bits)), groups = ceil_div(K, kIntGroup);
  const int32_t offset = 1 << (bits - 1);
  std::fill(words, words + N * row_words, 0);
  int32_t q[kIntGroup];
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * kIntGroup, count = std::min(kIntGroup, K - begin);
      const float* row = w + n * K + begin;
      float amax = 0.0f;
      for (int64_t i = 0; i < count; ++i) {
        const float value = std::fabs(row[i]);
        HADAL_CHECK(std::isfinite(value), "tensor ", name, ": element [", n, ", ", begin + i,
                    "] is ", static_cast<double>(row[i]), "; INT", bits,
                    " holds finite weights only: save as bf16 or f32, or train again");
        amax = std::max(amax, value);
      }
      scale[n * groups + g] = quantise_group(row, count, bits, amax, q);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t k = begin + i;
        const auto unsigned_q = static_cast<uint32_t>(q[i] + offset);
        auto& word = words[n * row_words + k / per_word(bits)];
        word = static_cast<int32_t>(static_cast<uint32_t>(word) |
                                    unsigned_q << (k % per_word(bits) * bits));
      }
    }
  }
}

void dequantise_int_row(const int32_t* words, const bf16* scale, int64_t K, int bits, float* y) {
  const int32_t offset = 1 << (bits - 1);
  const uint32_t mask = bits == 8 ? 0xffu : 0xfu;
  for (int64_t k = 0; k < K; ++k) {
    const auto word = static_cast<uint32_t>(words[k / per_word(bits)]);
    const auto q = static_cast<int32_t>(word >> (k % per_word(bits) * bits) & mask) - offset;
    y[k] = static_cast<float>(q) * to_f32(scale[k / kIntGroup]);
  }
}

Json int_quantization_to_json(int bits) {
  Json groups = {{"group_0", group_json(bits, {"Linear"})}};
  if (bits != 8) groups["group_1"] = group_json(8, {"lm_head"});
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"config_groups", groups},
          {"ignore", {"re:.*kv_b_proj$", "re:.*mlp.gate$", "re:.*eh_proj$"}}};
}

void check_int_quantization(const JsonObject& q) {
  const std::string format = q.string("format");
  HADAL_CHECK(format == "pack-quantized", q.where(), ": format is \"", format,
              "\"; hadal reads \"pack-quantized\" of compressed-tensors", kOther);
  const Json& groups = q.json()["config_groups"];
  for (const auto& [name, group] : groups.items()) {
    const JsonObject weights =
        JsonObject(group, q.where() + ".config_groups." + name).object("weights");
    const int64_t bits = weights.integer("num_bits");
    HADAL_CHECK(bits == 4 || bits == 8, weights.where(), ": num_bits is ", bits,
                "; hadal reads 4 and 8", kOther);
    HADAL_CHECK(weights.boolean("symmetric", true), weights.where(),
                ": symmetric is false; hadal reads weights without zero points", kOther);
    const int64_t group_size = weights.integer("group_size", 0);
    HADAL_CHECK(weights.string("strategy", "group") == "group" && group_size == kIntGroup,
                weights.where(), ": group_size is ", group_size, "; hadal reads groups of ",
                kIntGroup, kOther);
  }
}

void save_int_checkpoint(const std::string& dir, const Config& config, const Weights& weights,
                         int bits, size_t max_shard_bytes) {
  std::vector<TensorSource> list;
  for_each_param(
      config,
      [&](const ParamInfo& info, const Operand& w) {
        const std::string name = hf_name(config, info.name);
        const int of_param = bits_of_param(info, bits);
        if (of_param != 0)
          add_quantised(name, w, of_param, list);
        else
          list.push_back(
              plain(name, w, info.kind == ParamKind::kBuffer ? DType::kF32 : DType::kBF16));
      },
      weights);
  // Each MTP layer has copies of the embedding; its copy of the head would be a second one.
  for (int64_t k = 0; k < config.num_nextn_predict_layers; ++k)
    list.push_back(plain(hf_mtp_embed_name(config, k), weights.embed, DType::kBF16));
  Json json = hf_config_to_json(config, DType::kBF16, {});
  json["quantization_config"] = int_quantization_to_json(bits);
  write_json(dir + "/config.json", json);
  write_json(dir + "/generation_config.json", generation_config_to_json(config));
  write_safetensors_dir(dir, std::move(list), max_shard_bytes);
}

}  // namespace hadal::io
