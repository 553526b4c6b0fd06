// Vectors of 32-bit words, read from narrower integers too, and the transposition of a square of
// them, for the instruction set that the including file is compiled for.
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

// NOTE: what __builtin_convertvector makes of bytes moves each by itself with GCC 12.
inline Words load_bytes(const void* from) {  // with their signs
  return reinterpret_cast<Words>(
      _mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(from))));
}
inline Words load_halves(const void* from) {
  return reinterpret_cast<Words>(
      _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(from))));
}

template <int kStage>
[[gnu::always_inline]] inline void transpose_stage(const Words* in, Words* out) {
  const auto at = [&](int i) { return reinterpret_cast<__m512i>(in[i]); };
  if constexpr (kStage == 0) {
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      out[i] = reinterpret_cast<Words>(low32(at(i), at(i + 1)));
      out[i + 1] = reinterpret_cast<Words>(high32(at(i), at(i + 1)));
    }
  } else if constexpr (kStage == 1) {
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      out[i] = reinterpret_cast<Words>(low64(at(i), at(i + 2)));
      out[i + 1] = reinterpret_cast<Words>(high64(at(i), at(i + 2)));
      out[i + 2] = reinterpret_cast<Words>(low64(at(i + 1), at(i + 3)));
      out[i + 3] = reinterpret_cast<Words>(high64(at(i + 1), at(i + 3)));
    }
  } else {
    // in[4 i + j] holds columns j, 4 + j, 8 + j, 12 + j of rows 4 i .. 4 i + 3, one a quarter.
    constexpr int kFirst = kStage == 2 ? 0 : 2;
#pragma GCC unroll 2
    for (int j = kFirst; j < kFirst + 2; ++j) {
      const __m512i a = quarters<0x88>(at(j), at(4 + j)), b = quarters<0xdd>(at(j), at(4 + j));
      const __m512i c = quarters<0x88>(at(8 + j), at(12 + j)),
                    d = quarters<0xdd>(at(8 + j), at(12 + j));
      out[j] = reinterpret_cast<Words>(quarters<0x88>(a, c));
      out[8 + j] = reinterpret_cast<Words>(quarters<0xdd>(a, c));
      out[4 + j] = reinterpret_cast<Words>(quarters<0x88>(b, d));
      out[12 + j] = reinterpret_cast<Words>(quarters<0xdd>(b, d));
    }
  }
}

#elif defined(__AVX2__)

constexpr int kLanes = 8;
typedef uint32_t Words __attribute__((vector_size(32)));

inline Words load_bytes(const void* from) {
  return reinterpret_cast<Words>(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))));
}
inline Words load_halves(const void* from) {
  return reinterpret_cast<Words>(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
}

template <int kStage>
[[gnu::always_inline]] inline void transpose_stage(const Words* in, Words* out) {
  const auto at = [&](int i) { return reinterpret_cast<__m256i>(in[i]); };
  if constexpr (kStage == 0) {
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      out[i] = reinterpret_cast<Words>(_mm256_unpacklo_epi32(at(i), at(i + 1)));
      out[i + 1] = reinterpret_cast<Words>(_mm256_unpackhi_epi32(at(i), at(i + 1)));
    }
  } else if constexpr (kStage == 1) {
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      out[i] = reinterpret_cast<Words>(_mm256_unpacklo_epi64(at(i), at(i + 2)));
      out[i + 1] = reinterpret_cast<Words>(_mm256_unpackhi_epi64(at(i), at(i + 2)));
      out[i + 2] = reinterpret_cast<Words>(_mm256_unpacklo_epi64(at(i + 1), at(i + 3)));
      out[i + 3] = reinterpret_cast<Words>(_mm256_unpackhi_epi64(at(i + 1), at(i + 3)));
    }
  } else {
    constexpr int kFirst = kStage == 2 ? 0 : 2;
#pragma GCC unroll 2
    for (int i = kFirst; i < kFirst + 2; ++i) {
      out[i] = reinterpret_cast<Words>(_mm256_permute2x128_si256(at(i), at(4 + i), 0x20));
      out[4 + i] = reinterpret_cast<Words>(_mm256_permute2x128_si256(at(i), at(4 + i), 0x31));
    }
  }
}

#else

constexpr int kLanes = 4;
typedef uint32_t Words __attribute__((vector_size(16)));

inline Words load_bytes(const void* from) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  typedef int32_t Ints __attribute__((vector_size(sizeof(Words))));
  Bytes b;
  __builtin_memcpy(&b, from, sizeof(b));
  return reinterpret_cast<Words>(__builtin_convertvector(b, Ints));
}
inline Words load_halves(const void* from) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  Halves h;
  __builtin_memcpy(&h, from, sizeof(h));
  return __builtin_convertvector(h, Words);
}

template <int kStage>
inline void transpose_stage(const Words* in, Words* out) {
  constexpr Words kLow = {0, 4, 1, 5}, kHigh = {2, 6, 3, 7}, kFirst = {0, 1, 4, 5},
                  kSecond = {2, 3, 6, 7};
  if constexpr (kStage == 0) {
    out[0] = __builtin_shuffle(in[0], in[1], kLow);
    out[1] = __builtin_shuffle(in[0], in[1], kHigh);
    out[2] = __builtin_shuffle(in[2], in[3], kLow);
    out[3] = __builtin_shuffle(in[2], in[3], kHigh);
  } else if constexpr (kStage == 1) {
    for (int i = 0; i < 4; ++i) out[i] = in[i];
  } else {
    constexpr int kPair = kStage - 2;
    out[2 * kPair] = __builtin_shuffle(in[kPair], in[2 + kPair], kFirst);
    out[2 * kPair + 1] = __builtin_shuffle(in[kPair], in[2 + kPair], kSecond);
  }
}

#endif

// The transposition of a square, in place; its stages, for code that does other things in between.
inline void transpose(Words* w) {
  Words t[kLanes], u[kLanes];
  transpose_stage<0>(w, t);
  transpose_stage<1>(t, u);
  transpose_stage<2>(u, w);
  transpose_stage<3>(u, w);
}

}  // namespace
}  // namespace hadal::ops::cpu
