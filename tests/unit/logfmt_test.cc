// LogFMT: its step, its zero code, rounding on the linear scale, and its range.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/logfmt.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/rng.h"
#include "tests/unit/expect_error.h"

namespace hadal::logfmt {
namespace {

std::vector<float> normals(uint64_t seed) {
  const Rng rng(seed, 1);
  std::vector<float> values;
  for (uint64_t i = 0; i < kTile; ++i) values.push_back(static_cast<float>(rng.normal(i)));
  return values;
}

TEST(LogFmt, GivesTheExtremesTheFirstAndLastLevel) {
  const std::vector<float> values = {0.5f, -8.0f, 0.0f, 2.0f};
  const Tile tile = encode(values, 8);
  EXPECT_NEAR(tile.min, std::log(0.5), 1e-12);
  EXPECT_NEAR(tile.step, std::log(16.0) / (128 - 2), 1e-12);  // (max - min) / (2^(n-1) - 2)
  EXPECT_EQ(tile.codes[0], 0b00000001);
  EXPECT_EQ(tile.codes[1], 0b11111111);
  EXPECT_EQ(tile.codes[2], 0b00000000);
  const std::vector<float> back = decode(tile);
  EXPECT_FLOAT_EQ(back[0], 0.5f);
  EXPECT_FLOAT_EQ(back[1], -8.0f);
  EXPECT_EQ(back[2], 0.0f);
}

TEST(LogFmt, RoundsToTheNearestOnTheLinearScale) {
  const std::vector<float> values = normals(3);
  const Tile tile = encode(values, 6);
  const std::vector<float> back = decode(tile);
  bool differs_from_log_rounding = false;
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = std::abs(static_cast<double>(values[i]));
    double best = x;  // level 0
    for (int k = 1; k < 32; ++k)
      best = std::min(best, std::abs(x - std::exp(tile.min + tile.step * (k - 1))));
    EXPECT_NEAR(std::abs(static_cast<double>(back[i]) - static_cast<double>(values[i])), best,
                1e-6);
    const double position = (std::log(x) - tile.min) / tile.step + 1;
    differs_from_log_rounding |= std::lround(position) != (tile.codes[i] & 31);
  }
  EXPECT_TRUE(differs_from_log_rounding);
}

TEST(LogFmt, KeepsItsLevelsWithin2To32) {
  const Tile tile = encode(std::vector<float>{1.0f, 1e-30f, 0x1p-32f, 0x1p-33f, 0x1p-34f}, 8);
  EXPECT_NEAR(tile.min, -32 * std::log(2.0), 1e-12);
  EXPECT_EQ(tile.codes[1], 0);  // nearer to zero than to the smallest level
  EXPECT_EQ(tile.codes[2], 1);
  EXPECT_EQ(tile.codes[4], 0);
}

TEST(LogFmt, ErrsLessWithMoreBits) {
  double last = 1.0;
  for (const int bits : {6, 8, 10, 12}) {
    double error = 0.0, norm = 0.0;
    for (uint64_t seed = 0; seed < 8; ++seed) {
      const std::vector<float> values = normals(seed), back = decode(encode(values, bits));
      for (size_t i = 0; i < values.size(); ++i) {
        error += std::pow(static_cast<double>(values[i]) - static_cast<double>(back[i]), 2);
        norm += std::pow(static_cast<double>(values[i]), 2);
      }
    }
    const double relative = std::sqrt(error / norm);
    EXPECT_LT(relative, last / 3);  // two bits are a quarter of the step
    last = relative;
  }
  EXPECT_LT(last, 2e-3);
}

TEST(LogFmt, HandlesTilesOfOneMagnitudeAndRefusesTheRest) {
  const std::vector<float> same = {-3.0f, 3.0f, 0.0f};
  EXPECT_EQ(decode(encode(same, 8)), same);
  EXPECT_EQ(decode(encode(std::vector<float>{0.0f}, 8)), std::vector<float>{0.0f});
  EXPECT_ERROR(encode(same, 2), "LogFMT has 3 to 16 bits, not 2");
  EXPECT_ERROR(encode(std::vector<float>{INFINITY}, 8), "LogFMT encodes finite numbers, not inf");
}

}  // namespace
}  // namespace hadal::logfmt
