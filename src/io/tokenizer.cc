// Encoding and decoding.
// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/rng.h"
#include "io/utf8.h"

namespace hadal::io {

struct Tokenizer::Tables {
  TokenizerSpec spec;
  AddedTokens added;
  std::string all_bytes;                 // of the vocabulary, one after another
  std::vector<std::string_view> tokens;  // the bytes of each token, into spec and all_bytes
  std::vector<int32_t> index_of;         // by id, into tokens; -1 for an id that is left out
  Bpe bpe;

  explicit Tables(TokenizerSpec s);
  void add(int32_t id, std::string_view bytes) {
    int32_t& index = index_of[static_cast<size_t>(id)];
    if (index < 0) {
      index = static_cast<int32_t>(tokens.size());
      tokens.emplace_back();
    }
    tokens[static_cast<size_t>(index)] = bytes;
  }
  std::optional<std::string_view> find(size_t id) const {
    const int32_t index = index_of[id];
    if (index < 0) return {};
    return tokens[static_cast<size_t>(index)];
  }
};

Tokenizer::Tables::Tables(TokenizerSpec s) : spec(std::move(s)), added(spec.added) {
  size_t size = 0, num_bytes = 0;
  for (const TokenizerSpec::Token& token : spec.vocab) {
    size = std::max(size, static_cast<size_t>(token.id) + 1);
    num_bytes += token.bytes.size();
  }
  for (const AddedToken& token : spec.added)
    size = std::max(size, static_cast<size_t>(token.id) + 1);
  index_of.assign(size, -1);
  tokens.reserve(spec.vocab.size() + spec.added.size());
  all_bytes.reserve(num_bytes);  // views into it stay valid

  std::array<int32_t, 256> byte_ids;
  byte_ids.fill(-1);
  std::vector<Bpe::Whole> whole;
  for (const TokenizerSpec::Token& token : spec.vocab) {
    const size_t begin = all_bytes.size();
    all_bytes += token.bytes;
    const std::string_view bytes = std::string_view(all_bytes).substr(begin);
    add(token.id, bytes);
    // A name outside the byte alphabet stands for itself; BPE never makes it.
    if (token.name != spell_bytes(token.bytes)) continue;
    if (bytes.size() == 1) byte_ids[static_cast<uint8_t>(bytes[0])] = token.id;
    whole.push_back({bytes, token.id});
  }
  for (const AddedToken& token : spec.added) add(token.id, token.content);
  for (size_t b = 0; b < 256; ++b)
    HADAL_CHECK(byte_ids[b] >= 0, "the vocabulary has no token for the byte ", b, ", spelled \"",
                spell_bytes(std::string(1, static_cast<char>(b))), "\"; add it");
  bpe = Bpe(byte_ids, spec.merges);
  if (spec.ignore_merges)
    bpe.add_whole(whole);
  else
    bpe.add_whole_merged(whole);
}

Tokenizer::Tokenizer(TokenizerSpec spec)
    : tables_(std::make_shared<const Tables>(std::move(spec))) {}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  const Emit on_piece = [&](std::string_view piece) { tables_->bpe.merge(piece, ids); };
  tables_->added.split(
      text, [&](std::string_view stretch) { tables_->spec.pre_tokenizer.split(stretch, on_piece); },
      [&](int32_t id) { ids.push_back(id); });
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (int32_t id : ids) text += bytes(id);
  return text;
}

bool Tokenizer::knows(int32_t id) const {
  return id >= 0 && id < vocab_size() && tables_->find(static_cast<size_t>(id)).has_value();
}

std::string_view Tokenizer::bytes(int32_t id) const {
  HADAL_CHECK(id >= 0 && id < vocab_size(), "there is no token ", id,
              "; the vocabulary has ids 0 to ", vocab_size() - 1);
  const std::optional<std::string_view> bytes = tables_->find(static_cast<size_t>(id));
  HADAL_CHECK(bytes.has_value(), "there is no token ", id, "; the vocabulary leaves this id out");
  return *bytes;
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(tables_->index_of.size()); }

std::optional<int32_t> Tokenizer::added_id(std::string_view content) const {
  for (const AddedToken& token : tables_->spec.added)
    if (token.content == content) return token.id;
  return {};
}

const TokenizerSpec& Tokenizer::spec() const { return tables_->spec; }

uint64_t Tokenizer::hash() const {
  uint64_t hash = stream_id(tables_->spec.pre_tokenizer.to_json().dump());
  const auto add = [&](uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
  };
  add(tables_->spec.ignore_merges);
  add(tables_->index_of.size());
  for (size_t id = 0; id < tables_->index_of.size(); ++id)
    add(stream_id(tables_->find(id).value_or(std::string_view())));
  for (const TokenizerSpec::Merge& merge : tables_->spec.merges) {
    add(static_cast<uint64_t>(static_cast<uint32_t>(merge.left)) << 32 |
        static_cast<uint32_t>(merge.right));
    add(static_cast<uint64_t>(merge.result));
  }
  for (const AddedToken& token : tables_->spec.added) {
    add(static_cast<uint64_t>(token.id));
    add(token.normalized);
  }
  return hash;
}

}  // namespace hadal::io
