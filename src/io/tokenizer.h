// Tokenizer: byte-level BPE as tokenizer.json describes it; text to token ids and back.
//
// Text is cut at added tokens, then into pieces (io/pretokenizer.h); inside a piece, bytes are
// merged in the order of the merge list (io/bpe.h). Any bytes can be encoded, and decode(encode(x))
// == x. encode() adds no token that is not in the text: the caller puts a beginning-of-sentence
// token where it wants one. Immutable and cheap to copy; all functions may run on several threads
// at once.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/added_tokens.h"
#include "io/bpe.h"
#include "io/pretokenizer.h"

namespace hadal::io {

// What a tokenizer.json holds.
struct TokenizerSpec {
  struct Token {
    int32_t id = 0;
    std::string name;   // as in the file
    std::string bytes;  // what it decodes to
  };
  using Merge = Bpe::Merge;
  std::vector<Token> vocab;    // in the order of their ids, each of which stands once
  std::vector<Merge> merges;   // first come first
  bool ignore_merges = false;  // a piece that is in the vocabulary is one token, merges or not
  std::vector<AddedToken> added;
  PreTokenizer pre_tokenizer = PreTokenizer::standard();
  std::string post_processor = "null";  // JSON, kept as it was
};

class Tokenizer {
 public:
  // REQUIRES: each byte has a token; ids of merges are in the vocabulary.
  explicit Tokenizer(TokenizerSpec spec);
  // Reads tokenizer.json; an Error names the field that is wrong or not supported.
  static Tokenizer load(const std::string& path);
  // Writes tokenizer.json as Hugging Face reads it; the file stays whole or absent.
  void save(const std::string& path) const;

  std::vector<int32_t> encode(std::string_view text) const;
  // An Error for an id that is not in the vocabulary.
  std::string decode(const std::vector<int32_t>& ids) const;
  // False for ids that a model may have beyond its tokenizer's.
  bool knows(int32_t id) const;
  // The bytes of one token.
  std::string_view bytes(int32_t id) const;

  // One more than the highest id.
  int64_t vocab_size() const;
  // The id of an added token, by its text.
  std::optional<int32_t> added_id(std::string_view content) const;
  const TokenizerSpec& spec() const;
  // Of all that decides about ids: two tokenizers with the same hash encode alike.
  uint64_t hash() const;

 private:
  struct Tables;
  std::shared_ptr<const Tables> tables_;
};

}  // namespace hadal::io
