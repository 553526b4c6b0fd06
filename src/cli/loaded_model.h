// A checkpoint in memory, ready to run, and its tokenizer.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "core/context.h"
#include "io/hf.h"
#include "io/tokenizer.h"

namespace hadal::cli {

struct LoadedModel {
  // `path` as --model takes it. dtype: auto (as stored), f32 or bf16.
  LoadedModel(Context& ctx, const std::string& path, const std::string& dtype);
  // An Error names a tokenizer that does not fit.
  io::Tokenizer tokenizer() const;
  const Config& config() const { return checkpoint.config; }
  int32_t bos() const { return static_cast<int32_t>(config().bos_token_id); }

  std::string dir;
  io::HfCheckpoint checkpoint;
  Block memory;
  Weights weights;
  DType act;  // to compute in
};

}  // namespace hadal::cli
