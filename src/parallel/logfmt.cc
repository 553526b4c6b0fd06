// LogFMT: encoding to the nearest level, decoding.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/logfmt.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "core/check.h"

namespace hadal::logfmt {
namespace {

constexpr double kRange = 32.0 * std::numbers::ln2;

double level(const Tile& tile, int64_t k) {
  return k == 0 ? 0.0 : std::exp(tile.min + tile.step * static_cast<double>(k - 1));
}

// The nearer of the two levels around a magnitude; the smaller one on a tie.
int64_t nearest_level(const Tile& tile, double magnitude, int64_t last) {
  const double position =
      tile.step > 0.0 ? (std::log(magnitude) - tile.min) / tile.step + 1.0 : 1.0;
  const int64_t below = std::clamp<int64_t>(static_cast<int64_t>(std::floor(position)), 0, last);
  const int64_t above = std::min(below + 1, last);
  return magnitude - level(tile, below) <= level(tile, above) - magnitude ? below : above;
}

}  // namespace

Tile encode(std::span<const float> values, int bits) {
  HADAL_CHECK(bits >= 3 && bits <= 16, "LogFMT has 3 to 16 bits, not ", bits);
  Tile tile;
  tile.bits = bits;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const float v : values) {
    HADAL_CHECK(std::isfinite(v), "LogFMT encodes finite numbers, not ", static_cast<double>(v));
    if (v == 0.0f) continue;
    const double logarithm = std::log(std::abs(static_cast<double>(v)));
    low = std::min(low, logarithm);
    high = std::max(high, logarithm);
  }
  const int64_t last = (int64_t{1} << (bits - 1)) - 1;
  if (high >= low) {
    tile.min = std::max(low, high - kRange);
    tile.step = (high - tile.min) / static_cast<double>(last - 1);
  }
  for (const float v : values) {
    const int64_t k = v == 0.0f ? 0 : nearest_level(tile, std::abs(static_cast<double>(v)), last);
    const bool negative = v < 0.0f && k > 0;
    tile.codes.push_back(static_cast<uint16_t>(k | (negative ? last + 1 : 0)));
  }
  return tile;
}

std::vector<float> decode(const Tile& tile) {
  const int64_t sign = int64_t{1} << (tile.bits - 1);
  std::vector<float> values;
  for (const uint16_t code : tile.codes) {
    const auto magnitude = static_cast<float>(level(tile, code & (sign - 1)));
    values.push_back(code & sign ? -magnitude : magnitude);
  }
  return values;
}

}  // namespace hadal::logfmt
