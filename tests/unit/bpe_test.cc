// Merging: every way against a plain loop.
// SPDX-License-Identifier: Apache-2.0
#include "io/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "core/rng.h"

namespace hadal::io {
namespace {

using Ids = std::vector<int32_t>;

// Merges of random pairs of the tokens so far, of which some repeat and some give the same bytes.
struct Case {
  std::array<int32_t, 256> byte_ids{};
  std::vector<Bpe::Merge> merges;
  std::vector<std::string> bytes;  // by id

  explicit Case(uint64_t seed) {
    const Rng rng(seed, stream_id("merges"));
    for (int b = 0; b < 256; ++b) {
      byte_ids[static_cast<size_t>(b)] = b;
      bytes.emplace_back(1, static_cast<char>(b));
    }
    std::vector<int32_t> ids = {'a', 'b', 'c'};
    for (uint64_t i = 0; i < 60; ++i) {
      const int32_t left = ids[rng.u64(3 * i) % ids.size()];
      const int32_t right = ids[rng.u64(3 * i + 1) % ids.size()];
      const auto id = static_cast<int32_t>(bytes.size());
      merges.push_back({left, right, id});
      bytes.push_back(bytes[static_cast<size_t>(left)] + bytes[static_cast<size_t>(right)]);
      ids.push_back(id);
    }
  }
  std::vector<Bpe::Whole> whole() const {
    std::vector<Bpe::Whole> list;
    for (size_t id = 0; id < bytes.size(); ++id)
      list.push_back({bytes[id], static_cast<int32_t>(id)});
    return list;
  }
  // As merging is defined: the lowest rank that applies, at its leftmost place, again and again.
  Ids plainly(std::string_view piece) const {
    Ids ids;
    for (char c : piece) ids.push_back(static_cast<uint8_t>(c));
    for (size_t rank = 0; rank < merges.size();) {
      const Bpe::Merge& merge = merges[rank];
      const bool replaced =
          std::any_of(merges.begin() + static_cast<std::ptrdiff_t>(rank) + 1, merges.end(),
                      [&](const Bpe::Merge& later) {
                        return later.left == merge.left && later.right == merge.right;
                      });
      const int32_t pair[] = {merge.left, merge.right};
      const auto at = std::search(ids.begin(), ids.end(), pair, pair + 2);
      if (replaced || at == ids.end()) {
        ++rank;
        continue;
      }
      *at = merge.result;
      ids.erase(at + 1);
      rank = 0;
    }
    return ids;
  }
};

std::string letters(uint64_t seed, uint64_t length) {
  const Rng rng(seed, stream_id("letters"));
  std::string text;
  for (uint64_t i = 0; i < length; ++i) text += static_cast<char>('a' + rng.u64(i) % 3);
  return text;
}

TEST(Bpe, EveryWayMergesAsThePlainLoop) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const Case c(seed);
    const Bpe plain(c.byte_ids, c.merges);
    Bpe with_whole = plain;
    const std::vector<Bpe::Whole> whole = c.whole();
    with_whole.add_whole_merged(whole);
    for (uint64_t length = 0; length < 40; ++length) {
      const std::string piece = letters(100 * seed + length, length);
      const Ids expected = c.plainly(piece);
      Ids by_search(piece.begin(), piece.end()), by_heap = by_search, merged = {7}, whole_first;
      plain.merge_by_search(by_search);
      plain.merge_by_heap(by_heap);
      plain.merge(piece, merged);
      with_whole.merge(piece, whole_first);
      EXPECT_EQ(by_search, expected) << piece;
      EXPECT_EQ(by_heap, expected) << piece;
      EXPECT_EQ(merged[0], 7);  // what was there stays
      EXPECT_EQ(Ids(merged.begin() + 1, merged.end()), expected) << piece;
      EXPECT_EQ(whole_first, expected) << piece;
    }
  }
}

// Around 256 bytes, from which on a piece is merged with a heap.
TEST(Bpe, LongPiecesMergeAsThePlainLoop) {
  const Case c(99);
  const Bpe bpe(c.byte_ids, c.merges);
  for (uint64_t length : {200, 255, 256, 257, 258, 400, 900}) {
    const std::string piece = letters(length, length);
    const Ids expected = c.plainly(piece);
    Ids by_search(piece.begin(), piece.end()), by_heap = by_search, merged;
    bpe.merge_by_heap(by_heap);
    bpe.merge(piece, merged);
    EXPECT_EQ(by_heap, expected) << length;
    EXPECT_EQ(merged, expected) << length;
    if (length > 256) continue;
    bpe.merge_by_search(by_search);
    EXPECT_EQ(by_search, expected) << length;
  }
}

// A token that its bytes do not merge into is whole only if it is said to be.
TEST(Bpe, WholeTokens) {
  const std::array<int32_t, 256> byte_ids = Case(0).byte_ids;
  const std::vector<Bpe::Whole> tokens = {{"ab", 256}, {"abc", 257}, {"bc", 258}};
  Bpe merged(byte_ids, {{'a', 'b', 256}}), all = merged;
  merged.add_whole_merged(tokens);
  all.add_whole(tokens);
  const auto merge = [](const Bpe& bpe, std::string_view piece) {
    Ids ids;
    bpe.merge(piece, ids);
    return ids;
  };
  EXPECT_EQ(merge(merged, "ab"), (Ids{256}));
  EXPECT_EQ(merge(merged, "abc"), (Ids{256, 'c'}));
  EXPECT_EQ(merge(merged, "bc"), (Ids{'b', 'c'}));
  EXPECT_EQ(merge(all, "abc"), (Ids{257}));
  EXPECT_EQ(merge(all, "bc"), (Ids{258}));
  EXPECT_EQ(merge(all, "abcd"), (Ids{256, 'c', 'd'}));
}

}  // namespace
}  // namespace hadal::io
