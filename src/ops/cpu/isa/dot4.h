// Four products of unsigned and signed bytes added to each 32-bit word, and a fused multiply-add,
// for the instruction set that this file is compiled for.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/cpu/isa/words.h"

namespace hadal::ops::cpu {
namespace {

typedef float Vec __attribute__((vector_size(sizeof(Words))));
typedef int32_t Ints __attribute__((vector_size(sizeof(Words))));

#if defined(__AVX512VNNI__)
inline Words dot4(Words sum, Words w, Words a) {
  return reinterpret_cast<Words>(_mm512_dpbusd_epi32(
      reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(a)));
}
#elif defined(__AVX512BW__)
// Even and odd bytes as 16-bit numbers: no sum of two products saturates there.
inline Words dot4(Words sum, Words w, Words a) {
  const auto x = reinterpret_cast<__m512i>(w), y = reinterpret_cast<__m512i>(a);
  const __m512i low = _mm512_set1_epi16(0xff);
  const __m512i even =
      _mm512_madd_epi16(_mm512_and_si512(x, low), _mm512_srai_epi16(_mm512_slli_epi16(y, 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(x, 8), _mm512_srai_epi16(y, 8));
  return sum + reinterpret_cast<Words>(even) + reinterpret_cast<Words>(odd);
}
#elif defined(__AVX2__)
inline Words dot4(Words sum, Words w, Words a) {
  const auto x = reinterpret_cast<__m256i>(w), y = reinterpret_cast<__m256i>(a);
  const __m256i low = _mm256_set1_epi16(0xff);
  const __m256i even =
      _mm256_madd_epi16(_mm256_and_si256(x, low), _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(y, 8));
  return sum + reinterpret_cast<Words>(even) + reinterpret_cast<Words>(odd);
}
#else
inline Words dot4(Words sum, Words w, Words a) {
  for (int i = 0; i < 4; ++i) {
    const auto byte = reinterpret_cast<Ints>(a << (24 - 8 * i)) >> 24;
    sum += ((w >> (8 * i)) & 0xffu) * reinterpret_cast<Words>(byte);
  }
  return sum;
}
#endif

// Two products of unsigned and signed halves added to each word.
#if defined(__AVX512BW__)
inline Words dot2(Words sum, Words w, Words a) {
  return sum + reinterpret_cast<Words>(
                   _mm512_madd_epi16(reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(a)));
}
#elif defined(__AVX2__)
inline Words dot2(Words sum, Words w, Words a) {
  return sum + reinterpret_cast<Words>(
                   _mm256_madd_epi16(reinterpret_cast<__m256i>(w), reinterpret_cast<__m256i>(a)));
}
#endif

#if defined(__AVX2__) && !defined(__AVX512BW__)
// Bytes 0 and 2 of each word, and 1 and 3, as halves with their signs.
typedef int16_t SignedHalves __attribute__((vector_size(sizeof(Words))));
inline Words even_halves(Words bytes) {
  return reinterpret_cast<Words>(reinterpret_cast<SignedHalves>(bytes) << 8 >> 8);
}
inline Words odd_halves(Words bytes) {
  return reinterpret_cast<Words>(reinterpret_cast<SignedHalves>(bytes) >> 8);
}

// Bytes of at most 15 with signed ones: two products fit into 16 bits, and the sums of eight pairs.
constexpr int kPairs = 8;
inline Words add_pairs(Words pairs, Words w, Words a) {
  return reinterpret_cast<Words>(_mm256_add_epi16(
      reinterpret_cast<__m256i>(pairs),
      _mm256_maddubs_epi16(reinterpret_cast<__m256i>(w), reinterpret_cast<__m256i>(a))));
}
inline Words sum_of_pairs(Words pairs) {
  return reinterpret_cast<Words>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(pairs), _mm256_set1_epi16(1)));
}
// sum += the products of kPairs words w with as many of a, `step` apart.
inline Words dot_of_nibbles(Words sum, const Words* w, const uint32_t* a, int64_t step) {
  Words pairs = {};
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i) pairs = add_pairs(pairs, w[i], a[i * step] + Words{});
  return sum + sum_of_pairs(pairs);
}
#else
constexpr int kPairs = 0;
inline Words dot_of_nibbles(Words sum, const Words*, const uint32_t*, int64_t) { return sum; }
#endif

#if defined(__AVX512F__)
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__FMA__)
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
#else
// Fused as the others are, by the C library where the processor cannot.
inline Vec multiply_add(Vec a, Vec b, Vec c) {
  Vec sum;
  for (int i = 0; i < kLanes; ++i) sum[i] = std::fma(a[i], b[i], c[i]);
  return sum;
}
#endif

}  // namespace
}  // namespace hadal::ops::cpu
