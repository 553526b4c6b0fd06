// The formats of FP8 training on the CPU: tiles along rows and columns, weights, E5M6.
//
//   T tokens   N output width   K inner width   W width   P pages
// SPDX-License-Identifier: Apache-2.0
#include "ops/fp8.h"

#include <cmath>

#include "ops/cpu/pages.h"
#include "ops/cpu/tiles.h"

namespace hadal::ops::cpu {
namespace {

// Rows of a matrix or of one page, with what belongs to them in tiles.
struct RowBlock {
  const Tensor& x;         // elements
  const Tensor& data;      // e4m3
  const Tensor& scale;     // [num_tiles, columns]
  int64_t x_at, x_stride;  // offset of the first row in x, and from row to row
  int64_t data_at, data_stride;
  int64_t column;  // of scale, for the first row
  int64_t rows, width;
};

// The elements of one tile of a row as f32.
const float* tile_of(const RowBlock& b, int64_t row, int64_t k0, int64_t count, float* scratch) {
  return read_row(b.x, b.x_at + row * b.x_stride + k0, count, scratch);
}

void quantise(const RowBlock& b, TileRule rule) {
  float scratch[kTileSize];
  for (int64_t k0 = 0; k0 < b.width; k0 += kTileSize) {
    const int64_t count = std::min(kTileSize, b.width - k0);
    float* const scales = b.scale.data<float>() + k0 / kTileSize * b.scale.stride(0) + b.column;
    float square = 0.0f;
    for (int64_t r = 0; r < b.rows; ++r) {
      scales[r] = largest(tile_of(b, r, k0, count, scratch), count);
      square = std::max(square, scales[r]);
    }
    for (int64_t r = 0; r < b.rows; ++r) {
      const float* v = tile_of(b, r, k0, count, scratch);
      scales[r] = tile_scale(rule.shape == TileShape::kRow ? scales[r] : square, rule.format);
      e4m3* to = b.data.data<e4m3>() + b.data_at + r * b.data_stride + k0;
      for (int64_t i = 0; i < count; ++i) to[i] = to_e4m3(v[i] / scales[r]);
    }
  }
}

void dequantise(const RowBlock& b) {
  float scratch[kTileSize];
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t k0 = 0; k0 < b.width; k0 += kTileSize) {
      const int64_t count = std::min(kTileSize, b.width - k0);
      const float scale = b.scale.data<float>()[k0 / kTileSize * b.scale.stride(0) + b.column + r];
      const e4m3* from = b.data.data<e4m3>() + b.data_at + r * b.data_stride + k0;
      for (int64_t i = 0; i < count; ++i) scratch[i] = to_f32(from[i]) * scale;
      write_elements(scratch, address(b.x, b.x_at + r * b.x_stride + k0), b.x.dtype(), count);
    }
}

// Rows of whole pages of a matrix.
RowBlock block_of(const Tensor& x, const TileRows& q, int64_t page) {
  const int64_t first = page * kPageRows;
  return {x,
          q.data,
          q.scale,
          first * x.stride(0),
          x.stride(0),
          first * q.data.stride(0),
          q.data.stride(0),
          first,
          std::min(kPageRows, x.dim(0) - first),
          x.dim(1)};
}

// Rows in use of a page that starts at row number `row`.
RowBlock block_of(const PagedRows& x, const PagedRows& q, int64_t row, int64_t rows) {
  return {x.slab,
          q.slab,
          q.scale,
          row_offset(x, row),
          x.slab.stride(1),
          row_offset(q, row),
          q.slab.stride(1),
          page_of(q, row / kPageRows) * kPageRows,
          rows,
          x.slab.dim(2)};
}

// One page of columns: value(t, w) for t < rows.
template <class Value>
void quantise_page(const TileColumns& q, int64_t page, int64_t rows, const Value& value) {
  const int64_t W = q.data.dim(1);
  e4m3* to = q.data.data<e4m3>() + page * W * kTileSize;
  float* scales = q.scale.data<float>() + page * W;
  float column[kTileSize];
  for (int64_t w = 0; w < W; ++w, to += kTileSize) {
    for (int64_t t = 0; t < rows; ++t) column[t] = value(t, w);
    scales[w] = tile_scale(largest(column, rows), ScaleFormat::kF32);
    for (int64_t t = 0; t < kTileSize; ++t)
      to[t] = t < rows ? to_e4m3(column[t] / scales[w]) : e4m3{0};
  }
}

float element(const Tensor& t, int64_t offset) {
  float scratch;
  return *read_row(t, offset, 1, &scratch);
}

}  // namespace

void quantise_rows(Context& ctx, In x, TileRule rule, const TileRows& q) {
  ctx.threads.parallel_for(num_tiles(x.dim(0)),
                           [&](int64_t page, int) { quantise(block_of(x, q, page), rule); });
}

void dequantise_rows(Context& ctx, const TileRows& q, Out y) {
  ctx.threads.parallel_for(num_tiles(y.dim(0)),
                           [&](int64_t page, int) { dequantise(block_of(y, q, page)); });
}

void quantise_columns(Context& ctx, In x, const TileColumns& q) {
  ctx.threads.parallel_for(q.data.dim(0), [&](int64_t page, int) {
    const int64_t first = page * kPageRows;
    quantise_page(q, page, std::min(kPageRows, x.dim(0) - first),
                  [&](int64_t t, int64_t w) { return element(x, (first + t) * x.stride(0) + w); });
  });
}

void grouped_quantise_rows(Context& ctx, const ExpertLayout& layout, const PagedRows& x,
                           TileRule rule, const PagedRows& q) {
  for_pages(ctx, layout,
            [&](int64_t row, int64_t rows, int) { quantise(block_of(x, q, row, rows), rule); });
}

void grouped_dequantise_rows(Context& ctx, const ExpertLayout& layout, const PagedRows& q,
                             const PagedRows& y) {
  for_pages(ctx, layout,
            [&](int64_t row, int64_t rows, int) { dequantise(block_of(y, q, row, rows)); });
}

void grouped_quantise_columns(Context& ctx, const ExpertLayout& layout, const PagedRows& x,
                              const TileColumns& q) {
  for_pages(ctx, layout, [&](int64_t row, int64_t rows, int) {
    const int64_t at = row_offset(x, row), slab_row = page_of(x, row / kPageRows) * kPageRows;
    HADAL_CHECK(row / kPageRows < q.data.dim(0), "the layout uses position ", row / kPageRows,
                ", but there are ", q.data.dim(0), " pages of columns");
    quantise_page(q, row / kPageRows, rows, [&](int64_t t, int64_t w) {
      const float v = element(x.slab, at + t * x.slab.stride(1) + w);
      if (x.scale.empty()) return v;
      return v * x.scale.data<float>()[w / kTileSize * x.scale.stride(0) + slab_row + t];
    });
  });
}

void scatter_quantised_rows(Context& ctx, In x, In row_of_choice, const PagedRows& rows) {
  const int64_t W = x.dim(1), K = row_of_choice.dim(1);
  for_rows(ctx, x.dim(0), W * K, [&](int64_t begin, int64_t end, int) {
    float scratch[kTileSize];
    e4m3 tile[kTileSize];
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* choices = row_of_choice.data<int32_t>() + t * row_of_choice.stride(0);
      for (int64_t w0 = 0; w0 < W; w0 += kTileSize) {
        const int64_t count = std::min(kTileSize, W - w0);
        const float* v = read_row(x, t * x.stride(0) + w0, count, scratch);
        const float scale = quantise_tile(v, count, tile);
        for (int64_t k = 0; k < K; ++k) {
          const int64_t row = choices[k];
          if (row == -1) continue;
          std::copy(tile, tile + count, rows.slab.data<e4m3>() + row_offset(rows, row) + w0);
          rows.scale.data<float>()[w0 / kTileSize * rows.scale.stride(0) +
                                   page_of(rows, row / kPageRows) * kPageRows + row % kPageRows] =
              scale;
        }
      }
    }
  });
}

void quantise_weights(Context& ctx, std::span<const Tensor> w, std::span<const Operand> q) {
  const int64_t N = w[0].dim(0), K = w[0].dim(1), rows = num_tiles(N), cols = num_tiles(K);
  ctx.threads.parallel_for(static_cast<int64_t>(w.size()) * rows * cols, [&](int64_t task, int) {
    const auto index = static_cast<size_t>(task / (rows * cols));
    const int64_t tn = task / cols % rows, tk = task % cols;
    const Tensor& from = w[index];
    const Operand& to = q[index];
    const int64_t n0 = tn * kTileSize, k0 = tk * kTileSize;
    const int64_t count_n = std::min(kTileSize, N - n0), count_k = std::min(kTileSize, K - k0);
    float scratch[kTileSize];
    float amax = 0.0f;
    for (int64_t n = 0; n < count_n; ++n)
      amax = std::max(
          amax, largest(read_row(from, (n0 + n) * from.stride(0) + k0, count_k, scratch), count_k));
    const float scale = tile_scale(amax, ScaleFormat::kF32);
    to.scale.data<float>()[tn * to.scale.stride(0) + tk] = scale;
    to.transposed_scale.data<float>()[tk * to.transposed_scale.stride(0) + tn] = scale;
    for (int64_t n = n0; n < n0 + count_n; ++n) {
      const float* row = read_row(from, n * from.stride(0) + k0, count_k, scratch);
      for (int64_t k = 0; k < count_k; ++k) {
        const e4m3 element = to_e4m3(row[k] / scale);
        to.data.data<e4m3>()[n * to.data.stride(0) + k0 + k] = element;
        to.transposed.data<e4m3>()[(k0 + k) * to.transposed.stride(0) + n] = element;
      }
    }
  });
}

void pack_e5m6(Context& ctx, In x, Out words, Out scale) {
  const int64_t W = x.dim(1);
  for_rows(ctx, x.dim(0), W, [&](int64_t begin, int64_t end, int) {
    float scratch[kTileSize];
    for (int64_t t = begin; t < end; ++t)
      for (int64_t w0 = 0; w0 < W; w0 += kTileSize) {
        const int64_t count = std::min(kTileSize, W - w0);
        const float* v = read_row(x, t * x.stride(0) + w0, count, scratch);
        const float s = e5m6_scale(largest(v, count));
        scale.data<float>()[t * scale.stride(0) + w0 / kTileSize] = s;
        for (int64_t i = 0; i < count; i += 8) {
          uint32_t eight[8], packed[3];
          for (int64_t j = 0; j < 8; ++j) eight[j] = i + j < count ? to_e5m6(v[i + j] / s) : 0;
          pack_e5m6_words(eight, packed);
          int32_t* to = words.data<int32_t>() + t * words.stride(0) + (w0 + i) / 8 * 3;
          for (int64_t j = 0; j < 3; ++j) to[j] = static_cast<int32_t>(packed[j]);
        }
      }
  });
}

void unpack_e5m6(Context& ctx, In words, In scale, Out x) {
  const int64_t W = x.dim(1);
  for_rows(ctx, x.dim(0), W, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t w = 0; w < W; w += 8) {
        const int32_t* from = words.data<int32_t>() + t * words.stride(0) + w / 8 * 3;
        const uint32_t packed[3] = {static_cast<uint32_t>(from[0]), static_cast<uint32_t>(from[1]),
                                    static_cast<uint32_t>(from[2])};
        uint32_t eight[8];
        unpack_e5m6_words(packed, eight);
        const float s = scale.data<float>()[t * scale.stride(0) + w / kTileSize];
        float v[8];
        for (int64_t j = 0; j < 8; ++j) v[j] = from_e5m6(eight[j]) * s;
        write_elements(v, address(x, t * x.stride(0) + w), x.dtype(), std::min<int64_t>(8, W - w));
      }
  });
}

}  // namespace hadal::ops::cpu
