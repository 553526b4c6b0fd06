// Weights in the order that products on the CPU read them: panels of 32 rows, so that a product is
// one run through memory and turns nothing in registers. On the CPU only, and for x w^T only.
//
//   N rows   K columns   G = ceil(K / 128) groups of integers   W words of a row
//
// An Operand in panels has data i32 [N, W], of which only the shape says rows: the memory is words
// [ceil(N / 32)][W][32 rows]. Its scale tells what a word is:
//   none                        two k of bf16, the first in the lower half       W = K / 2
//   f32, one of 128 x 128       four k of e4m3, the first in the lowest bits     W = K / 4
//   bf16 [N, G]                 four k plus 128 (W = 32 G), or eight k plus 8 (W = 16 G): the first
//                               four in the lower halves of the bytes, the others in the upper
// Scales of integers lie in panels too, [ceil(N / 32)][G][32 rows]. Integers fill whole panels and
// groups: what is past N repeats the last row, what is past K meets activations of zero. bf16 and
// e4m3 take matrices that fit (fits_panels), e4m3 without what the fast decoding cannot do.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace hadal {

inline constexpr int64_t kPanelRows = 32;
inline constexpr int64_t kIntGroup = 128;

inline bool in_panels(const Operand& w) { return w.data.dtype() == DType::kI32; }

// bf16 or block e4m3 of whole panels and blocks.
bool fits_panels(const Operand& w);
// Such a weight in panels, in as much memory at `to`, which may be the weight's own. e4m3 with a
// NaN or a scale of 128 or more is given back as it is, in rows.
Operand pack_panels(Context& ctx, const Operand& w, void* to);

constexpr int64_t int_groups(int64_t K) { return (K + kIntGroup - 1) / kIntGroup; }
// Words of a row and group. REQUIRES: bits is 8 or 4.
constexpr int64_t int_group_words(int bits) { return kIntGroup * bits / 32; }
Shape int_words_shape(const Shape& matrix, int bits);  // [whole panels of rows, W]
Shape int_scales_shape(const Shape& matrix);           // [whole panels of rows, G]
// The operand of a matrix [N, K] in memory of these shapes.
Operand int_operand(const Shape& matrix, const Tensor& words, const Tensor& scales);
// Rows of words as checkpoints hold them, [N, ceil(K / (32 / bits))], the first element in the
// lowest bits, and scales [N, G] -> an operand of the matrix [N, K].
void pack_int_panels(Context& ctx, int64_t K, In words, In scales, const Operand& to);

}  // namespace hadal
