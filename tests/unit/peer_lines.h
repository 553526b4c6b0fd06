// Windows of the sums of ranks (ops/peer.h, PeerSums), which are threads of a test.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "ops/peer.h"

namespace hadal::test {

inline constexpr int64_t kLines = 40;

struct Windows {
  explicit Windows(int ranks)
      : of(static_cast<size_t>(ranks),
           std::vector<uint64_t>(static_cast<size_t>(ops::peer_sums_bytes(ranks, kLines) / 8))) {}
  ops::PeerSums sums_of(int rank, const int* stop = nullptr) {
    ops::PeerSums sums{.view = {.place = rank, .size = static_cast<int>(of.size())},
                       .lines = kLines,
                       .stop = stop};
    for (size_t g = 0; g < of.size(); ++g) sums.view.window[g] = of[g].data();
    return sums;
  }
  std::vector<std::vector<uint64_t>> of;
};

}  // namespace hadal::test
