// Opening a model for the subcommands that run one.
// SPDX-License-Identifier: Apache-2.0
#include "cli/loaded_model.h"

#include "cli/options.h"
#include "core/check.h"
#include "io/tokenizer_dir.h"

namespace hadal::cli {

LoadedModel::LoadedModel(Context& ctx, const std::string& path, const std::string& dtype)
    : dir(resolve_model(path)), checkpoint(io::open_checkpoint(dir)) {
  const io::StoredType stored = checkpoint.params.front().data->type;
  act = stored == io::StoredType::kF32 ? DType::kF32 : DType::kBF16;
  io::WeightFormat format = io::WeightFormat::kKeep;
  if (dtype != "auto") {
    act = parse_dtype(dtype, {DType::kF32, DType::kBF16}, "--dtype");
    format = act == DType::kF32 ? io::WeightFormat::kF32 : io::WeightFormat::kBF16;
  }
  memory = io::load_weights(ctx, checkpoint, format, weights);
}

io::Tokenizer LoadedModel::tokenizer() const {
  io::Tokenizer tokenizer = io::load_tokenizer_of(dir);
  // DeepSeek pads its vocabulary, so the model may have more tokens.
  HADAL_CHECK(tokenizer.vocab_size() <= config().vocab_size, dir, "/tokenizer.json has ",
              tokenizer.vocab_size(), " tokens, and the model ", config().vocab_size,
              "; use the tokenizer that the model was trained with");
  return tokenizer;
}

}  // namespace hadal::cli
