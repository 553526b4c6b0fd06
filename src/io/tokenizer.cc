// Encoding and decoding.
// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <queue>
#include <unordered_map>

#include "core/check.h"
#include "core/rng.h"
#include "io/utf8.h"

namespace hadal::io {
namespace {

// Pieces up to this size, so many of them, are remembered during one encode().
constexpr size_t kCachedPieceBytes = 64, kCachedPieces = size_t{1} << 18;
// From this size on, a piece is merged with a heap instead of by searching.
constexpr size_t kLongPieceBytes = 48;
constexpr int32_t kNoRank = INT32_MAX;

// left and right are the halves of the key.
uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

struct KeyHash {
  size_t operator()(uint64_t key) const {
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) ^ (key >> 29));
  }
};

}  // namespace

struct Tokenizer::Tables {
  struct Merged {
    int32_t rank = kNoRank, id = -1;
  };
  TokenizerSpec spec;
  AddedTokens added;
  std::array<int32_t, 256> byte_ids{};
  std::unordered_map<uint64_t, Merged, KeyHash> merges;
  std::unordered_map<std::string_view, int32_t> whole;  // only with ignore_merges
  std::vector<std::string_view> bytes;                  // by id; all tokens
  std::vector<bool> known;

  explicit Tables(TokenizerSpec s);
  Merged find(int32_t left, int32_t right) const {
    const auto at = merges.find(pair_key(left, right));
    return at == merges.end() ? Merged{} : at->second;
  }
  void encode_piece(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;
};

Tokenizer::Tables::Tables(TokenizerSpec s) : spec(std::move(s)), added(spec.added) {
  byte_ids.fill(-1);
  size_t size = spec.vocab.size();
  for (const AddedToken& token : spec.added)
    size = std::max(size, static_cast<size_t>(token.id) + 1);
  bytes.resize(size);
  known.resize(size);
  for (size_t id = 0; id < spec.vocab.size(); ++id) {
    const TokenizerSpec::Token& token = spec.vocab[id];
    if (token.name.empty()) continue;
    known[id] = true;
    bytes[id] = token.bytes;
    // A name outside the byte alphabet stands for itself; BPE never makes it.
    if (token.name != spell_bytes(token.bytes)) continue;
    if (token.bytes.size() == 1)
      byte_ids[static_cast<uint8_t>(token.bytes[0])] = static_cast<int32_t>(id);
    if (spec.ignore_merges) whole.emplace(token.bytes, static_cast<int32_t>(id));
  }
  for (const AddedToken& token : spec.added) {
    known[static_cast<size_t>(token.id)] = true;
    bytes[static_cast<size_t>(token.id)] = token.content;
  }
  merges.reserve(spec.merges.size());
  // NOTE: if a pair stands twice in the list, the last place counts, as in Hugging Face's reader.
  for (size_t rank = 0; rank < spec.merges.size(); ++rank)
    merges[pair_key(spec.merges[rank].left, spec.merges[rank].right)] = {static_cast<int32_t>(rank),
                                                                         spec.merges[rank].result};
}

// The pair with the lowest rank first, the leftmost of several: by searching.
void Tokenizer::Tables::merge_short(std::vector<int32_t>& symbols) const {
  // pairs[i] is the merge of symbols i and i + 1.
  std::array<Merged, kLongPieceBytes> pairs;
  size_t n = symbols.size();
  for (size_t i = 0; i + 1 < n; ++i) pairs[i] = find(symbols[i], symbols[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i)
      if (pairs[i].rank < pairs[best].rank) best = i;
    if (pairs[best].rank == kNoRank) break;
    symbols[best] = pairs[best].id;
    for (size_t i = best + 1; i + 1 < n; ++i) {
      symbols[i] = symbols[i + 1];
      pairs[i] = pairs[i + 1];
    }
    --n;
    if (best + 1 < n) pairs[best] = find(symbols[best], symbols[best + 1]);
    if (best > 0) pairs[best - 1] = find(symbols[best - 1], symbols[best]);
  }
  symbols.resize(n);
}

// The same order by a heap over a linked list: n log n for a piece of n bytes.
void Tokenizer::Tables::merge_long(std::vector<int32_t>& symbols) const {
  struct Candidate {
    int32_t rank;
    size_t at;
    uint64_t key;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };
  const size_t n = symbols.size();
  std::vector<size_t> next(n), previous(n);
  for (size_t i = 0; i < n; ++i) next[i] = i + 1, previous[i] = i - 1;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  const auto offer = [&](size_t at) {
    if (at >= n || next[at] >= n) return;
    const Merged merged = find(symbols[at], symbols[next[at]]);
    if (merged.rank != kNoRank)
      heap.push({merged.rank, at, pair_key(symbols[at], symbols[next[at]])});
  };
  for (size_t i = 0; i < n; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate c = heap.top();
    heap.pop();
    // Stale: one of the two symbols was merged since.
    if (symbols[c.at] < 0 || next[c.at] >= n ||
        pair_key(symbols[c.at], symbols[next[c.at]]) != c.key)
      continue;
    const size_t gone = next[c.at];
    symbols[c.at] = find(symbols[c.at], symbols[gone]).id;
    symbols[gone] = -1;
    next[c.at] = next[gone];
    if (next[gone] < n) previous[next[gone]] = c.at;
    offer(c.at);
    offer(previous[c.at]);
  }
  std::erase(symbols, -1);
}

void Tokenizer::Tables::encode_piece(std::string_view piece, std::vector<int32_t>& ids) const {
  if (spec.ignore_merges) {
    const auto at = whole.find(piece);
    if (at != whole.end()) {
      ids.push_back(at->second);
      return;
    }
  }
  std::vector<int32_t> symbols(piece.size());
  for (size_t i = 0; i < piece.size(); ++i) symbols[i] = byte_ids[static_cast<uint8_t>(piece[i])];
  if (piece.size() < kLongPieceBytes)
    merge_short(symbols);
  else
    merge_long(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

Tokenizer::Tokenizer(TokenizerSpec spec)
    : tables_(std::make_shared<const Tables>(std::move(spec))) {
  for (size_t b = 0; b < 256; ++b)
    HADAL_CHECK(tables_->byte_ids[b] >= 0, "the vocabulary has no token for the byte ", b,
                ", spelled \"", spell_bytes(std::string(1, static_cast<char>(b))), "\"; add it");
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  struct Range {
    size_t begin, end;
  };
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  // Where in `ids` a piece was encoded before.
  std::unordered_map<std::string_view, Range> cache;
  const auto on_text = [&](std::string_view stretch) {
    for (std::string_view piece : tables_->spec.pre_tokenizer.split(stretch)) {
      const size_t begin = ids.size();
      if (piece.size() > kCachedPieceBytes) {
        tables_->encode_piece(piece, ids);
        continue;
      }
      const auto [at, is_new] = cache.try_emplace(piece);
      if (is_new) {
        tables_->encode_piece(piece, ids);
        at->second = {begin, ids.size()};
        if (cache.size() > kCachedPieces) cache.clear();
        continue;
      }
      for (size_t i = at->second.begin; i < at->second.end; ++i) {
        const int32_t id = ids[i];
        ids.push_back(id);
      }
    }
  };
  tables_->added.split(text, on_text, [&](int32_t id) { ids.push_back(id); });
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (int32_t id : ids) text += bytes(id);
  return text;
}

bool Tokenizer::knows(int32_t id) const {
  return id >= 0 && id < vocab_size() && tables_->known[static_cast<size_t>(id)];
}

std::string_view Tokenizer::bytes(int32_t id) const {
  HADAL_CHECK(id >= 0 && id < vocab_size(), "there is no token ", id,
              "; the vocabulary has ids 0 to ", vocab_size() - 1);
  HADAL_CHECK(tables_->known[static_cast<size_t>(id)], "there is no token ", id,
              "; the vocabulary leaves this id out");
  return tables_->bytes[static_cast<size_t>(id)];
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(tables_->bytes.size()); }

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
  add(tables_->bytes.size());
  for (std::string_view token : tables_->bytes) add(stream_id(token));
  for (const TokenizerSpec::Merge& merge : tables_->spec.merges) {
    add(pair_key(merge.left, merge.right));
    add(static_cast<uint64_t>(merge.result));
  }
  for (const AddedToken& token : tables_->spec.added) {
    add(static_cast<uint64_t>(token.id));
    add(token.normalized);
  }
  return hash;
}

}  // namespace hadal::io
