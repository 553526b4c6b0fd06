// Opening a model for the subcommands that run one.
// SPDX-License-Identifier: Apache-2.0
#include "cli/loaded_model.h"

#include <memory>
#include <utility>

#include "cli/options.h"
#include "core/check.h"
#include "io/panels.h"
#include "io/tokenizer_dir.h"

namespace hadal::cli {

OpenedModel::OpenedModel(const std::string& path, const std::string& dtype)
    : dir(resolve_model(path)),
      checkpoint(std::make_shared<const io::HfCheckpoint>(io::open_checkpoint(dir))) {
  const io::StoredType stored = checkpoint->params.front().data->type;
  act = stored == io::StoredType::kF32 ? DType::kF32 : DType::kBF16;
  if (dtype == "auto") return;
  act = parse_dtype(dtype, {DType::kF32, DType::kBF16}, "--dtype");
  format = act == DType::kF32 ? io::WeightFormat::kF32 : io::WeightFormat::kBF16;
}

io::Tokenizer OpenedModel::tokenizer() const {
  io::Tokenizer tokenizer = io::load_tokenizer_of(dir);
  // DeepSeek pads its vocabulary, so the model may have more tokens.
  HADAL_CHECK(tokenizer.vocab_size() <= config().vocab_size, dir, "/tokenizer.json has ",
              tokenizer.vocab_size(), " tokens, and the model ", config().vocab_size,
              "; use the tokenizer that the model was trained with");
  return tokenizer;
}

LoadedModel::LoadedModel(Context& ctx, OpenedModel opened) : OpenedModel(std::move(opened)) {
  memory = io::load_weights(ctx, *checkpoint, format, weights);
}

LoadedModel::LoadedModel(Context& ctx, OpenedModel opened, const Share& rank,
                         AttentionSplit attention)
    : OpenedModel(std::move(opened)) {
  const RankShare share = rank.ways > 1 ? decode_share(config(), rank, attention) : RankShare();
  memory = io::load_weights(ctx, *checkpoint, format, weights, share);
  panels = io::pack_weights(ctx, *checkpoint, weights);
  if (rank.ways > 1) drop_absent_experts(weights);
}

}  // namespace hadal::cli
