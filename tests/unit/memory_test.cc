// The pool: alignment, reuse, ownership, and random traffic against a plain model of it.
// SPDX-License-Identifier: Apache-2.0
#include "core/memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

TEST(Pool, BlocksAreAlignedAndDistinct) {
  Pool pool;
  std::vector<Block> blocks;
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{64}, size_t{1000}, size_t{3} << 20}) {
    blocks.push_back(pool.take(bytes));
    EXPECT_EQ(blocks.back().size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(blocks.back().data()) % kAlignment, 0u);
    if (bytes > 0) std::memset(blocks.back().data(), static_cast<int>(blocks.size()), bytes);
  }
  for (size_t i = 0; i < blocks.size(); ++i)
    for (size_t b = 0; b < blocks[i].size(); b += 997)
      ASSERT_EQ(static_cast<const unsigned char*>(blocks[i].data())[b], i + 1);
}

TEST(Pool, ReusesWhatWasGivenBack) {
  Pool pool;
  const void* first = nullptr;
  {
    const Block block = pool.take(1000);
    first = block.data();
  }
  EXPECT_EQ(pool.in_use_bytes(), 0u);
  const Block again = pool.take(1000);
  EXPECT_EQ(again.data(), first);
  EXPECT_EQ(pool.system_allocations(), 1);
  const Block other = pool.take(1000);
  EXPECT_NE(other.data(), first);
  EXPECT_EQ(pool.system_allocations(), 2);
}

// A free block of up to twice the size serves before the system is asked; it counts as what was
// asked.
TEST(Pool, GivesALargerFreeBlock) {
  Pool pool;
  const void* large = nullptr;
  {
    const Block block = pool.take(4096);
    large = block.data();
  }
  const Block same = pool.take(2048);
  EXPECT_EQ(same.data(), large);
  EXPECT_EQ(pool.in_use_bytes(), 2048u);
  EXPECT_EQ(pool.system_allocations(), 1);
  const Block other = pool.take(4096);
  EXPECT_EQ(pool.system_allocations(), 2);
  EXPECT_EQ(pool.in_use_bytes(), 6144u);
  EXPECT_EQ(pool.peak_bytes(), 6144u);
}

TEST(Pool, DoesNotGiveAMuchLargerBlock) {
  Pool pool;
  static_cast<void>(pool.take(4096));
  const Block small = pool.take(1024);
  EXPECT_EQ(pool.system_allocations(), 2);
  EXPECT_EQ(pool.in_use_bytes(), 1024u);
}

// The same sizes again and again: nothing is asked of the system after the first round.
TEST(Pool, ASteadyStateAllocatesNothing) {
  Pool pool;
  const Rng rng(1, 2);
  int64_t after_first = 0;
  for (int round = 0; round < 3; ++round) {
    std::vector<Block> blocks;
    for (uint64_t i = 0; i < 50; ++i) blocks.push_back(pool.take(rng.u64(i) % 100000));
    if (round == 0) after_first = pool.system_allocations();
  }
  EXPECT_EQ(after_first, 50);
  EXPECT_EQ(pool.system_allocations(), after_first);
}

TEST(Pool, CountsWholeGrains) {
  Pool pool;
  for (size_t bytes = 1; bytes < size_t{1} << 22; bytes = bytes * 9 / 8 + 1) {
    const Block block = pool.take(bytes);
    EXPECT_GE(pool.in_use_bytes(), bytes);
    EXPECT_LT(pool.in_use_bytes(), bytes + Arena::kGrain) << bytes;
  }
}

// Random takes, moves and returns; no two live blocks ever share a byte.
TEST(Pool, RandomTraffic) {
  Pool pool;
  const Rng rng(3, 4);
  std::vector<std::pair<Block, int>> live;
  size_t largest_in_use = 0;
  for (uint64_t i = 0; i < 3000; ++i) {
    const uint64_t draw = rng.u64(i);
    const size_t at = live.empty() ? 0 : draw / 16 % live.size();
    switch (draw % 4) {
      case 0:
      case 1: {
        const size_t bytes = draw / 64 % 5000 + 1;
        live.emplace_back(pool.take(bytes), static_cast<int>(i % 251));
        std::memset(live.back().first.data(), live.back().second, bytes);
        break;
      }
      case 2:
        if (live.empty()) break;
        std::swap(live[at], live.back());
        live.pop_back();
        break;
      default:
        if (live.size() < 2) break;
        live[at == 0 ? 1 : 0] = std::move(live[at]);  // frees the target
        live.erase(live.begin() + static_cast<int64_t>(at));
    }
    size_t needed = 0;
    for (const auto& [block, mark] : live) {
      needed += block.size();
      const auto* p = static_cast<const unsigned char*>(block.data());
      ASSERT_EQ(p[0], mark);
      ASSERT_EQ(p[block.size() - 1], mark);
    }
    ASSERT_GE(pool.in_use_bytes(), needed);
    largest_in_use = std::max(largest_in_use, pool.in_use_bytes());
    if (live.size() > 60) live.resize(20);
  }
  EXPECT_EQ(pool.peak_bytes(), largest_in_use);
  live.clear();
  EXPECT_EQ(pool.in_use_bytes(), 0u);
}

TEST(Block, MovesLeaveTheSourceEmpty) {
  Pool pool;
  Block a = pool.take(100);
  void* data = a.data();
  Block b = std::move(a);
  EXPECT_EQ(a.data(), nullptr);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(a.size(), 0u);
  EXPECT_EQ(b.data(), data);
  Block& same = b;
  b = std::move(same);  // to itself
  EXPECT_EQ(b.data(), data);
  a = pool.take(100);
  a = std::move(b);
  EXPECT_EQ(a.data(), data);
  Pool other;
  EXPECT_EQ(other.in_use_bytes(), 0u);
}

TEST(Block, GivesOutAlignedTensorsUntilItIsUsedUp) {
  Pool pool;
  EXPECT_EQ(tensor_bytes(DType::kF32, {3, 5}), 64u);
  EXPECT_EQ(tensor_bytes(DType::kF32, {17}), 128u);
  EXPECT_EQ(tensor_bytes(DType::kE4M3, {0, 9}), 0u);
  EXPECT_EQ(tensor_bytes(DType::kI64, {}), 64u);
  Block block = pool.take(tensor_bytes(DType::kF32, {17}) + tensor_bytes(DType::kBF16, {2, 2}));
  const Tensor a = block.tensor(DType::kF32, {17}), b = block.tensor(DType::kBF16, {2, 2});
  EXPECT_EQ(static_cast<char*>(b.raw()) - static_cast<char*>(a.raw()), 128);
  EXPECT_EQ(block.tensor(DType::kF64, {0}).num_elements(), 0);
  EXPECT_ERROR(
      block.tensor(DType::kE4M3, {1}),
      "a block of 192 bytes has 0 left and was asked for 64: its _bytes function is wrong");
}

TEST(Pool, TakesOneTensor) {
  Pool pool;
  Tensor t;
  const Block block = pool.take_tensor(DType::kF64, {2, 3}, &t);
  EXPECT_EQ(t.str(), "f64 [2, 3]");
  EXPECT_EQ(t.raw(), block.data());
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(Pool, OutOfMemoryIsASentence) {
  Pool pool;
  EXPECT_ERROR(static_cast<void>(pool.take(size_t{1} << 60)),
               "out of memory: could not get 1099511627776 MiB; use a smaller batch or model");
  EXPECT_EQ(pool.in_use_bytes(), 0u);
}
#endif

}  // namespace
}  // namespace hadal
