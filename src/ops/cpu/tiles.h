// A tile of FP8 on the CPU: the largest magnitude, and the elements of one with its scale.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/dtype.h"
#include "ops/fp8_format.h"

namespace hadal::ops::cpu {

// What is not finite cannot be quantised: an Error.
inline float largest(const float* v, int64_t count) {
  float amax = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    HADAL_CHECK(std::isfinite(v[i]), "an element to quantise is ", static_cast<double>(v[i]),
                "; FP8 holds finite values only");
    amax = std::max(amax, std::fabs(v[i]));
  }
  return amax;
}

// The tile's elements to `to`; returns its scale, a power of two.
inline float quantise_tile(const float* v, int64_t count, e4m3* to) {
  const float scale = tile_scale(largest(v, count), ScaleFormat::kPowerOfTwo);
  for (int64_t i = 0; i < count; ++i) to[i] = to_e4m3(v[i] / scale);
  return scale;
}

}  // namespace hadal::ops::cpu
