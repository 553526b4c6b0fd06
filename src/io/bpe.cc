// Tables with open addressing, and the loops over a piece's symbols.
// SPDX-License-Identifier: Apache-2.0
#include "io/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <queue>

namespace hadal::io {
namespace {

// Above this many bytes a piece is merged with a heap: the search is quadratic, but over numbers
// that lie side by side.
constexpr size_t kSearchedBytes = 256;
// search() looks for the least rank << kPlaceBits | place, which is the leftmost of equal ranks.
constexpr int kPlaceBits = 8;
constexpr size_t kSearchableMerges = size_t{1} << (31 - kPlaceBits);
constexpr int32_t kNoRank = INT32_MAX;
constexpr size_t kFilterBits = size_t{1} << 21;
constexpr uint64_t kMix = 0x9E3779B97F4A7C15u;

// left and right are the halves of the key.
uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Multiplied, and the halves of the product added: every bit of x decides about every bit.
uint64_t mix(uint64_t x) {
  const auto product = static_cast<unsigned __int128>(x ^ kMix) * 0xD6E8FEB86659FD93u;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t hash_of(std::string_view bytes) {
  uint64_t hash = bytes.size(), word = 0;
  size_t at = 0;
  for (; at + sizeof(word) <= bytes.size(); at += sizeof(word)) {
    std::memcpy(&word, bytes.data() + at, sizeof(word));
    hash = mix(hash ^ word);
  }
  for (word = 0; at < bytes.size(); ++at) word = word << 8 | static_cast<uint8_t>(bytes[at]);
  return mix(hash ^ word);
}

size_t capacity_for(size_t count) { return std::bit_ceil(2 * count + 2); }

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids),
      pairs_(capacity_for(merges.size())),
      filter_(kFilterBits / 64),
      searchable_(merges.size() < kSearchableMerges) {
  pairs_shift_ = 64 - std::countr_zero(pairs_.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t key = pair_key(merges[rank].left, merges[rank].right), hash = mix(key);
    filter_[hash % kFilterBits / 64] |= uint64_t{1} << hash % 64;
    // NOTE: if a pair stands twice in the list, the last place counts, as in Hugging Face's reader.
    const_cast<Pair&>(slot(key, hash)) = {key, {static_cast<int32_t>(rank), merges[rank].result}};
  }
  byte_pairs_.reserve(256 * 256);
  for (int32_t left : byte_ids_)
    for (int32_t right : byte_ids_) byte_pairs_.push_back(find(left, right));
}

// The pair, or the free slot where it would be.
const Bpe::Pair& Bpe::slot(uint64_t key, uint64_t hash) const {
  const size_t mask = pairs_.size() - 1;
  for (size_t at = hash >> pairs_shift_;; ++at) {
    const Pair& pair = pairs_[at & mask];
    if (pair.key == key || pair.key == UINT64_MAX) return pair;
  }
}

Bpe::Merged Bpe::find(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right), hash = mix(key);
  if ((filter_[hash % kFilterBits / 64] >> hash % 64 & 1) == 0) return {};
  return slot(key, hash).merged;
}

// What search() works on, one entry for each symbol of the piece.
struct Bpe::Search {
  // Of the pair that begins with the symbol: what search() looks for the least of, and its result.
  std::array<int32_t, kSearchedBytes> keys, results;
  // Symbols that are still there.
  std::array<uint16_t, kSearchedBytes + 1> next, previous;

  void set(size_t at, Merged merged) {
    keys[at] =
        merged.rank == kNoRank ? kNoRank : merged.rank << kPlaceBits | static_cast<int32_t>(at);
    results[at] = merged.result;
  }
};

void Bpe::add_whole_merged(const std::vector<Whole>& tokens) {
  std::vector<Whole> merged;
  std::vector<int32_t> ids;
  for (const Whole& token : tokens) {
    ids.clear();
    merge(token.bytes, ids);
    if (ids.size() == 1 && ids[0] == token.id) merged.push_back(token);
  }
  add_whole(merged);
}

void Bpe::add_whole(const std::vector<Whole>& tokens) {
  whole_ = tokens;
  whole_slots_.assign(capacity_for(tokens.size()), {});
  const size_t mask = whole_slots_.size() - 1;
  for (size_t i = 0; i < tokens.size(); ++i) {
    longest_whole_ = std::max(longest_whole_, tokens[i].bytes.size());
    if (find_whole(tokens[i].bytes) != nullptr) continue;  // the first of two equal ones counts
    const uint64_t hash = hash_of(tokens[i].bytes);
    size_t at = hash & mask;
    while (whole_slots_[at].index != 0) at = (at + 1) & mask;
    whole_slots_[at] = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(i + 1)};
  }
}

const Bpe::Whole* Bpe::find_whole(std::string_view piece) const {
  if (piece.size() > longest_whole_ || whole_slots_.empty()) return nullptr;
  const uint64_t hash = hash_of(piece);
  const size_t mask = whole_slots_.size() - 1;
  for (size_t at = hash & mask; whole_slots_[at].index != 0; at = (at + 1) & mask) {
    if (whole_slots_[at].tag != static_cast<uint32_t>(hash >> 32)) continue;
    const Whole& token = whole_[whole_slots_[at].index - 1];
    if (token.bytes == piece) return &token;
  }
  return nullptr;
}

void Bpe::merge(std::string_view piece, std::vector<int32_t>& ids) const {
  if (const Whole* token = find_whole(piece)) return ids.push_back(token->id);
  const size_t begin = ids.size(), n = piece.size();
  const auto byte = [&](size_t i) -> size_t { return static_cast<uint8_t>(piece[i]); };
  for (size_t i = 0; i < n; ++i) ids.push_back(byte_ids_[byte(i)]);
  if (n > kSearchedBytes || !searchable_) {
    std::vector<int32_t> symbols(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end());
    merge_by_heap(symbols);
    ids.resize(begin);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
    return;
  }
  Search state;
  for (size_t i = 0; i + 1 < n; ++i) state.set(i, byte_pairs_[byte(i) << 8 | byte(i + 1)]);
  ids.resize(begin + search(std::span(ids).subspan(begin), state));
}

void Bpe::merge_by_search(std::vector<int32_t>& symbols) const {
  Search state;
  for (size_t i = 0; i + 1 < symbols.size(); ++i) state.set(i, find(symbols[i], symbols[i + 1]));
  symbols.resize(search(symbols, state));
}

// REQUIRES: kSearchedBytes symbols at most; fewer than kSearchableMerges merges.
size_t Bpe::search(std::span<int32_t> symbols, Search& state) const {
  const size_t n = symbols.size();
  if (n < 2) return n;
  auto& [keys, results, next, previous] = state;
  for (size_t i = 0; i < n; ++i) {
    next[i] = static_cast<uint16_t>(i + 1);
    previous[i + 1] = static_cast<uint16_t>(i);
  }
  keys[n - 1] = kNoRank;
  for (;;) {
    int32_t least = kNoRank;
    for (size_t i = 0; i < n; ++i) least = std::min(least, keys[i]);
    if (least == kNoRank) break;
    const auto at = static_cast<size_t>(least & ((1 << kPlaceBits) - 1));
    const size_t gone = next[at];
    symbols[at] = results[at];
    keys[gone] = kNoRank;
    next[at] = next[gone];
    previous[next[gone]] = static_cast<uint16_t>(at);
    state.set(at, next[at] < n ? find(symbols[at], symbols[next[at]]) : Merged{});
    if (at > 0) state.set(previous[at], find(symbols[previous[at]], symbols[at]));
  }
  size_t left = 0;
  for (size_t i = 0; i < n; i = next[i]) symbols[left++] = symbols[i];
  return left;
}

void Bpe::merge_by_heap(std::vector<int32_t>& symbols) const {
  struct Candidate {
    int32_t rank;
    size_t at;
    uint64_t key;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
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
    symbols[c.at] = find(symbols[c.at], symbols[gone]).result;
    symbols[gone] = -1;
    next[c.at] = next[gone];
    if (next[gone] < n) previous[next[gone]] = c.at;
    offer(c.at);
    offer(previous[c.at]);
  }
  std::erase(symbols, -1);
}

}  // namespace hadal::io
