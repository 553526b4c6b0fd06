// Roundings of the FP8 recipe that the CPU and the GPU share: scales of tiles, and E5M6.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HADAL_BOTH __host__ __device__
#else
#define HADAL_BOTH
#endif

namespace hadal::ops {

enum class ScaleFormat : uint8_t { kF32, kPowerOfTwo };

inline constexpr float kE4M3Max = 448.0f;
inline constexpr float kSmallestAmax = 1e-4f;

// v >= 2^-126 rounded up to a power of two.
HADAL_BOTH inline float round_up_to_power_of_two(float v) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, v);
  return __builtin_bit_cast(float, (bits + 0x7fffffu) & 0x7f800000u);
}

// What an e4m3 element of a tile whose largest magnitude is amax is multiplied with.
HADAL_BOTH inline float tile_scale(float amax, ScaleFormat format) {
  const float exact = (amax > kSmallestAmax ? amax : kSmallestAmax) / kE4M3Max;
  return format == ScaleFormat::kF32 ? exact : round_up_to_power_of_two(exact);
}

// A sum as Hopper's matrix unit would keep it, 14 bits of it (report, 3.3.2), instead of in f32:
// for the ablation HADAL_FP8_SHORT_SUMS.
HADAL_BOTH inline float short_sum(float sum) {
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, sum) & 0xfffffc00u);
}

// E5M6 (report, 3.5.2): sign, 5 bits of exponent (bias 15), 6 of mantissa: an f16 without its last
// four bits of mantissa. Saturates at kE5M6Max; there is no infinity, and no NaN is ever stored.
inline constexpr float kE5M6Max = 65024.0f;
inline constexpr float kSmallestE5M6Amax = 1e-30f;  // scales stay normal numbers

HADAL_BOTH inline float e5m6_scale(float amax) {
  return round_up_to_power_of_two((amax > kSmallestE5M6Amax ? amax : kSmallestE5M6Amax) / kE5M6Max);
}

HADAL_BOTH inline uint32_t to_e5m6(float v) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, v);
  const uint32_t sign = (bits >> 20) & 0x800u, magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477e0000u) return sign | 0x7bfu;  // 65024 and more
  if (magnitude < 0x38800000u) {                       // subnormal: one unit is 2^-20
    const float units = __builtin_bit_cast(float, magnitude) * 0x1p20f;
    // Adding 2^23 rounds to the nearest integer, ties to even.
    const uint32_t rounded = __builtin_bit_cast(uint32_t, units + 0x1p23f) & 0xffu;
    return sign | rounded;
  }
  const uint32_t rounded = magnitude + 0xffffu + ((magnitude >> 17) & 1u);
  return sign | ((rounded >> 17) - (112u << 6));
}

HADAL_BOTH inline float from_e5m6(uint32_t bits) {
  const uint32_t sign = (bits & 0x800u) << 20, magnitude = bits & 0x7ffu;
  const float value = magnitude < 64u ? static_cast<float>(magnitude) * 0x1p-20f
                                      : __builtin_bit_cast(float, (magnitude + (112u << 6)) << 17);
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) | sign);
}

// Eight values in three words, the first in the lowest bits.
HADAL_BOTH inline void pack_e5m6_words(const uint32_t (&v)[8], uint32_t (&words)[3]) {
  words[0] = v[0] | v[1] << 12 | v[2] << 24;
  words[1] = v[2] >> 8 | v[3] << 4 | v[4] << 16 | v[5] << 28;
  words[2] = v[5] >> 4 | v[6] << 8 | v[7] << 20;
}
HADAL_BOTH inline void unpack_e5m6_words(const uint32_t (&words)[3], uint32_t (&v)[8]) {
  v[0] = words[0] & 0xfffu;
  v[1] = words[0] >> 12 & 0xfffu;
  v[2] = (words[0] >> 24 | words[1] << 8) & 0xfffu;
  v[3] = words[1] >> 4 & 0xfffu;
  v[4] = words[1] >> 16 & 0xfffu;
  v[5] = (words[1] >> 28 | words[2] << 4) & 0xfffu;
  v[6] = words[2] >> 8 & 0xfffu;
  v[7] = words[2] >> 20 & 0xfffu;
}

}  // namespace hadal::ops
