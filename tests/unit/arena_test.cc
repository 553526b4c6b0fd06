// The arena: pieces are apart, free neighbours join, and the range stays as short as it can.
// SPDX-License-Identifier: Apache-2.0
#include "core/arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

constexpr size_t G = Arena::kGrain;

TEST(Arena, GivesWholeGrainsFromTheLowEnd) {
  Arena arena;
  EXPECT_EQ(arena.take(0), 0u);
  EXPECT_EQ(arena.take(1), G);
  EXPECT_EQ(arena.take(G + 1), 2 * G);
  EXPECT_EQ(arena.take(G), 4 * G);
  EXPECT_EQ(arena.end(), 5 * G);
  EXPECT_EQ(arena.in_use(), 5 * G);
}

// What three pieces leave serves one of all three; lists by size would have grown.
TEST(Arena, JoinsFreeNeighboursInEveryOrder) {
  std::vector<size_t> order = {0, 1, 2};
  do {
    Arena arena;
    const size_t at[] = {arena.take(G), arena.take(2 * G), arena.take(3 * G)};
    const size_t behind = arena.take(G);
    for (const size_t i : order) arena.give_back(at[i], (i + 1) * G);
    EXPECT_EQ(arena.take(6 * G), 0u);
    EXPECT_EQ(arena.end(), 7 * G);
    EXPECT_EQ(behind, 6 * G);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(Arena, GrowsByWhatTheFreeEndLacks) {
  Arena arena;
  static_cast<void>(arena.take(G));
  const size_t last = arena.take(2 * G);
  arena.give_back(last, 2 * G);
  EXPECT_EQ(arena.take(5 * G), G);
  EXPECT_EQ(arena.end(), 6 * G);
}

TEST(Arena, TrimsTheFreeEnd) {
  Arena arena;
  const size_t first = arena.take(G), last = arena.take(2 * G);
  arena.trim();
  EXPECT_EQ(arena.end(), 3 * G);
  arena.give_back(last, 2 * G);
  arena.trim();
  EXPECT_EQ(arena.end(), G);
  arena.give_back(first, G);
  arena.trim();
  EXPECT_EQ(arena.end(), 0u);
  EXPECT_EQ(arena.take(G), 0u);
}

TEST(Arena, KnowsWhatIsGivenBackTwice) {
  Arena arena;
  const size_t a = arena.take(G), b = arena.take(G);
  static_cast<void>(arena.take(G));
  arena.give_back(b, G);
  EXPECT_ERROR(arena.give_back(b, G), "internal error: a piece of an arena was given back twice");
  arena.give_back(a, G);
  EXPECT_ERROR(arena.give_back(a, G), "internal error: a piece of an arena was given back twice");
}

// Against a plain list of what is taken: no two pieces overlap, all lie in the range.
TEST(Arena, RandomTraffic) {
  Arena arena;
  const Rng rng(5, 6);
  std::map<size_t, size_t> live;  // begin -> bytes
  size_t in_use = 0;
  for (uint64_t i = 0; i < 20000; ++i) {
    const uint64_t draw = rng.u64(i);
    if (draw % 5 < 3 && live.size() < 200) {
      const size_t bytes = (draw >> 8) % (draw % 7 == 0 ? 100 * G : 4 * G) + 1;
      const size_t at = arena.take(bytes), size = Arena::piece_bytes(bytes);
      const auto next = live.lower_bound(at);
      ASSERT_TRUE(next == live.end() || at + size <= next->first);
      ASSERT_TRUE(next == live.begin() ||
                  std::prev(next)->first + Arena::piece_bytes(std::prev(next)->second) <= at);
      ASSERT_LE(at + size, arena.end());
      live[at] = bytes;
      in_use += size;
    } else if (!live.empty()) {
      const auto piece = std::next(live.begin(), static_cast<int64_t>((draw >> 8) % live.size()));
      arena.give_back(piece->first, piece->second);
      in_use -= Arena::piece_bytes(piece->second);
      live.erase(piece);
    }
    ASSERT_EQ(arena.in_use(), in_use);
  }
  for (const auto& [at, bytes] : live) arena.give_back(at, bytes);
  EXPECT_EQ(arena.in_use(), 0u);
  arena.trim();
  EXPECT_EQ(arena.end(), 0u);
}

}  // namespace
}  // namespace hadal
