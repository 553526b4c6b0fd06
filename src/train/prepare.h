// prepare: text, JSONL and chats to token shards, in parallel, and on from where it was stopped.
//
// The documents of the inputs, in order, are grouped into parts of about part_bytes of text. A part
// becomes one shard of training documents and one of held-out ones, each written whole, so a run
// that was interrupted does only the parts that are missing. What becomes of a document is a
// function of (seed, its number) alone: threads and interruptions change nothing.
//
// A document is BOS, its text, EOS. With a rate of fim_rate it is put into the PSM form (report,
// 4.1): BOS, fim_begin, prefix, fim_hole, suffix, fim_end, middle, EOS, cut at two random places
// between characters. Tokens that join punctuation with a line break are split in two with a rate
// of split_rate (report, 4.1). Records of JSONL hold a text or a chat; of a chat, a model learns
// the replies of the assistant.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/rng.h"
#include "io/documents.h"
#include "io/token_shard.h"
#include "io/tokenizer.h"

namespace hadal::train {

struct PrepareConfig {
  std::vector<std::string> inputs;
  std::string tokenizer, output;  // directories
  io::DocumentSplit split = io::DocumentSplit::kFile;
  std::string text_key = "text";   // of JSONL records that hold a text
  std::string chat_template = {};  // name; of JSONL records that hold "messages"
  std::string bos = {}, eos = {};  // added tokens; empty: by the known names
  double held_out = 0.0;           // share of the documents
  double fim_rate = 0.0, split_rate = 0.0;
  uint64_t seed = 1;
  int64_t part_bytes = int64_t{64} << 20;
};

struct PrepareProgress {
  int64_t bytes_read = 0, total_bytes = 0;  // of the inputs, as stored
  int64_t documents = 0, tokens = 0;        // of parts that are complete
};

// Calls `on_progress` after each group of parts. An Error if OUTPUT was begun with another config.
io::Dataset prepare(Context& ctx, const PrepareConfig& config,
                    const std::function<void(const PrepareProgress&)>& on_progress);

// Documents to tokens.
class DocumentEncoder {
 public:
  DocumentEncoder(const PrepareConfig& config, const io::Tokenizer& tokenizer);
  int32_t bos() const { return bos_; }
  int32_t eos() const { return eos_; }
  bool is_held_out(int64_t number) const;
  // Document `number` of the inputs.
  io::TokenDocument encode(const io::Document& document, int64_t number) const;

 private:
  struct Split {
    std::vector<int32_t> first, second;  // empty: the token is not split
  };
  io::TokenDocument encode_text(std::string_view text, int64_t number) const;
  io::TokenDocument encode_chat(const std::string& json, const std::string& where) const;
  std::vector<int32_t> encode_fim(std::string_view text, int64_t number) const;
  void split_combined(std::vector<int32_t>& ids, int64_t number) const;
  int32_t added(const std::string& name, const char* option) const;
  Rng rng(const char* use) const { return {config_.seed, stream_id(use)}; }

  const PrepareConfig& config_;
  const io::Tokenizer& tokenizer_;
  int32_t bos_, eos_;
  int32_t fim_begin_ = -1, fim_hole_ = -1, fim_end_ = -1;
  std::vector<Split> splits_;  // by token
};

}  // namespace hadal::train
