// Kernels of integer products: 8-bit activations times weights of 8 or 4 bits.
//
//   M rows of activations   N rows of a weight   K inner width   G groups of 128 along K
//
// Weights lie in panels (core/panels.h): a vector of words is four k, or eight, of as many rows,
// so products are added without turning or summing across a vector. Activations are quantised row
// by row and group by group as they come: scale = max |x| / 127, q = round(x * (127 / max)). The
// products of a group are summed exactly in i32; groups add up in order in f32:
//   c = fma(dot, activation scale * weight scale, c)
// so a token's results have the same bits in any company and on every instruction set.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/panels.h"

namespace hadal::ops::cpu {

inline constexpr int64_t kIntRows = 12;              // most rows of a block of activations
inline constexpr int64_t kIntWords = kIntGroup / 4;  // words of a group of activations

enum class IntBits : uint8_t { k8, k4 };
constexpr int64_t group_words(IntBits bits) { return int_group_words(bits == IntBits::k8 ? 8 : 4); }

struct IntKernels {
  // x [K] f32 -> row r of a block of `rows`: q[word * rows + r] in whole groups (zeros past K),
  // scale[g * rows + r], sum[g * rows + r] of the q of a group.
  void (*quantise)(const float* x, int64_t K, int64_t rows, int64_t r, uint32_t* q, float* scale,
                   int32_t* sum);
  // All groups of a panel, for all rows of activations, which lie in blocks of kIntRows (the last
  // of what is left): c[m][32] = fma(dot, a_scale[m] * w_scale[n], c), group after group.
  struct Panel {
    IntBits bits;
    int64_t rows, groups;   // of activations; G
    const uint32_t* q;      // blocks of [G * 32][rows of the block]
    const float* a_scale;   // blocks of [G][rows of the block]
    const int32_t* sum;     // the same
    const uint32_t* words;  // [G][W][32]
    const bf16* scale;      // [G][32]
  };
  void (*multiply)(const Panel& panel, float* c, int64_t ldc);
};
extern const IntKernels int_portable, int_avx2, int_avx512, int_vnni;
// Of active_isa(); with VNNI where the processor has it beside AVX-512.
const IntKernels& int_kernels();

}  // namespace hadal::ops::cpu
