// Bpe: merges the bytes of one piece in the order of the merge list.
//
// The pair with the lowest rank first, the leftmost of several. Three ways that give the same:
// a table of the tokens that a piece merges into whole, a search over an array of ranks, and for
// long pieces a heap (n log n). Immutable; merge() may run on several threads at once and asks the
// system for memory only to grow the result and for long pieces.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace hadal::io {

class Bpe {
 public:
  struct Merge {
    int32_t left = 0, right = 0, result = 0;
  };
  // A token and its bytes, which must outlive this object.
  struct Whole {
    std::string_view bytes;
    int32_t id = 0;
  };

  Bpe() = default;
  // Merges in their order; byte_ids[b] is the token of the byte b.
  Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges);
  // Pieces that are one token. The first form takes those that their own bytes merge into, the
  // second all: then a piece that is a token is one, merges or not (ignore_merges).
  void add_whole_merged(const std::vector<Whole>& tokens);
  void add_whole(const std::vector<Whole>& tokens);

  // Appends the tokens of a piece.
  void merge(std::string_view piece, std::vector<int32_t>& ids) const;

  // The twins of merge(), for tests: symbols are merged in place.
  void merge_by_search(std::vector<int32_t>& symbols) const;
  void merge_by_heap(std::vector<int32_t>& symbols) const;

 private:
  struct Merged {
    int32_t rank = INT32_MAX, result = -1;  // INT32_MAX: no merge
  };
  struct Pair {  // a slot of an open-addressing table
    uint64_t key = UINT64_MAX;
    Merged merged;
  };
  struct WholeSlot {
    uint32_t tag = 0;    // of the hash
    uint32_t index = 0;  // into whole_, from 1; 0 for a free slot
  };

  const Pair& slot(uint64_t key, uint64_t hash) const;
  Merged find(int32_t left, int32_t right) const;
  const Whole* find_whole(std::string_view piece) const;
  // keys[i], results[i]: of the symbols i and i + 1.
  struct Search;
  // The number of symbols left, at the front.
  size_t search(std::span<int32_t> symbols, Search& state) const;

  std::array<int32_t, 256> byte_ids_{};
  std::vector<Pair> pairs_;  // a power of two
  int pairs_shift_ = 64;
  // A bit for each hash of a pair: most pairs that are looked up have no merge, and these bits stay
  // in the nearest caches.
  std::vector<uint64_t> filter_;
  bool searchable_ = true;  // ranks are small enough for search()
  // Of every two bytes: where merging begins.
  std::vector<Merged> byte_pairs_;      // [256 * 256]
  std::vector<WholeSlot> whole_slots_;  // a power of two, or empty
  std::vector<Whole> whole_;
  size_t longest_whole_ = 0;  // bytes
};

}  // namespace hadal::io
