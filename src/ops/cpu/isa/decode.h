// How stored elements of a weight become floats: f32, bf16 and e4m3, a vector of rows at once.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "ops/cpu/isa/words.h"

namespace hadal::ops::cpu {
namespace {

typedef float Vec __attribute__((vector_size(sizeof(Words))));
typedef int32_t Ints __attribute__((vector_size(sizeof(Words))));

// How kPerWord elements of one row, stored in a 32-bit word, become floats: kLanes rows at once.
struct F32 {
  static constexpr int kPerWord = 1;
  static void decode(Words w, Vec, Vec* out) { out[0] = reinterpret_cast<Vec>(w); }
};
struct BF16 {
  static constexpr int kPerWord = 2;
  static void decode(Words w, Vec, Vec* out) {
    out[0] = reinterpret_cast<Vec>(w << 16);
    out[1] = reinterpret_cast<Vec>(w & 0xffff0000u);
  }
};
// An e4m3 byte in the top byte of a word, shifted right by 4 with its sign, is a float of the
// element times 2^-120, exactly; the scale carries 2^120. NOTE: a subnormal is a subnormal float
// on the way, which costs many processors 150 cycles, so where there are many, and where there is a
// NaN, decode_special takes over with the same results.
struct E4M3 {
  static constexpr int kPerWord = 4;
  static void decode(Words w, Vec scale, Vec* out) {
    constexpr int32_t kMask = static_cast<int32_t>(0x87f00000u);
    typedef int16_t Halves __attribute__((vector_size(sizeof(Words))));
    // Bytes 1 and 3 of a word, then 0 and 2, as the upper half of a float.
    const Halves odd = reinterpret_cast<Halves>(w) >> 4;
    const Halves even = (reinterpret_cast<Halves>(w) << 8) >> 4;
    const auto at = [&](Words bits) {
      return reinterpret_cast<Vec>(reinterpret_cast<Ints>(bits) & kMask) * scale;
    };
    out[0] = at(reinterpret_cast<Words>(even) << 16);
    out[1] = at(reinterpret_cast<Words>(odd) << 16);
    out[2] = at(reinterpret_cast<Words>(even));
    out[3] = at(reinterpret_cast<Words>(odd));
  }
  // One element in each word, with its sign in all upper bits; factor is the scale times 2^120.
  static Vec decode_signed(Words w, Vec factor) {
    return reinterpret_cast<Vec>((w << 20) & 0x87f00000u) * factor;
  }
  // The same for any byte. As if normal, a magnitude is f = (1 + m/8) 2^(e-7); where e is 0 the
  // element is 2 f - 2^-6, which is less than f there and not less elsewhere.
  static void decode_special(Words w, Vec scale, Vec* out) {
    for (int b = 0; b < 4; ++b) out[b] = decode_byte((w >> (8 * b)) & 0xffu, scale);
  }
  static Vec decode_byte(Words byte, Vec scale) {
    const Vec f = reinterpret_cast<Vec>(((byte & 0x7fu) << 20) + (120u << 23));
    const Vec low = (f + f) - 0x1p-6f;
    const Words sign = (byte & 0x80u) << 24;
    const Vec v = low < f ? low : f;
    const Vec real = reinterpret_cast<Vec>(reinterpret_cast<Words>(v) | sign) * scale;
    const Ints nan = (byte & 0x7fu) == 0x7fu;
    const Ints bits = reinterpret_cast<Ints>(real);
    return reinterpret_cast<Vec>((nan & 0x7fc00000) | (~nan & bits));
  }
  // Has the top bit of a byte set where that byte is a NaN; or these of all words to check.
  static Words nan_bits(Words w) { return (w & 0x7f7f7f7fu) + 0x01010101u; }
  static bool any_nan(Words bits) {
    uint64_t lanes[kLanes / 2], any = 0;
    __builtin_memcpy(lanes, &bits, sizeof(lanes));
    for (const uint64_t lane : lanes) any |= lane;
    return (any & 0x8080808080808080u) != 0;
  }
  // Whether decode would be wrong (a NaN) or slow (many zeros and subnormals) for some of these
  // bytes: magnitudes of 127 and below 8.
  static bool needs_special(const Words* w) {
    Words normal = ~Words{}, nan = {};
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const Words magnitude = w[i] & 0x7f7f7f7fu;
      normal &= (magnitude | 0x80808080u) - 0x08080808u;
      nan |= nan_bits(w[i]);
    }
    uint64_t normals[kLanes / 2];
    __builtin_memcpy(normals, &normal, sizeof(normals));
    int count = 0;
    for (const uint64_t lanes : normals)
      count += __builtin_popcountll(~lanes & 0x8080808080808080u);
    return any_nan(nan) || count > kLanes;
  }
};

}  // namespace
}  // namespace hadal::ops::cpu
