// Token shards: documents as token ids in one mapped file, and the list of a data set's shards.
//
//   D documents   N tokens
//
// SHARD.tokens (little-endian): the header below; u64 end[D], where each document ends, in tokens;
// u16 (vocabularies of 65,536 at most) or u32 token[N]; with kHasMask, ceil(N / 8) bytes, bit n: a
// model learns to predict token n. The header holds the hash of the tokenizer that made the ids and
// of all that follows it, so a shard that is cut short, damaged, or of another vocabulary is
// refused.
// DIR/dataset.json lists the shards of a finished `hadal data prepare`.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/mmap.h"

namespace hadal::io {

// What a vocabulary is known by.
struct Vocabulary {
  uint64_t hash = 0;
  int64_t size = 0;
};

// A document to write; an empty mask means every token but the first is learned.
struct TokenDocument {
  std::vector<int32_t> ids;
  std::vector<bool> mask;
  int64_t text_bytes = 0;  // of what is learned
  int64_t num_learned() const;
};

// Written whole or not at all. Masks are stored if any document has one.
void write_token_shard(const std::string& path, const Vocabulary& vocabulary,
                       const std::vector<TokenDocument>& documents);

class TokenShard {
 public:
  // Maps and checks the file; an Error names what is wrong with it.
  TokenShard(const std::string& path, const Vocabulary& vocabulary);

  int64_t num_documents() const { return num_documents_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t text_bytes() const { return text_bytes_; }
  bool has_mask() const { return mask_ != nullptr; }
  // [begin, end) of a document, in tokens of the shard.
  int64_t begin_of(int64_t document) const;
  int64_t end_of(int64_t document) const;
  int32_t token(int64_t index) const;
  bool is_learned(int64_t index) const;
  int64_t num_learned() const;
  // Reads all of the file and compares the payload's hash.
  void check_payload() const;

 private:
  MappedFile file_;
  const std::byte *ends_ = nullptr, *tokens_ = nullptr, *mask_ = nullptr;
  int64_t num_documents_ = 0, num_tokens_ = 0, text_bytes_ = 0;
  int64_t token_bytes_ = 0;
};

// DIR/dataset.json.
struct Dataset {
  Vocabulary vocabulary;
  int32_t bos = 0, eos = 0;                  // around every document
  std::vector<std::string> train, held_out;  // shards, relative to the directory
  int64_t train_tokens = 0, held_out_tokens = 0;
  int64_t train_documents = 0, held_out_documents = 0;
  int64_t train_bytes = 0, held_out_bytes = 0;      // of text that is learned
  int64_t train_targets = 0, held_out_targets = 0;  // tokens that are learned

  static Dataset read(const std::string& dir);
  void write(const std::string& dir) const;
};

}  // namespace hadal::io
