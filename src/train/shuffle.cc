// Shuffling by a Feistel network.
// SPDX-License-Identifier: Apache-2.0
#include "train/shuffle.h"

namespace hadal::train {
namespace {

constexpr int kFeistelRounds = 4;

}  // namespace

int64_t permute(int64_t index, int64_t size, const Rng& rng) {
  int half_bits = 1;
  while ((int64_t{1} << (2 * half_bits)) < size) ++half_bits;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  auto value = static_cast<uint64_t>(index);
  do {
    uint64_t left = value >> half_bits, right = value & mask;
    for (uint64_t round = 0; round < kFeistelRounds; ++round) {
      const uint64_t mixed = left ^ (rng.u64(round << 32 | right) & mask);
      left = right;
      right = mixed;
    }
    value = left << half_bits | right;
  } while (value >= static_cast<uint64_t>(size));
  return static_cast<int64_t>(value);
}

}  // namespace hadal::train
