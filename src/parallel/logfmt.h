// LogFMT: a tile of numbers as n-bit codes on a logarithmic scale of its own (ISCA'25 paper, 3.2).
//
// A reference for exchanges that send results in fewer bits than bf16; DeepSeek tried it and did
// not deploy it. A code is a sign bit and a level K of n-1 bits: K = 0 is zero, level K >= 1 is
// exp(min + step (K-1)). The largest magnitude gets the last level, the smallest level 1, but no
// level lies more than 2^32 below the largest. Numbers go to the nearest level on the linear scale,
// which is unbiased where the nearest logarithm is not.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hadal::logfmt {

inline constexpr int kTile = 128;  // numbers that share a scale, as FP8's 1x128

struct Tile {
  int bits = 8;       // n, 3 to 16
  double min = 0.0;   // logarithm of level 1
  double step = 0.0;  // (max - min) / (2^(n-1) - 2); 0 where all magnitudes are one
  std::vector<uint16_t> codes;
};

Tile encode(std::span<const float> values, int bits);
std::vector<float> decode(const Tile& tile);

}  // namespace hadal::logfmt
