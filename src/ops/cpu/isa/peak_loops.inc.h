// Loops that only multiply and add in registers, or only read.
//
// The including file includes dot4.h and sets HADAL_TABLE and HADAL_PEAK_NAME.
// SPDX-License-Identifier: Apache-2.0

namespace hadal::ops::cpu {
namespace {

constexpr int kChains = 12;  // independent sums: more than latency times issue width

#if defined(__FMA__)
constexpr auto peak_multiply_add = multiply_add;
#else
inline Vec peak_multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
#endif

// Keeps a value in a register and hides it from the optimiser. NOTE: every loop over the sums is
// unrolled, or the compiler holds them in memory and the loops measure stores.
template <class V>
[[gnu::always_inline]] inline void keep(V& v) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

double fma(int64_t rounds) {
  Vec sum[kChains], a = 0.5f - Vec{}, b = 0.25f - Vec{};
#pragma GCC unroll 12
  for (Vec& s : sum) s = a;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sum[j] = peak_multiply_add(sum[j], a, b);
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) keep(sum[j]);
  }
  return 2.0 * kLanes * kChains * static_cast<double>(rounds);
}

// Where products are not added up by the instruction that makes them, bytes are multiplied as
// halves that were unpacked before. The operand is hidden each time, or a product would be made
// once.
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr auto peak_dot = dot2;
constexpr int kProducts = 2;  // of a word
#else
constexpr auto peak_dot = dot4;
constexpr int kProducts = 4;
#endif

double int_dot(int64_t rounds) {
  Words sum[kChains], w = 3u + Words{}, a = 5u + Words{};
#pragma GCC unroll 12
  for (Words& s : sum) s = a;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) {
      keep(w);
      sum[j] = peak_dot(sum[j], w, a);
    }
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) keep(sum[j]);
  }
  return 2.0 * kProducts * kLanes * kChains * static_cast<double>(rounds);
}

double read(const std::byte* from, int64_t bytes) {
  constexpr int kParts = 512 / static_cast<int>(sizeof(Words));
  Words any[4] = {};
  for (int64_t i = 0; i < bytes; i += 512) {
#pragma GCC unroll 32
    for (int j = 0; j < kParts; ++j) {
      Words v;
      __builtin_memcpy(&v, from + i + j * static_cast<int>(sizeof(Words)), sizeof(v));
      any[j % 4] |= v;
    }
  }
#pragma GCC unroll 4
  for (Words& v : any) keep(v);
  return static_cast<double>(bytes);
}

}  // namespace

extern const PeakLoops HADAL_TABLE;
const PeakLoops HADAL_TABLE = {
    .name = HADAL_PEAK_NAME, .fma = fma, .int_dot = int_dot, .read = read};

}  // namespace hadal::ops::cpu
