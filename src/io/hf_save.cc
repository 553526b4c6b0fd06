// Saving of checkpoints: f32, bf16 or block FP8, with the names and copies that transformers
// writes.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <utility>

#include "core/check.h"
#include "io/fp8.h"
#include "io/hf.h"
#include "io/hf_names.h"

namespace hadal::io {

namespace {

StoredShape stored(const Shape& shape) {
  return {shape.dims.begin(), shape.dims.begin() + shape.rank};
}

// The operand's values in f32: its own memory, or decoded into `scratch`.
const float* values(const Operand& operand, std::vector<float>& scratch) {
  const Tensor& data = operand.data;
  if (data.dtype() == DType::kF32) return static_cast<const float*>(data.raw());
  scratch.resize(static_cast<size_t>(data.num_elements()));
  if (operand.scale.empty()) {
    convert(data.raw(), data.dtype(), scratch.data(), DType::kF32, data.num_elements());
    return scratch.data();
  }
  const int64_t K = data.dim(1), blocks = operand.scale.dim(1);
  for (int64_t n = 0; n < data.dim(0); ++n)
    block_dequantise_row(data.data<e4m3>() + n * K,
                         operand.scale.data<float>() + n / kScaleBlock * blocks, K,
                         scratch.data() + n * K);
  return scratch.data();
}

TensorSource plain_source(std::string name, const Operand& operand, DType dtype) {
  if (operand.data.dtype() == dtype) return source_of(std::move(name), operand.data);
  TensorSource source;
  source.name = std::move(name);
  source.type = to_stored_type(dtype);
  source.shape = stored(operand.data.shape());
  source.fill = [operand, dtype](void* out) {
    if (operand.scale.empty()) {
      convert(operand.data.raw(), operand.data.dtype(), out, dtype, operand.data.num_elements());
      return;
    }
    std::vector<float> scratch;
    convert(values(operand, scratch), DType::kF32, out, dtype, operand.data.num_elements());
  };
  return source;
}

// Already quantised with scales that the format allows.
bool keeps_bits(const Operand& operand, ScaleFormat format) {
  if (operand.scale.empty()) return false;
  if (format == ScaleFormat::kF32) return true;
  const float* scale = operand.scale.data<float>();
  for (int64_t i = 0; i < operand.scale.num_elements(); ++i)
    if (!is_power_of_two(scale[i])) return false;
  return true;
}

// Quantised while written. The file holds all scales before the elements, so they are computed
// twice: once for themselves and once for the elements.
void add_fp8(const std::string& name, const Operand& operand, ScaleFormat format,
             std::vector<TensorSource>& list) {
  if (keeps_bits(operand, format)) {
    list.push_back(source_of(name, operand.data));
    list.push_back(source_of(name + "_scale_inv", operand.scale));
    return;
  }
  const int64_t N = operand.data.dim(0), K = operand.data.dim(1);
  TensorSource scale;
  scale.name = name + "_scale_inv";
  scale.type = StoredType::kF32;
  scale.shape = stored(scale_shape(operand.data.shape()));
  scale.fill = [name, operand, N, K, format](void* out) {
    std::vector<float> scratch;
    block_scales(name, values(operand, scratch), N, K, format, static_cast<float*>(out));
  };
  TensorSource data;
  data.name = name;
  data.type = StoredType::kE4M3;
  data.shape = stored(operand.data.shape());
  data.fill = [operand, N, K, fill_scale = scale.fill, blocks = scale.bytes() / 4](void* out) {
    std::vector<float> scratch, scales(blocks);
    fill_scale(scales.data());
    block_quantise(values(operand, scratch), scales.data(), N, K, static_cast<e4m3*>(out));
  };
  list.push_back(std::move(data));
  list.push_back(std::move(scale));
}

// Collects what to write, parameter by parameter.
class Sources {
 public:
  Sources(const Config& config, const SaveFormat& format) : config_(config), format_(format) {}

  void add(const ParamInfo& info, const Operand& operand) {
    HADAL_CHECK(!operand.empty() && operand.data.shape() == info.shape && operand.data.is_dense(),
                "parameter ", info.name, " to save is ", operand.data.str(), "; a dense ",
                info.shape.str(), " is needed");
    const std::string name = hf_name(config_, info.name);
    if (format_.quantization.fp8 && info.kind == ParamKind::kMatrix) {
      add_fp8(name, operand, format_.quantization.scale_format, list_);
      return;
    }
    const DType dtype = info.kind == ParamKind::kBuffer ? DType::kF32 : format_.dtype;
    list_.push_back(plain_source(name, operand, dtype));
  }

  // What was added; the second with the copies of embedding and head in each MTP layer; a tied head
  // has no copy.
  std::vector<TensorSource> take() { return std::move(list_); }
  std::vector<TensorSource> with_copies(const Operand& embed, const Operand& head) {
    for (int64_t k = 0; k < config_.num_nextn_predict_layers; ++k) {
      list_.push_back(plain_source(hf_mtp_embed_name(config_, k), embed, format_.dtype));
      if (!config_.tie_word_embeddings)
        list_.push_back(plain_source(hf_mtp_head_name(config_, k), head, format_.dtype));
    }
    return std::move(list_);
  }

 private:
  const Config& config_;
  const SaveFormat& format_;
  std::vector<TensorSource> list_;
};

void write_configs(const std::string& dir, const Config& config, const SaveFormat& format) {
  write_json(dir + "/config.json", hf_config_to_json(config, format.dtype, format.quantization));
  write_json(dir + "/generation_config.json", generation_config_to_json(config));
}

template <class Tree>
void save(const std::string& dir, const Config& config, const Tree& tree,
          const SaveFormat& format) {
  HADAL_CHECK(format.dtype == DType::kF32 || format.dtype == DType::kBF16,
              "checkpoints are saved as ", "f32 or bf16, not as ", dtype_name(format.dtype));
  Sources sources(config, format);
  for_each_param(
      config, [&](const ParamInfo& info, const auto& leaf) { sources.add(info, Operand(leaf)); },
      tree);
  write_configs(dir, config, format);
  write_safetensors_dir(dir, sources.with_copies(Operand(tree.embed), Operand(tree.head)),
                        format.max_shard_bytes);
}

}  // namespace

void save_checkpoint(const std::string& dir, const Config& config, const ModelParams<Tensor>& tree,
                     const SaveFormat& format) {
  save(dir, config, tree, format);
}

void save_checkpoint(const std::string& dir, const Config& config, const Weights& weights,
                     const SaveFormat& format) {
  save(dir, config, weights, format);
}

void save_checkpoint_part(const std::string& dir, const Config& config,
                          const ModelParams<Tensor>& tree, const SaveFormat& format,
                          const CheckpointPart& part) {
  Sources sources(config, format);
  for_each_param(
      config,
      [&](const ParamInfo& info, const Tensor& leaf) {
        if (!part.saves || (!leaf.empty() && part.saves(info))) sources.add(info, Operand(leaf));
      },
      tree);
  std::vector<TensorSource> list =
      part.saves_copies ? sources.with_copies(tree.embed, tree.head) : sources.take();
  if (part.count == 1) return write_safetensors_dir(dir, std::move(list), format.max_shard_bytes);
  write_safetensors(dir + "/" + part_name("model", part.index, part.count), std::move(list));
}

void finish_checkpoint(const std::string& dir, const Config& config, const SaveFormat& format,
                       size_t num_parts) {
  write_configs(dir, config, format);
  if (num_parts > 1) write_safetensors_index(dir, num_parts);
}

}  // namespace hadal::io
