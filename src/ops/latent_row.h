// A row of the FP8 latent cache in memory, for the CPU and the GPU.
//
//   R latent width   Dr rope width
//
// R elements e4m3 | ceil(R/128) scales f32 | Dr elements bf16 | padding to a multiple of 16 bytes:
// 512 + 16 + 128 bytes at DeepSeek-V3's sizes. A scale belongs to 128 columns of the row, the last
// one to what is left, and is a power of two: an element times its scale is exact in bf16, so every
// body computes with the same values whatever it multiplies in. The key is bf16 because rope gives
// it no norm, and it is a tenth of the row.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/fp8_format.h"

namespace hadal::ops {

struct Fp8LatentRow {
  static constexpr int64_t kTile = 128;  // columns of a scale
  static constexpr int64_t kAlign = 16;  // of a row's bytes

  int64_t R, Dr;

  HADAL_BOTH constexpr int64_t num_scales() const { return (R + kTile - 1) / kTile; }
  // Bytes from the row's first to its scales and to its key, and of all of it.
  HADAL_BOTH constexpr int64_t scale_at() const { return (R + 3) / 4 * 4; }
  HADAL_BOTH constexpr int64_t key_at() const { return scale_at() + 4 * num_scales(); }
  HADAL_BOTH constexpr int64_t bytes() const {
    return (key_at() + 2 * Dr + kAlign - 1) / kAlign * kAlign;
  }
};
static_assert(Fp8LatentRow{512, 64}.bytes() == 656);

// The scale of a tile whose largest magnitude is amax.
HADAL_BOTH inline float latent_scale(float amax) {
  return tile_scale(amax, ScaleFormat::kPowerOfTwo);
}

}  // namespace hadal::ops
