// Counter-based random numbers: the published Philox-4x32-10 vectors, and what is drawn from them.
// SPDX-License-Identifier: Apache-2.0
#include "core/rng.h"

#include <gtest/gtest.h>

#include <set>

namespace hadal {
namespace {

// kat_vectors of Random123: counter, key, result.
TEST(Rng, PublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Rng(0, 0).block(0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint64_t kOnes = ~uint64_t{0};
  EXPECT_EQ(Rng(kOnes, kOnes).block(kOnes),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Rng(0x299f31d0a4093822, 0x0370734413198a2e).block(0x85a308d3243f6a88),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, APureFunctionOfSeedStreamAndCounter) {
  const Rng rng(5, stream_id("a"));
  EXPECT_EQ(rng.u64(7), Rng(5, stream_id("a")).u64(7));
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 4; ++seed)
    for (const char* stream : {"a", "b", "ab"})
      for (uint64_t counter : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, ~uint64_t{0}})
        seen.insert(Rng(seed, stream_id(stream)).u64(counter));
  EXPECT_EQ(seen.size(), 48u);
}

TEST(Rng, StreamIdIsFnv1a) {
  EXPECT_EQ(stream_id(""), 0xcbf29ce484222325u);
  EXPECT_EQ(stream_id("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(stream_id("foobar"), 0x85944171f73967e8u);
  EXPECT_EQ(stream_id("\xff"), (0xcbf29ce484222325u ^ 0xff) * 0x100000001b3u);  // bytes, not chars
}

TEST(Rng, UniformAndNormalHaveTheirMoments) {
  const Rng rng(11, 13);
  constexpr uint64_t kCount = 100000;
  double sum = 0, square = 0, normal_sum = 0, normal_square = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double u = rng.uniform(i), z = rng.normal(i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    square += u * u;
    normal_sum += z;
    normal_square += z * z;
  }
  // Five standard deviations of each mean.
  const double n = kCount, five = 5 / std::sqrt(n);
  EXPECT_NEAR(sum / n, 0.5, five * std::sqrt(1.0 / 12));
  EXPECT_NEAR(square / n, 1.0 / 3, five * std::sqrt(4.0 / 45));
  EXPECT_NEAR(normal_sum / n, 0.0, five);
  EXPECT_NEAR(normal_square / n, 1.0, five * std::sqrt(2.0));
}

}  // namespace
}  // namespace hadal
