// Kernels of integer products: 8-bit activations times weights of 8 or 4 bits.
//
//   M rows of activations   N rows of a weight   K inner width   G groups of 128 along K
//
// A weight is stored in 32-bit words along K, as unsigned numbers: 8 bits plus 128, or 4 bits plus
// 8, the first in the lowest bits; one bf16 scale for each row and group. Activations are quantised
// row by row and group by group as they come: scale = max |x| / 127, q = round(x * (127 / max)).
// The products of a group are summed exactly in i32; groups add up in order in f32:
//   c = fma(dot, activation scale * weight scale, c)
// so a token's results have the same bits in any company and on every instruction set.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "ops/cpu/pack.h"

namespace hadal::ops::cpu {

inline constexpr int64_t kIntGroup = 128;
inline constexpr int64_t kIntRows = 12;   // most rows of a block of activations
inline constexpr int64_t kIntPanel = 32;  // weight rows of a panel

enum class IntBits : uint8_t { k8, k4 };
constexpr int64_t words_of(IntBits bits, int64_t K) {  // stored words of a row
  return bits == IntBits::k8 ? (K + 3) / 4 : (K + 7) / 8;
}
// A word of a panel holds four k. For 4 bits a stored word becomes two: its even k, its odd k.
constexpr int64_t panel_words(IntBits bits, int64_t K) {
  return bits == IntBits::k8 ? (K + 3) / 4 : (K + 7) / 8 * 2;
}

struct IntKernels {
  // x [K] f32 -> row r of a block of `rows`: q[word * rows + r] in the panels' order of k (zeros
  // past K), scale[g * rows + r], sum[g * rows + r] of the q of a group.
  void (*quantise)(IntBits bits, const float* x, int64_t K, int64_t rows, int64_t r, uint32_t* q,
                   float* scale, int32_t* sum);
  // `count` stored words of up to 32 rows -> panel[word][32]. `ahead`: as much memory that will be
  // read next, or null.
  void (*pack)(IntBits bits, const StoredRows& from, int64_t count, uint32_t* panel,
               const std::byte* ahead);
  // One group: c[m][32] = fma(dot, a_scale[m] * w_scale[n], c) over `count` panel words.
  struct Group {
    IntBits bits;
    int64_t rows, count;
    const uint32_t* q;      // [count][rows]
    const float* a_scale;   // [rows]
    const int32_t* sum;     // [rows]
    const uint32_t* panel;  // [count][32]
    const float* w_scale;   // [32]
  };
  void (*multiply)(const Group& group, float* c, int64_t ldc);
};
extern const IntKernels int_portable, int_avx2, int_avx512, int_vnni;
// Of active_isa(); with VNNI where the processor has it beside AVX-512.
const IntKernels& int_kernels();

}  // namespace hadal::ops::cpu
