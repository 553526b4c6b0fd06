// Checkpoints in Hugging Face's layout: config.json and safetensors, read as they are and written
// back.
//
// Opening checks the whole directory: every tensor of the config is there with its shape and a type
// that can be read, none is left over, and the copies of embedding and head that MTP layers carry
// equal the shared ones. Weights are mapped, so what is not converted costs no memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/context.h"
#include "io/hf_config.h"
#include "io/safetensors.h"
#include "model/param_layout.h"

namespace hadal::io {

// Where a parameter lies in the files.
struct HfParam {
  ParamInfo info;
  const StoredTensor* data = nullptr;
  const StoredTensor* scale = nullptr;  // of block FP8, else null
};

struct HfCheckpoint {
  Config config;  // with as many MTP modules as are loaded
  Quantization quantization;
  std::vector<std::string> ignored;  // keys of config.json that hadal does not know
  SafetensorsDir files;
  std::vector<HfParam> params;  // in the order of for_each_param
};

inline constexpr int64_t kAllMtp = -1;

// num_mtp: how many MTP modules to use, at most those of config.json.
HfCheckpoint open_checkpoint(const std::string& dir, int64_t num_mtp = kAllMtp);

enum class WeightFormat : uint8_t {
  kKeep,  // as stored; block FP8 stays FP8 with its scales
  kF32,
  kBF16,
  kF64,
};

// Fills `out` with views of the mapped files where type and alignment allow, else of the returned
// block. Norms, router weights and router biases are f32 (f64 in kF64). FP8 is decoded in f32.
// Of several ranks each loads its share (decode_share()); leaves of experts of others stay empty.
// REQUIRES: the checkpoint and the block outlive `out`, which is read-only; check_decode_parts().
Block load_weights(Context& ctx, const HfCheckpoint& checkpoint, WeightFormat format, Weights& out,
                   const RankShare& share = {});

// An Error that names what cannot be split among so many ranks: a number of the config that they do
// not divide, or a matrix whose blocks or groups they would cut, if it is kept as it is stored.
void check_decode_parts(const HfCheckpoint& checkpoint, WeightFormat format, int ranks,
                        AttentionSplit attention = AttentionSplit::kHeads);

// Decodes into tensors that the caller owns (f32, f64 or bf16), for training; empty leaves are left
// out. The tree has the checkpoint's config; f32 buffers stay f32.
void read_weights(Context& ctx, const HfCheckpoint& checkpoint, ModelParams<Tensor>& tree);

struct SaveFormat {
  DType dtype = DType::kF32;  // f32 or bf16, of what is not quantised; router biases are always f32
  Quantization quantization{};  // fp8: the matrices of products as block FP8
  size_t max_shard_bytes = size_t{5} << 30;
};

// Writes config.json, generation_config.json and the weights into an existing directory, each file
// synced. Several files are not one step: to replace a checkpoint, write to a new directory and use
// rename_dir_atomic. Block FP8 that is saved as block FP8 keeps its bits.
void save_checkpoint(const std::string& dir, const Config& config, const ModelParams<Tensor>& tree,
                     const SaveFormat& format);
void save_checkpoint(const std::string& dir, const Config& config, const Weights& weights,
                     const SaveFormat& format);

// A checkpoint written by several processes, each the parameters that it `saves`, as one part of
// `count`; then one of them, once all parts are there, finishes it. The same bytes as
// save_checkpoint() where there is one part.
struct CheckpointPart {
  size_t index = 0, count = 1;
  std::function<bool(const ParamInfo&)> saves = {};  // of what its tree holds; none: all
  bool saves_copies = true;                          // of embedding and head for the MTP layers
};
void save_checkpoint_part(const std::string& dir, const Config& config,
                          const ModelParams<Tensor>& tree, const SaveFormat& format,
                          const CheckpointPart& part);
void finish_checkpoint(const std::string& dir, const Config& config, const SaveFormat& format,
                       size_t num_parts);

}  // namespace hadal::io
