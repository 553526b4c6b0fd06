// Feed: text or mixture.
// SPDX-License-Identifier: Apache-2.0
#include "train/feed.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/tokenizer.h"

namespace hadal::train {
namespace {

constexpr uint64_t kSeedStride = 0x9E3779B97F4A7C15u;

void check_dataset(const SourceConfig& config, const io::Dataset& dataset, const Config& model) {
  HADAL_CHECK(dataset.bos == model.bos_token_id, config.shards, " begins documents with token ",
              dataset.bos, ", and model.bos_token_id is ", model.bos_token_id,
              "; prepare it again with --bos, or change the model");
  HADAL_CHECK(
      std::count(model.eos_token_ids.begin(), model.eos_token_ids.end(), dataset.eos) > 0,
      config.shards, " ends documents with token ", dataset.eos,
      ", which model.eos_token_id does not have; prepare it again with --eos, or change the "
      "model");
}

double per_target(double bytes, double targets) { return targets > 0.0 ? bytes / targets : 1.0; }

}  // namespace

Feed::Feed(const RunConfig& run) : length_(run.train.sequence_length), text_seed_(run.train.seed) {
  const DataConfig& d = run.data;
  HADAL_CHECK(!d.text.empty() || !d.sources.empty(),
              "data.text is empty; name a text file, or list data.sources");
  HADAL_CHECK(!d.tokenizer.empty(),
              "data.tokenizer is empty; make one with: hadal tokenizer train");
  const auto tokenizer = io::Tokenizer::load(d.tokenizer + "/tokenizer.json");
  HADAL_CHECK(tokenizer.vocab_size() <= run.model.vocab_size, d.tokenizer, " has ",
              tokenizer.vocab_size(),
              " tokens, more than model.vocab_size = ", run.model.vocab_size);
  if (d.sources.empty()) {
    text_ = load_text(d.text, tokenizer, d.held_out, static_cast<int32_t>(run.model.bos_token_id));
    check_long_enough(text_, length_);
    bytes_per_target_ =
        per_target(static_cast<double>(text_.train_bytes), static_cast<double>(text_.train.size()));
    held_out_bytes_per_target_ = per_target(static_cast<double>(text_.held_out_bytes),
                                            static_cast<double>(text_.held_out.size()));
    return;
  }
  const io::Vocabulary vocabulary{.hash = tokenizer.hash(), .size = tokenizer.vocab_size()};
  double weights = 0.0, held_out_bytes = 0.0, held_out_targets = 0.0;
  for (const SourceConfig& source : d.sources) weights += source.weight;
  bytes_per_target_ = 0.0;
  for (const SourceConfig& config : d.sources) {
    Source source;
    source.config = config;
    // Each source in an order of its own.
    const uint64_t seed = run.train.seed + sources_.size() * kSeedStride;
    source.tokens = std::make_unique<TokenSource>(config, vocabulary, length_, seed);
    source.share = config.weight / weights;
    const io::Dataset& dataset = source.tokens->dataset();
    check_dataset(config, dataset, run.model);
    bytes_per_target_ += source.share * source.tokens->bytes_per_target();
    held_out_bytes += static_cast<double>(dataset.held_out_bytes);
    held_out_targets += static_cast<double>(dataset.held_out_targets);
    sources_.push_back(std::move(source));
  }
  held_out_bytes_per_target_ = per_target(held_out_bytes, held_out_targets);
}

Feed::Source& Feed::furthest_behind() {
  for (Source& source : sources_) source.credit += source.share;
  Source& chosen =
      *std::max_element(sources_.begin(), sources_.end(),
                        [](const Source& a, const Source& b) { return a.credit < b.credit; });
  chosen.credit -= 1.0;
  return chosen;
}

std::vector<Sequence> Feed::next(int64_t count) {
  if (sources_.empty()) {
    text_position_ += count;
    return training_batch(text_, text_seed_, text_position_ - count, count, length_);
  }
  std::vector<Sequence> sequences;
  for (int64_t i = 0; i < count; ++i) {
    Source& source = furthest_behind();
    sequences.push_back(source.tokens->next(source.cursor));
    ++source.given;
  }
  return sequences;
}

std::vector<Sequence> Feed::held_out(int64_t stride) const {
  if (sources_.empty()) return held_out_windows(text_, length_, stride);
  std::vector<std::vector<Sequence>> all;
  size_t most = 0;
  for (const Source& source : sources_) {
    all.push_back(source.tokens->held_out(stride));
    most = std::max(most, all.back().size());
  }
  std::vector<Sequence> mixed;
  for (size_t i = 0; i < most; ++i)
    for (std::vector<Sequence>& sequences : all)
      if (i < sequences.size()) mixed.push_back(std::move(sequences[i]));
  return mixed;
}

std::vector<std::string> Feed::describe() const {
  std::vector<std::string> lines;
  for (const Source& source : sources_) {
    const io::Dataset& d = source.tokens->dataset();
    std::string line = fmt::format(
        "data: {}: {:.1f}% of sequences; {} documents, {} tokens; held "
        "out: {} documents, {} tokens",
        source.config.shards, 100.0 * source.share, d.train_documents, d.train_tokens,
        d.held_out_documents, d.held_out_tokens);
    if (source.tokens->num_cut() > 0)
      line += fmt::format("; {} documents are longer than {} tokens and cut to that",
                          source.tokens->num_cut(), length_);
    lines.push_back(std::move(line));
  }
  return lines;
}

io::Json Feed::state() const {
  if (sources_.empty()) return {{"position", text_position_}};
  io::Json list = io::Json::array();
  for (const Source& source : sources_)
    list.push_back({{"documents", source.tokens->dataset().train_documents},
                    {"tokens", source.tokens->dataset().train_tokens},
                    {"credit", source.credit},
                    {"epoch", source.cursor.epoch},
                    {"row", source.cursor.row},
                    {"given", source.given}});
  return {{"sources", std::move(list)}};
}

void Feed::restore(const io::JsonObject& state) {
  if (sources_.empty()) {
    text_position_ = state.integer("position");
    HADAL_CHECK(text_position_ >= 0, state.where(), ": position is ", text_position_,
                "; it cannot be negative: resume from another checkpoint");
    return;
  }
  const std::vector<io::JsonObject> list = state.objects("sources");
  HADAL_CHECK(list.size() == sources_.size(), state.where(), " is of ", list.size(),
              " data sources, and this run has ", sources_.size(),
              "; resume with the sources that wrote it");
  for (size_t i = 0; i < list.size(); ++i) {
    const io::JsonObject& saved = list[i];
    Source& source = sources_[i];
    const io::Dataset& dataset = source.tokens->dataset();
    HADAL_CHECK(saved.integer("documents") == dataset.train_documents &&
                    saved.integer("tokens") == dataset.train_tokens,
                saved.where(), " is of ", saved.integer("documents"), " documents with ",
                saved.integer("tokens"), " tokens, and ", source.config.shards, " has ",
                dataset.train_documents, " with ", dataset.train_tokens,
                "; resume with the sources that wrote it");
    source.credit = saved.number("credit");
    source.cursor = {.epoch = saved.integer("epoch"), .row = saved.integer("row")};
    source.given = saved.integer("given");
    HADAL_CHECK(source.cursor.epoch >= 0 && source.cursor.row >= 0, saved.where(),
                ": epoch or row is negative; resume from another checkpoint");
  }
}

}  // namespace hadal::train
