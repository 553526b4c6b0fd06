// Block-scaled FP8 products on the CPU: the reference of the ones on the GPU.
//
//   M rows   N columns   K inner width   E experts   P pages
//
// Partial sums over 128 of the inner width are exact products added in f32; each is scaled and
// added to the sum with one rounding.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "core/env.h"
#include "ops/cpu/matmul.h"
#include "ops/cpu/pages.h"
#include "ops/fp8.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kBlock = kTileSize;

// One block of up to 128 x 128 of a product.
struct BlockProduct {
  int64_t rows, cols, K;
  MatrixView a, b;       // rows of e4m3, K apart in steps of k_stride
  const float* scale_a;  // of row r at step s: scale_a[s * scale_a_step + r * scale_a_row]
  int64_t scale_a_step, scale_a_row;
  const float* scale_b;
  int64_t scale_b_step, scale_b_row;  // row 0: one scale for all columns
};

// sum [rows, cols] with row stride kBlock, added to.
void add_block(const BlockProduct& p, float* sum) {
  static const bool short_sums = env::fp8_short_sums();
  float partial[kBlock * kBlock];
  for (int64_t k0 = 0, step = 0; k0 < p.K; k0 += kBlock, ++step) {
    matmul<float>(p.rows, p.cols, std::min(kBlock, p.K - k0), p.a.block(0, k0), p.b.block(0, k0),
                  {partial, DType::kF32, kBlock}, Start::kZero);
    for (int64_t r = 0; r < p.rows; ++r) {
      const float sa = p.scale_a[step * p.scale_a_step + r * p.scale_a_row];
      for (int64_t n = 0; n < p.cols; ++n) {
        float& s = sum[r * kBlock + n];
        s = std::fma(partial[r * kBlock + n],
                     sa * p.scale_b[step * p.scale_b_step + n * p.scale_b_row], s);
        if (short_sums) s = short_sum(s);
      }
    }
  }
}

// c = (or +=) sum.
void store_block(const float* sum, int64_t rows, int64_t cols, const Tensor& c, int64_t at,
                 int64_t row_stride, Start start) {
  float old[kBlock], row[kBlock];
  for (int64_t r = 0; r < rows; ++r) {
    std::copy(sum + r * kBlock, sum + r * kBlock + cols, row);
    if (start == Start::kOld) {
      const float* before = read_row(c, at + r * row_stride, cols, old);
      for (int64_t n = 0; n < cols; ++n) row[n] = before[n] + row[n];
    }
    write_elements(row, address(c, at + r * row_stride), c.dtype(), cols);
  }
}

MatrixView rows_of(const Tensor& t, int64_t offset, int64_t row_stride) {
  return {address(t, offset), DType::kE4M3, row_stride, 1};
}

// Rows of one page times a weight, columns [n0, n0 + 128).
void multiply_page(const Tensor& a, int64_t a_at, int64_t a_stride, const Tensor& scale,
                   int64_t column, int64_t rows, const Operand& w, bool transposed, int64_t n0,
                   const Tensor& c, int64_t c_at, int64_t c_stride, Start start) {
  const Tensor& data = transposed ? w.transposed : w.data;
  const Tensor& scale_w = transposed ? w.transposed_scale : w.scale;
  const int64_t cols = std::min(kBlock, data.dim(0) - n0);
  float sum[kBlock * kBlock] = {};
  add_block({.rows = rows,
             .cols = cols,
             .K = data.dim(1),
             .a = rows_of(a, a_at, a_stride),
             .b = rows_of(data, n0 * data.stride(0), data.stride(0)),
             .scale_a = scale.data<float>() + column,
             .scale_a_step = scale.stride(0),
             .scale_a_row = 1,
             .scale_b = scale_w.data<float>() + n0 / kBlock * scale_w.stride(0),
             .scale_b_step = 1,
             .scale_b_row = 0},
            sum);
  store_block(sum, rows, cols, c, c_at + n0, c_stride, start);
}

void dense(Context& ctx, const TileRows& a, const Operand& w, const Tensor& c, bool transposed,
           Start start) {
  const int64_t T = c.dim(0), col_blocks = num_tiles(c.dim(1));
  ctx.threads.parallel_for(num_tiles(T) * col_blocks, [&](int64_t task, int) {
    const int64_t first = task / col_blocks * kPageRows;
    multiply_page(a.data, first * a.data.stride(0), a.data.stride(0), a.scale, first,
                  std::min(kPageRows, T - first), w, transposed, task % col_blocks * kBlock, c,
                  first * c.stride(0), c.stride(0), start);
  });
}

void grouped(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
             std::span<const Operand> w, const PagedRows& c, bool transposed, Start start) {
  const int64_t E = layout.num_experts();
  const int32_t* begin = layout.page_begin.data<int32_t>();
  for_pages(ctx, layout, [&](int64_t row, int64_t rows, int) {
    const int64_t position = row / kPageRows;
    const auto expert =
        static_cast<size_t>(std::upper_bound(begin, begin + E, position) - begin - 1);
    for (int64_t n0 = 0; n0 < c.slab.dim(2); n0 += kBlock)
      multiply_page(a.slab, row_offset(a, row), a.slab.stride(1), a.scale,
                    page_of(a, position) * kPageRows, rows, w[expert], transposed, n0, c.slab,
                    row_offset(c, row), c.slab.stride(1), start);
  });
}

// A block of dw += a^T b over pages [begin, end).
void add_gradient(const TileColumns& a, const TileColumns& b, int64_t begin, int64_t end,
                  int64_t n0, int64_t k0, const Tensor& dw) {
  if (begin == end) return;
  const int64_t N = a.data.dim(1), K = b.data.dim(1);
  const int64_t rows = std::min(kBlock, N - n0), cols = std::min(kBlock, K - k0);
  float sum[kBlock * kBlock] = {};
  for (int64_t page = begin; page < end; ++page)
    add_block({.rows = rows,
               .cols = cols,
               .K = kTileSize,
               .a = rows_of(a.data, (page * N + n0) * kTileSize, kTileSize),
               .b = rows_of(b.data, (page * K + k0) * kTileSize, kTileSize),
               .scale_a = a.scale.data<float>() + page * N + n0,
               .scale_a_step = 0,
               .scale_a_row = 1,
               .scale_b = b.scale.data<float>() + page * K + k0,
               .scale_b_step = 0,
               .scale_b_row = 1},
              sum);
  store_block(sum, rows, cols, dw, n0 * dw.stride(0) + k0, dw.stride(0), Start::kOld);
}

}  // namespace

void fp8_gemm_nt(Context& ctx, const TileRows& a, const Operand& w, Out c) {
  dense(ctx, a, w, c, false, Start::kZero);
}
void fp8_gemm_nn(Context& ctx, const TileRows& a, const Operand& w, Out c) {
  dense(ctx, a, w, c, true, Start::kZero);
}
void fp8_gemm_nn_acc(Context& ctx, const TileRows& a, const Operand& w, Acc c) {
  dense(ctx, a, w, c, true, Start::kOld);
}

void fp8_gemm_tn_acc(Context& ctx, const TileColumns& a, const TileColumns& b, Acc c) {
  const int64_t col_blocks = num_tiles(c.dim(1));
  ctx.threads.parallel_for(num_tiles(c.dim(0)) * col_blocks, [&](int64_t task, int) {
    add_gradient(a, b, 0, a.data.dim(0), task / col_blocks * kBlock, task % col_blocks * kBlock, c);
  });
}

void grouped_fp8_gemm_nt(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const Operand> w, const PagedRows& c) {
  grouped(ctx, layout, a, w, c, false, Start::kZero);
}
void grouped_fp8_gemm_nn(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const Operand> w, const PagedRows& c) {
  grouped(ctx, layout, a, w, c, true, Start::kZero);
}
void grouped_fp8_gemm_nn_acc(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                             std::span<const Operand> w, const PagedRows& c) {
  grouped(ctx, layout, a, w, c, true, Start::kOld);
}

void grouped_fp8_gemm_tn_acc(Context& ctx, const ExpertLayout& layout, const TileColumns& a,
                             const TileColumns& b, std::span<const Tensor> dw) {
  const int32_t* begin = layout.page_begin.data<int32_t>();
  const int64_t row_blocks = num_tiles(a.data.dim(1)), col_blocks = num_tiles(b.data.dim(1));
  HADAL_CHECK(begin[layout.num_experts()] <= std::min(a.data.dim(0), b.data.dim(0)),
              "the layout uses ", begin[layout.num_experts()], " pages, but the columns have ",
              a.data.dim(0), " and ", b.data.dim(0));
  const int64_t blocks = row_blocks * col_blocks;
  ctx.threads.parallel_for(layout.num_experts() * blocks, [&](int64_t task, int) {
    const int64_t e = task / blocks;
    add_gradient(a, b, begin[e], begin[e + 1], task / col_blocks % row_blocks * kBlock,
                 task % col_blocks * kBlock, dw[static_cast<size_t>(e)]);
  });
}

}  // namespace hadal::ops::cpu
