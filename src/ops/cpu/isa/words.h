// Vectors of 32-bit words and the transposition of a square of them, for the instruction set that
// the including file is compiled for.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>

namespace hadal::ops::cpu {
namespace {

#if defined(__AVX512F__)

constexpr int kLanes = 16;
typedef uint32_t Words __attribute__((vector_size(64)));

// NOTE: the masked forms with all lanes set are the plain instructions; GCC 12 warns of its own
// header's plain ones (an "uninitialised" value that no lane uses).
inline __m512i low32(__m512i a, __m512i b) { return _mm512_maskz_unpacklo_epi32(0xffff, a, b); }
inline __m512i high32(__m512i a, __m512i b) { return _mm512_maskz_unpackhi_epi32(0xffff, a, b); }
inline __m512i low64(__m512i a, __m512i b) { return _mm512_maskz_unpacklo_epi64(0xff, a, b); }
inline __m512i high64(__m512i a, __m512i b) { return _mm512_maskz_unpackhi_epi64(0xff, a, b); }
template <int kWhich>
inline __m512i quarters(__m512i a, __m512i b) {
  return _mm512_maskz_shuffle_i32x4(0xffff, a, b, kWhich);
}

inline void transpose(Words* w) {
  __m512i t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const auto a = reinterpret_cast<__m512i>(w[2 * i]), b = reinterpret_cast<__m512i>(w[2 * i + 1]);
    t[2 * i] = low32(a, b);
    t[2 * i + 1] = high32(a, b);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    u[4 * i] = low64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 1] = high64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 2] = low64(t[4 * i + 1], t[4 * i + 3]);
    u[4 * i + 3] = high64(t[4 * i + 1], t[4 * i + 3]);
  }
  // u[4 i + j] holds columns j, 4 + j, 8 + j, 12 + j of rows 4 i .. 4 i + 3, one in each quarter.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i a = quarters<0x88>(u[j], u[4 + j]), b = quarters<0xdd>(u[j], u[4 + j]);
    const __m512i c = quarters<0x88>(u[8 + j], u[12 + j]), d = quarters<0xdd>(u[8 + j], u[12 + j]);
    w[j] = reinterpret_cast<Words>(quarters<0x88>(a, c));
    w[8 + j] = reinterpret_cast<Words>(quarters<0xdd>(a, c));
    w[4 + j] = reinterpret_cast<Words>(quarters<0x88>(b, d));
    w[12 + j] = reinterpret_cast<Words>(quarters<0xdd>(b, d));
  }
}

#elif defined(__AVX2__)

constexpr int kLanes = 8;
typedef uint32_t Words __attribute__((vector_size(32)));

inline void transpose(Words* w) {
  __m256i t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto a = reinterpret_cast<__m256i>(w[2 * i]), b = reinterpret_cast<__m256i>(w[2 * i + 1]);
    t[2 * i] = _mm256_unpacklo_epi32(a, b);
    t[2 * i + 1] = _mm256_unpackhi_epi32(a, b);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    w[i] = reinterpret_cast<Words>(_mm256_permute2x128_si256(u[i], u[4 + i], 0x20));
    w[4 + i] = reinterpret_cast<Words>(_mm256_permute2x128_si256(u[i], u[4 + i], 0x31));
  }
}

#else

constexpr int kLanes = 4;
typedef uint32_t Words __attribute__((vector_size(16)));

inline void transpose(Words* w) {
  constexpr Words kLow = {0, 4, 1, 5}, kHigh = {2, 6, 3, 7}, kFirst = {0, 1, 4, 5},
                  kSecond = {2, 3, 6, 7};
  const Words a = __builtin_shuffle(w[0], w[1], kLow), b = __builtin_shuffle(w[0], w[1], kHigh);
  const Words c = __builtin_shuffle(w[2], w[3], kLow), d = __builtin_shuffle(w[2], w[3], kHigh);
  w[0] = __builtin_shuffle(a, c, kFirst);
  w[1] = __builtin_shuffle(a, c, kSecond);
  w[2] = __builtin_shuffle(b, d, kFirst);
  w[3] = __builtin_shuffle(b, d, kSecond);
}

#endif

}  // namespace
}  // namespace hadal::ops::cpu
