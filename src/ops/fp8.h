// The products of FP8 training and the formats that they read (report, 3.3 and 3.5.2; training
// notes, section 10).
//
//   T tokens   N output width   K inner width   W width   E experts   P pages of kPageRows rows
//
// Elements are e4m3; every tile has one f32 scale, and a value is element * scale. Scales are
// online: max(amax of the tile, 1e-4) / 448, in kPowerOfTwo rounded up to a power of two. What is
// not finite cannot be quantised: an Error.
//
//   product            left operand                      right operand
//   y  = x w^T         x:  1 x 128 along K (TileRows)     w, 128 x 128 (Operand)
//   dx = dy w          dy: 1 x 128 along N (TileRows)     w transposed, the same scales
//   dw += dy^T x       dy: 128 x 1 along T (TileColumns)  x: 128 x 1 along T (TileColumns)
//
// A product adds 128 of its inner width at a time: that partial sum is multiplied with both scales
// and added to an f32 sum, in order. Deterministic; a row of y depends on no other row.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "ops/dispatch.h"
#include "ops/fp8_format.h"
#include "ops/pages.h"

namespace hadal::ops {

inline constexpr int64_t kTileSize = 128;
constexpr int64_t num_tiles(int64_t width) { return (width + kTileSize - 1) / kTileSize; }

// How rows are cut into tiles. kSquare, 128 rows x 128, exists to show that it is worse for
// gradients (report, B.2).
enum class TileShape : uint8_t { kRow, kSquare };
struct TileRule {
  ScaleFormat format = ScaleFormat::kF32;
  TileShape shape = TileShape::kRow;
};

// A matrix in tiles along its rows. `scale` has a column for every row of whole pages.
struct TileRows {
  Tensor data;   // [T, K] e4m3; rows may be padded
  Tensor scale;  // [num_tiles(K), T rounded up to kPageRows] f32
};

// A matrix in tiles along its columns, page by page and transposed; rows past T are zeros.
struct TileColumns {
  Tensor data;   // [num_tiles(T), W, 128] e4m3
  Tensor scale;  // [num_tiles(T), W] f32
};

HADAL_OP(quantise_rows, Context& ctx, In x, TileRule rule, const TileRows& q)  // x [T,K]
HADAL_OP(dequantise_rows, Context& ctx, const TileRows& q, Out y)              // y [T,K]
HADAL_OP(quantise_columns, Context& ctx, In x, const TileColumns& q)           // x [T,W]

// The same over experts' rows: q is e4m3 with scales, and so may x of grouped_quantise_columns be.
HADAL_OP(grouped_quantise_rows, Context& ctx, const ExpertLayout& layout, const PagedRows& x,
         TileRule rule, const PagedRows& q)
HADAL_OP(grouped_dequantise_rows, Context& ctx, const ExpertLayout& layout, const PagedRows& q,
         const PagedRows& y)
// Page i of q is the page at position i.
HADAL_OP(grouped_quantise_columns, Context& ctx, const ExpertLayout& layout, const PagedRows& x,
         const TileColumns& q)

// rows[row_of_choice[t,k]] = x[t], quantised once per token with powers of two as scales: what
// dispatch sends (report, 3.3.3).                                             x [T,W]
HADAL_OP(scatter_quantised_rows, Context& ctx, In x, In row_of_choice, const PagedRows& rows)

// Weights of one shape [N,K], f32 or bf16 -> data, scale, and both transposed, for each.
HADAL_OP(quantise_weights, Context& ctx, std::span<const Tensor> w, std::span<const Operand> q)

HADAL_OP(fp8_gemm_nt, Context& ctx, const TileRows& a, const Operand& w, Out c)  // [T,N] [N,K]^T
HADAL_OP(fp8_gemm_nn, Context& ctx, const TileRows& a, const Operand& w, Out c)  // [T,N] [N,K]
HADAL_OP(fp8_gemm_nn_acc, Context& ctx, const TileRows& a, const Operand& w, Acc c)
HADAL_OP(fp8_gemm_tn_acc, Context& ctx, const TileColumns& a, const TileColumns& b,
         Acc c)  // [N,K] += [T,N]^T [T,K]

HADAL_OP(grouped_fp8_gemm_nt, Context& ctx, const ExpertLayout& layout, const PagedRows& a,
         std::span<const Operand> w, const PagedRows& c)
HADAL_OP(grouped_fp8_gemm_nn, Context& ctx, const ExpertLayout& layout, const PagedRows& a,
         std::span<const Operand> w, const PagedRows& c)
HADAL_OP(grouped_fp8_gemm_nn_acc, Context& ctx, const ExpertLayout& layout, const PagedRows& a,
         std::span<const Operand> w, const PagedRows& c)
HADAL_OP(grouped_fp8_gemm_tn_acc, Context& ctx, const ExpertLayout& layout, const TileColumns& a,
         const TileColumns& b, std::span<const Tensor> dw)

// E5M6, the 12 bits in which the input of the output projection is kept, with a power of two as the
// scale of each 1 x 128: x [T,W] <-> words [T, e5m6_words(W)] i32, scale [T, num_tiles(W)] f32.
constexpr int64_t e5m6_words(int64_t width) { return (width + 7) / 8 * 3; }
HADAL_OP(pack_e5m6, Context& ctx, In x, Out words, Out scale)
HADAL_OP(unpack_e5m6, Context& ctx, In words, In scale, Out x)

}  // namespace hadal::ops
