// A checkpoint in memory, ready to run, and its tokenizer.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "core/context.h"
#include "io/hf.h"
#include "io/tokenizer.h"

namespace hadal::cli {

// A checkpoint that was looked at; its files are mapped, and nothing of them is read.
struct OpenedModel {
  // `path` as --model takes it. dtype: auto (as stored), f32 or bf16.
  OpenedModel(const std::string& path, const std::string& dtype);
  // An Error names a tokenizer that does not fit.
  io::Tokenizer tokenizer() const;
  const Config& config() const { return checkpoint->config; }
  int32_t bos() const { return static_cast<int32_t>(config().bos_token_id); }

  std::string dir;
  std::shared_ptr<const io::HfCheckpoint> checkpoint;
  DType act;  // to compute in
  io::WeightFormat format = io::WeightFormat::kKeep;
};

struct LoadedModel : OpenedModel {
  LoadedModel(Context& ctx, const std::string& path, const std::string& dtype)
      : LoadedModel(ctx, OpenedModel(path, dtype)) {}
  LoadedModel(Context& ctx, OpenedModel opened);
  // For generation alone: in panels where there are any, and on one of several ranks its share.
  LoadedModel(Context& ctx, OpenedModel opened, const Share& rank,
              AttentionSplit attention = AttentionSplit::kHeads);

  Block memory, panels;
  Weights weights;
};

}  // namespace hadal::cli
