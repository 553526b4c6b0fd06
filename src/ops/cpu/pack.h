// Packing kernels: rows of a stored matrix into the panels that register kernels read.
//
//   K inner width   width  rows of a panel (mr or nr of the register kernel)
//
// Weights are read where they lie, row by row as a checkpoint holds them, and squares of 32-bit
// words are transposed in registers: one pass over memory, whatever the number of rows of the other
// operand. A panel is one k after the other, so every sum stays one chain over k.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace hadal::ops::cpu {

// Row r < rows starts at data + r * row_bytes, its K elements lie one after the other.
struct StoredRows {
  const std::byte* data;
  int64_t row_bytes;
  int64_t rows;
  const std::byte* ahead = nullptr;  // rows of the same kind that will be read next, or null
};

struct PackKernels {
  // panel[k * width + r] as f32. Rows of the panel past `rows` hold anything finite that the rows
  // hold. REQUIRES: width is below a vector's lanes or a multiple of them. dtype: f32, bf16, or
  // e4m3, which is multiplied by scale[(k + first_k) / 128].
  void (*rows)(DType dtype, const StoredRows& from, int64_t K, const float* scale, int64_t first_k,
               int64_t width, float* panel);
  // The same from a panel of 32 rows (core/panels.h) of bf16 or e4m3: `words` is its word of the
  // first k, at the first row; K is even (bf16) or a multiple of four. width: two vectors.
  void (*panel)(DType dtype, const uint32_t* words, int64_t K, const float* scale, int64_t first_k,
                float* panel);
  // The same from columns: element (r, k) is data[k * stride + r], of bf16.
  void (*bf16_columns)(int64_t rows, int64_t K, const bf16* data, int64_t stride, int64_t width,
                       float* panel);
  // n elements that lie one after the other, times their scale.
  void (*e4m3_row)(const uint8_t* from, float scale, int64_t n, float* to);
};
extern const PackKernels pack_portable, pack_avx2, pack_avx512;
const PackKernels& pack_kernels();  // of active_isa()

}  // namespace hadal::ops::cpu
