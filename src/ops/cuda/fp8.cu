// The formats of FP8 training on CUDA: tiles along rows and columns, weights, E5M6.
//
//   T tokens   N output width   K inner width   W width   P pages
//
// Every element is read once and written once; 16 threads hold a tile of a row, eight elements
// each. The bits are the CPU's.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/pages.cuh"
#include "ops/cuda/detail/tiles.cuh"
#include "ops/cuda/operands.h"

namespace hadal::ops::cuda {
namespace {

constexpr int kTilesPerBlock = kThreads / kTileThreads;  // rows that a block works on at once

__device__ Eight widened(const Eight& e) { return e; }
__device__ Eight widened(const PackedEight& e) { return Eight::widen(e); }

// A page of rows: of a matrix, or at a position of a layout.
struct Page {
  int64_t rows = 0;                  // in use
  int64_t x = 0, q = 0, column = 0;  // offsets of the first row; its column of the scales
};
struct DensePages {
  int64_t T, x_stride, q_stride;  // from row to row
  __device__ Page at(int64_t page) const {
    const int64_t first = page * kPageRows;
    return {min(kPageRows, T - first), first * x_stride, first * q_stride, first};
  }
};
struct LayoutPages {
  LayoutView layout;
  PagedView x, q;
  int64_t x_stride, q_stride;
  __device__ Page at(int64_t position) const {
    if (position >= layout.num_positions()) return {};
    const int64_t from = x.page_at(position), to = q.page_at(position);
    if (from < 0 || to < 0) return {};
    return {layout.rows_at(layout.expert_of(position), position), from * x.page_stride,
            to * q.page_stride, to * kPageRows};
  }
};

// Block i does piece i % pieces of page i / pieces: neighbours in time are neighbours in memory.

// One tile column of one page.
template <class Pages, bool kFast>
__global__ void __launch_bounds__(kThreads, kFast ? 4 : 1)  // 73 registers a thread made it three
    quantise_rows_kernel(Pages pages, int64_t K, int tiles, Source<kFast> x, TileRule rule,
                         Elements<kFast> q, float* scale, int64_t scale_stride, FaultSite fault) {
  __shared__ float shared[kTilesPerBlock], scales[kPageRows];
  const int tile = static_cast<int>(blockIdx.x) % tiles;
  const Page page = pages.at(static_cast<int>(blockIdx.x) / tiles);
  const int64_t k = tile * kTileSize + threadIdx.x % kTileThreads * 8;
  const int group = threadIdx.x / kTileThreads;
  float square = 0.0f;
  if (rule.shape == TileShape::kSquare) {
    uint32_t largest = 0;
    for (int64_t r = group; r < page.rows; r += kTilesPerBlock)
      largest = max(largest, largest_of(x.load(page.x + r * pages.x_stride + k, K - k)));
    square = largest_of_tile(largest, fault);
    if (threadIdx.x % kTileThreads == 0) shared[group] = square;
    __syncthreads();
    for (int i = 0; i < kTilesPerBlock; ++i) square = fmaxf(square, shared[i]);
  }
  constexpr int kAhead = 4;  // rows that a thread has asked for
#pragma unroll 1
  for (int64_t first = group; first - group % 2 < page.rows; first += kAhead * kTilesPerBlock) {
    Loaded<kFast> e[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t r = first + i * kTilesPerBlock;
      e[i] = x.load(page.x + r * pages.x_stride + k, r < page.rows ? K - k : 0);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t r = first + i * kTilesPerBlock;
      const float amax = largest_of_tile(largest_of(e[i]), fault);
      const float s = tile_scale(rule.shape == TileShape::kRow ? amax : square, rule.format);
      uint32_t two[2];
      quantise_eight(e[i], Divisor(s), two);
      if (r >= page.rows) continue;
      q.store(page.q + r * pages.q_stride + k, two, K - k);
      if (threadIdx.x % kTileThreads == 0) scales[r] = s;
    }
  }
  __syncthreads();
  if (threadIdx.x < page.rows)
    scale[tile * scale_stride + page.column + threadIdx.x] = scales[threadIdx.x];
}

template <class Pages, bool kFast>
__global__ void __launch_bounds__(kThreads)
    dequantise_rows_kernel(Pages pages, int64_t K, int tiles, Elements<kFast> q, const float* scale,
                           int64_t scale_stride, void* y, DType dtype) {
  const int tile = static_cast<int>(blockIdx.x) % tiles;
  const Page page = pages.at(static_cast<int>(blockIdx.x) / tiles);
  const int64_t k = tile * kTileSize + threadIdx.x % kTileThreads * 8;
  if (k >= K) return;
  const float* const scales = scale + tile * scale_stride + page.column;
#pragma unroll 4
  for (int i = 0; i < kPageRows / kTilesPerBlock; ++i) {
    const int64_t r = threadIdx.x / kTileThreads + i * kTilesPerBlock;
    if (r >= page.rows) continue;
    Eight e = q.load(page.q + r * pages.q_stride + k, K - k);
    const float s = scales[r];
#pragma unroll
    for (int j = 0; j < 8; ++j) e.of[j] = e.of[j] * s;
    const int64_t at = page.x + r * pages.x_stride + k;
    if constexpr (kFast) {
      e.store(static_cast<bf16*>(y) + at);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (j < K - k) store(y, dtype, at + j, e.of[j]);
    }
  }
}

// What columns are made of: elements of x, or e4m3 elements times the scales of their tiles.
template <bool kFast>
struct PlainValues {
  Source<kFast> x;
  int64_t stride;
  __device__ auto load(const Page& page, int64_t r, int64_t w, int64_t count) const {
    return x.load(page.x + r * stride + w, count);
  }
};
template <bool kFast>
struct TiledValues {
  Elements<kFast> x;
  int64_t stride;
  const float* scale;
  int64_t scale_stride;
  __device__ Eight load(const Page& page, int64_t r, int64_t w, int64_t count) const {
    Eight e = x.load(page.x + r * stride + w, count);
    // Eight neighbours never straddle a tile.
    const float s = count > 0 ? scale[w / kTileSize * scale_stride + page.column + r] : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) e.of[i] = e.of[i] * s;
    return e;
  }
};

constexpr int kColumns = 64;  // that a block turns
constexpr int kEights = kColumns / 8;
constexpr int kRowsOfThread = kPageRows * kEights / kThreads;  // one below the other
static_assert(kRowsOfThread == 4, "a thread's elements of a column are a word");

using EightColumns = uint32_t[8];

// The largest magnitude of each column, over the threads of a warp that have the same columns.
__device__ void largest_of_columns(const Eight (&v)[kRowsOfThread], EightColumns& amax) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    amax[j] = max(max(magnitude(v[0].of[j]), magnitude(v[1].of[j])),
                  max(magnitude(v[2].of[j]), magnitude(v[3].of[j])));
#pragma unroll
    for (int d = kEights; d < 32; d *= 2)
      amax[j] = max(amax[j], __shfl_xor_sync(kWholeWarp, amax[j], d));
  }
}
__device__ void largest_of_columns(const PackedEight (&v)[kRowsOfThread], EightColumns& amax) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t pair = 0;
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) pair = __vmaxu2(pair, v[r].words[i] & 0x7fff7fffu);
#pragma unroll
    for (int d = kEights; d < 32; d *= 2)
      pair = __vmaxu2(pair, __shfl_xor_sync(kWholeWarp, pair, d));
    amax[2 * i] = pair << 16;
    amax[2 * i + 1] = pair & 0xffff0000u;
  }
}

// The four elements of column j as a word.
__device__ uint32_t quantise_column(const Eight (&v)[kRowsOfThread], int j, const Divisor& by) {
  return e4m3_four(by.divide(v[0].of[j]), by.divide(v[1].of[j]), by.divide(v[2].of[j]),
                   by.divide(v[3].of[j]));
}
__device__ uint32_t quantise_column(const PackedEight (&v)[kRowsOfThread], int j,
                                    const Divisor& by) {
  return e4m3_four(by.divide_bf16(v[0].element(j)), by.divide_bf16(v[1].element(j)),
                   by.divide_bf16(v[2].element(j)), by.divide_bf16(v[3].element(j)));
}

// kColumns columns of one page. A thread has four rows of eight columns; of each column it makes a
// word, which goes to the output by way of shared memory: [column][row], whose 16-byte units are
// exchanged by the column's eighth so that neither writing nor reading meets its own banks.
template <class Pages, class Values>
__global__ void __launch_bounds__(kThreads)
    quantise_columns_kernel(Pages pages, int64_t W, int pieces, Values x, uint8_t* to,
                            float* to_scale, FaultSite fault) {
  constexpr int kUnits = kPageRows / 16;  // of a column
  __shared__ uint4 turned[kColumns * kUnits];
  __shared__ uint4 largest[kThreads / 32][kColumns / 4];
  __shared__ float4 scales[kColumns / 4], reciprocals[kColumns / 4];
  const int position = static_cast<int>(blockIdx.x) / pieces;
  const int64_t w0 = static_cast<int64_t>(static_cast<int>(blockIdx.x) % pieces) * kColumns;
  const Page page = pages.at(position);
  if (page.rows == 0) return;
  const int eighth = threadIdx.x % kEights, group = threadIdx.x / kEights;
  const int64_t w = w0 + eighth * 8;
  decltype(x.load(page, 0, 0, 0)) v[kRowsOfThread];
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const int64_t r = group * kRowsOfThread + i;
    v[i] = x.load(page, r, w, r < page.rows ? W - w : 0);
  }
  EightColumns amax;
  largest_of_columns(v, amax);
  if (threadIdx.x % 32 < kEights) {
    uint4* const mine = &largest[threadIdx.x / 32][eighth * 2];
    mine[0] = uint4{amax[0], amax[1], amax[2], amax[3]};
    mine[1] = uint4{amax[4], amax[5], amax[6], amax[7]};
  }
  __syncthreads();
  if (threadIdx.x < kColumns) {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kThreads / 32; ++i)
      most = max(most, reinterpret_cast<const uint32_t*>(largest[i])[threadIdx.x]);
    const float largest_here = __uint_as_float(most);
    if (!is_finite(most)) fault.raise(static_cast<double>(largest_here));
    const Divisor by(tile_scale(largest_here, ScaleFormat::kF32));
    reinterpret_cast<float*>(scales)[threadIdx.x] = by.scale;
    reinterpret_cast<float*>(reciprocals)[threadIdx.x] = by.reciprocal;
    if (w0 + threadIdx.x < W) to_scale[position * W + w0 + threadIdx.x] = by.scale;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int column = eighth * 8 + j;
    const Divisor by(reinterpret_cast<const float*>(scales)[column],
                     reinterpret_cast<const float*>(reciprocals)[column]);
    auto* const words = reinterpret_cast<uint32_t*>(turned + column * kUnits);
    words[(group / 4 ^ eighth) * 4 + group % 4] = quantise_column(v, j, by);
  }
  __syncthreads();
  auto* const out = reinterpret_cast<uint4*>(to + (position * W + w0) * kTileSize);
#pragma unroll
  for (int i = 0; i < kColumns * kUnits / kThreads; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads, column = at / kUnits;
    if (w0 + column < W) out[at] = turned[column * kUnits + (at % kUnits ^ column / 8)];
  }
}

// Weights at even distances.
struct WeightList {
  const void* from;
  DType dtype;
  uint8_t *to, *transposed;
  float *scale, *transposed_scale;
  int64_t from_stride, to_stride, transposed_stride, scale_stride, transposed_scale_stride;
  int64_t from_next, to_next, transposed_next, scale_next, transposed_scale_next;
};

// One block of 128 x 128 of one weight.
__global__ void __launch_bounds__(kThreads)
    quantise_weights_kernel(int64_t N, int64_t K, WeightList w, FaultSite fault) {
  __shared__ uint8_t tile[kTileSize][kTileSize + 4];
  __shared__ uint32_t largest[kThreads / 32];
  const int64_t e = blockIdx.z, n0 = blockIdx.y * kTileSize, k0 = blockIdx.x * kTileSize;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kWarps = kThreads / 32, kRowsOfWarp = kTileSize / kWarps;
  const int64_t k = k0 + lane * 4;
  float v[kRowsOfWarp][4];
  uint32_t largest_here = 0;
#pragma unroll
  for (int i = 0; i < kRowsOfWarp; ++i) {
    const int64_t n = n0 + warp + i * kWarps;
    const int64_t at = e * w.from_next + n * w.from_stride + k;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[i][j] = n < N && k + j < K ? load<float>(w.from, w.dtype, at + j) : 0.0f;
      largest_here = max(largest_here, magnitude(v[i][j]));
    }
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2)
    largest_here = max(largest_here, __shfl_xor_sync(kWholeWarp, largest_here, d));
  if (lane == 0) largest[warp] = largest_here;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) largest_here = max(largest_here, largest[i]);
  const float amax = __uint_as_float(largest_here);
  if (!is_finite(largest_here) && threadIdx.x == 0) fault.raise(static_cast<double>(amax));
  const Divisor by(tile_scale(amax, ScaleFormat::kF32));
  const float s = by.scale;
  if (threadIdx.x == 0) {
    w.scale[e * w.scale_next + blockIdx.y * w.scale_stride + blockIdx.x] = s;
    w.transposed_scale[e * w.transposed_scale_next + blockIdx.x * w.transposed_scale_stride +
                       blockIdx.y] = s;
  }
#pragma unroll
  for (int i = 0; i < kRowsOfWarp; ++i) {
    const int64_t n = n0 + warp + i * kWarps;
    const uint32_t four =
        e4m3_four(by.divide(v[i][0]), by.divide(v[i][1]), by.divide(v[i][2]), by.divide(v[i][3]));
    *reinterpret_cast<uint32_t*>(&tile[warp + i * kWarps][lane * 4]) = four;
    if (n >= N) continue;
    uint8_t* const to = w.to + e * w.to_next + n * w.to_stride + k;
    if (k + 4 <= K && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
      *reinterpret_cast<uint32_t*>(to) = four;
    } else {
      for (int j = 0; j < 4 && k + j < K; ++j) to[j] = static_cast<uint8_t>(four >> (j * 8));
    }
  }
  __syncthreads();
#pragma unroll 4
  for (int i = 0; i < kRowsOfWarp; ++i) {
    const int column = warp + i * kWarps;
    if (k0 + column >= K) continue;
    uint32_t four = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) four |= uint32_t{tile[lane * 4 + j][column]} << (j * 8);
    const int64_t n = n0 + lane * 4;
    uint8_t* const to =
        w.transposed + e * w.transposed_next + (k0 + column) * w.transposed_stride + n;
    if (n + 4 <= N && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
      *reinterpret_cast<uint32_t*>(to) = four;
    } else {
      for (int j = 0; j < 4 && n + j < N; ++j) to[j] = static_cast<uint8_t>(four >> (j * 8));
    }
  }
}

// One token: quantised once, written to the row of each of its choices, whose places are found
// once.
template <bool kFast>
__global__ void scatter_kernel(int64_t D, View x, Source<kFast> source,
                               const int32_t* row_of_choice, int64_t choice_stride, int K,
                               PagedView rows, Elements<kFast> q, float* scale,
                               int64_t scale_stride, FaultSite fault) {
  extern __shared__ int64_t places[];  // [K] offsets of rows, then their columns of the scales
  const int64_t t = blockIdx.x;
  for (int k = static_cast<int>(threadIdx.x); k < K; k += static_cast<int>(blockDim.x)) {
    const int64_t row = row_of_choice[t * choice_stride + k];
    places[k] = rows.row_offset(row);
    places[K + k] = rows.column_of(row);
  }
  __syncthreads();
  const int64_t tiles = (D + kTileSize - 1) / kTileSize;
  const int64_t step = blockDim.x / kTileThreads;
  // Every thread of a warp takes part in the sums of tiles.
  for (int64_t tile0 = 0; tile0 < tiles; tile0 += step) {
    const int64_t tile = tile0 + threadIdx.x / kTileThreads;
    const int64_t d = tile * kTileSize + threadIdx.x % kTileThreads * 8;
    const auto e = source.load(t * x.stride0 + d, D - d);
    const float amax = largest_of_tile(largest_of(e), fault);
    const Divisor by(tile_scale(amax, ScaleFormat::kPowerOfTwo));
    uint32_t two[2];
    quantise_eight(e, by, two);
    if (tile >= tiles) continue;
    for (int k = 0; k < K; ++k) {
      if (places[k] < 0) continue;
      q.store(places[k] + d, two, D - d);
      if (threadIdx.x % kTileThreads == 0) scale[tile * scale_stride + places[K + k]] = by.scale;
    }
  }
}

// A warp has 32 units of a row, eight elements and three words each; the words go through shared
// memory, so that the warp reads and writes whole lines.
constexpr int kUnitsOfWarp = 32;
constexpr int kWordsOfWarp = 3 * kUnitsOfWarp;
struct UnitsOfWarp {
  int64_t t, unit0, units;  // the row, the warp's first unit, units of a row
  __device__ UnitsOfWarp(int64_t W) : units((W + 7) / 8) {
    const int64_t warps = (units + kUnitsOfWarp - 1) / kUnitsOfWarp;
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    t = warp / warps;
    unit0 = warp % warps * kUnitsOfWarp;
  }
};

template <bool kFast>
__global__ void __launch_bounds__(kThreads)
    pack_e5m6_kernel(int64_t rows, int64_t W, View x, Source<kFast> source, int32_t* words,
                     int64_t words_stride, float* scale, int64_t scale_stride, FaultSite fault) {
  __shared__ uint32_t shared[kThreads / 32][kWordsOfWarp];
  uint32_t(&mine)[kWordsOfWarp] = shared[threadIdx.x / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const UnitsOfWarp here(W);
  if (here.t >= rows) return;
  const int64_t w = (here.unit0 + lane) * 8;
  const auto loaded = source.load(here.t * x.stride0 + w, W - w);
  const float s = e5m6_scale(largest_of_tile(largest_of(loaded), fault));
  const Eight e = widened(loaded);
  const float reciprocal = 1.0f / s;  // powers of two: a product with it is the quotient
  if (w < W && lane % kTileThreads == 0) scale[here.t * scale_stride + w / kTileSize] = s;
  uint32_t eight[8], packed[3];
#pragma unroll
  for (int i = 0; i < 8; ++i) eight[i] = to_e5m6(e.of[i] * reciprocal);
  pack_e5m6_words(eight, packed);
#pragma unroll
  for (int i = 0; i < 3; ++i) mine[lane * 3 + i] = packed[i];
  __syncwarp();
  int32_t* const to = words + here.t * words_stride + here.unit0 * 3;
#pragma unroll
  for (int i = lane; i < kWordsOfWarp; i += 32)
    if (i < (here.units - here.unit0) * 3) to[i] = static_cast<int32_t>(mine[i]);
}

template <bool kFast>
__global__ void __launch_bounds__(kThreads)
    unpack_e5m6_kernel(int64_t rows, int64_t W, const int32_t* words, int64_t words_stride,
                       const float* scale, int64_t scale_stride, View x) {
  __shared__ uint32_t shared[kThreads / 32][kWordsOfWarp];
  uint32_t(&mine)[kWordsOfWarp] = shared[threadIdx.x / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const UnitsOfWarp here(W);
  if (here.t >= rows) return;
  const int32_t* const from = words + here.t * words_stride + here.unit0 * 3;
#pragma unroll
  for (int i = lane; i < kWordsOfWarp; i += 32)
    if (i < (here.units - here.unit0) * 3) mine[i] = static_cast<uint32_t>(from[i]);
  __syncwarp();
  const int64_t w = (here.unit0 + lane) * 8;
  if (w >= W) return;
  const uint32_t packed[3] = {mine[lane * 3], mine[lane * 3 + 1], mine[lane * 3 + 2]};
  uint32_t eight[8];
  unpack_e5m6_words(packed, eight);
  const float s = scale[here.t * scale_stride + w / kTileSize];
  Eight e;
#pragma unroll
  for (int i = 0; i < 8; ++i) e.of[i] = from_e5m6(eight[i]) * s;
  if constexpr (kFast) {
    e.store(static_cast<bf16*>(x.data) + here.t * x.stride0 + w);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < W - w) x.put(here.t * x.stride0 + w + i, e.of[i]);
  }
}

LayoutPages layout_pages(const ExpertLayout& layout, const PagedRows& x, const PagedRows& q) {
  return {LayoutView(layout), PagedView(x), PagedView(q), x.slab.stride(1), q.slab.stride(1)};
}
DensePages dense_pages(const Tensor& x, const Tensor& q) {
  return {x.dim(0), x.stride(0), q.stride(0)};
}

// Blocks for `pieces` pieces of each page.
unsigned grid_of(int64_t pages, int64_t pieces) {
  HADAL_CHECK(pages * pieces < (int64_t{1} << 31), "a matrix of ", pages, " pages in ", pieces,
              " pieces is more than 2^31 blocks");
  return static_cast<unsigned>(pages * pieces);
}
unsigned warps_grid(int64_t T, int64_t W) {
  const int64_t warps = T * ceil_div(ceil_div(W, int64_t{8}), int64_t{kUnitsOfWarp});
  return static_cast<unsigned>(ceil_div(warps, int64_t{kThreads / 32}));
}

int64_t places_of(const PagedRows& x, const PagedRows& q) {
  return std::min(num_places(x), num_places(q));
}

// Whether the list's tensors lie at even distances; the distances.
bool even_distances(std::span<const Tensor> w, std::span<const Operand> q, WeightList* list) {
  list->from_next = distance_between(w, [](const Tensor& t) -> const Tensor& { return t; });
  list->to_next = distance_between(q, [](const Operand& o) -> const Tensor& { return o.data; });
  list->transposed_next =
      distance_between(q, [](const Operand& o) -> const Tensor& { return o.transposed; });
  list->scale_next = distance_between(q, [](const Operand& o) -> const Tensor& { return o.scale; });
  list->transposed_scale_next =
      distance_between(q, [](const Operand& o) -> const Tensor& { return o.transposed_scale; });
  return list->from_next >= 0 && list->to_next >= 0 && list->transposed_next >= 0 &&
         list->scale_next >= 0 && list->transposed_scale_next >= 0;
}

}  // namespace

void quantise_rows(Context& ctx, In x, TileRule rule, const TileRows& q) {
  const int64_t T = x.dim(0), K = x.dim(1), tiles = num_tiles(K);
  if (T == 0 || K == 0) return;
  with_constant(has_bf16_rows(x) && has_eights(q.data), [&](auto fast) {
    quantise_rows_kernel<<<grid_of(num_tiles(T), tiles), kThreads, 0, stream_of(ctx)>>>(
        dense_pages(x, q.data), K, static_cast<int>(tiles), source_of<fast>(x), rule,
        elements_of<fast>(q.data), q.scale.data<float>(), q.scale.stride(0),
        FaultSite(ctx, kNotFinite));
  });
  check_launch(ctx, "quantise_rows", x);
}

void dequantise_rows(Context& ctx, const TileRows& q, Out y) {
  const int64_t T = y.dim(0), K = y.dim(1), tiles = num_tiles(K);
  if (T == 0 || K == 0) return;
  with_constant(has_bf16_rows(y) && has_eights(q.data), [&](auto fast) {
    dequantise_rows_kernel<<<grid_of(num_tiles(T), tiles), kThreads, 0, stream_of(ctx)>>>(
        dense_pages(y, q.data), K, static_cast<int>(tiles), elements_of<fast>(q.data),
        q.scale.data<float>(), q.scale.stride(0), y.raw(), y.dtype());
  });
  check_launch(ctx, "dequantise_rows", y);
}

void quantise_columns(Context& ctx, In x, const TileColumns& q) {
  const int64_t T = x.dim(0), W = x.dim(1), pieces = ceil_div(W, int64_t{kColumns});
  if (T == 0 || W == 0) return;
  with_constant(has_bf16_rows(x), [&](auto fast) {
    quantise_columns_kernel<<<grid_of(num_tiles(T), pieces), kThreads, 0, stream_of(ctx)>>>(
        DensePages{T, x.stride(0), 0}, W, static_cast<int>(pieces),
        PlainValues<fast>{source_of<fast>(x), x.stride(0)},
        reinterpret_cast<uint8_t*>(q.data.data<e4m3>()), q.scale.data<float>(),
        FaultSite(ctx, kNotFinite));
  });
  check_launch(ctx, "quantise_columns", x);
}

void grouped_quantise_rows(Context& ctx, const ExpertLayout& layout, const PagedRows& x,
                           TileRule rule, const PagedRows& q) {
  const int64_t P = places_of(x, q), K = x.slab.dim(2), tiles = num_tiles(K);
  if (P == 0 || K == 0) return;
  with_constant(has_bf16_pages(x) && has_eights(q.slab), [&](auto fast) {
    quantise_rows_kernel<<<grid_of(P, tiles), kThreads, 0, stream_of(ctx)>>>(
        layout_pages(layout, x, q), K, static_cast<int>(tiles), source_of<fast>(x.slab), rule,
        elements_of<fast>(q.slab), q.scale.data<float>(), q.scale.stride(0),
        FaultSite(ctx, kNotFinite));
  });
  check_launch(ctx, "grouped_quantise_rows", x.slab);
}

void grouped_dequantise_rows(Context& ctx, const ExpertLayout& layout, const PagedRows& q,
                             const PagedRows& y) {
  const int64_t P = places_of(y, q), K = y.slab.dim(2), tiles = num_tiles(K);
  if (P == 0 || K == 0) return;
  with_constant(has_bf16_pages(y) && has_eights(q.slab), [&](auto fast) {
    dequantise_rows_kernel<<<grid_of(P, tiles), kThreads, 0, stream_of(ctx)>>>(
        layout_pages(layout, y, q), K, static_cast<int>(tiles), elements_of<fast>(q.slab),
        q.scale.data<float>(), q.scale.stride(0), y.slab.raw(), y.slab.dtype());
  });
  check_launch(ctx, "grouped_dequantise_rows", y.slab);
}

void grouped_quantise_columns(Context& ctx, const ExpertLayout& layout, const PagedRows& x,
                              const TileColumns& q) {
  const int64_t P = std::min(num_places(x), q.data.dim(0)), W = x.slab.dim(2);
  const int64_t pieces = ceil_div(W, int64_t{kColumns});
  if (P == 0 || W == 0) return;
  const auto launch = [&](const auto& values) {
    quantise_columns_kernel<<<grid_of(P, pieces), kThreads, 0, stream_of(ctx)>>>(
        layout_pages(layout, x, x), W, static_cast<int>(pieces), values,
        reinterpret_cast<uint8_t*>(q.data.data<e4m3>()), q.scale.data<float>(),
        FaultSite(ctx, kNotFinite));
  };
  const int64_t stride = x.slab.stride(1);
  if (x.scale.empty())
    with_constant(has_bf16_pages(x), [&](auto fast) {
      launch(PlainValues<fast>{source_of<fast>(x.slab), stride});
    });
  else
    with_constant(has_eights(x.slab) && W % 8 == 0, [&](auto fast) {
      launch(TiledValues<fast>{elements_of<fast>(x.slab), stride, x.scale.data<float>(),
                               x.scale.stride(0)});
    });
  check_launch(ctx, "grouped_quantise_columns", x.slab);
}

void quantise_weights(Context& ctx, std::span<const Tensor> w, std::span<const Operand> q) {
  const int64_t N = w[0].dim(0), K = w[0].dim(1);
  if (N == 0 || K == 0) return;
  WeightList list{};
  const bool even = even_distances(w, q, &list);
  const size_t at_once = even ? w.size() : 1;
  for (size_t first = 0; first < w.size(); first += at_once) {
    const Operand& o = q[first];
    list.from = w[first].raw();
    list.dtype = w[first].dtype();
    list.from_stride = w[first].stride(0);
    list.to = reinterpret_cast<uint8_t*>(o.data.data<e4m3>());
    list.to_stride = o.data.stride(0);
    list.transposed = reinterpret_cast<uint8_t*>(o.transposed.data<e4m3>());
    list.transposed_stride = o.transposed.stride(0);
    list.scale = o.scale.data<float>();
    list.scale_stride = o.scale.stride(0);
    list.transposed_scale = o.transposed_scale.data<float>();
    list.transposed_scale_stride = o.transposed_scale.stride(0);
    const dim3 grid(static_cast<unsigned>(num_tiles(K)), static_cast<unsigned>(num_tiles(N)),
                    static_cast<unsigned>(at_once));
    quantise_weights_kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(N, K, list,
                                                                   FaultSite(ctx, kNotFinite));
    check_launch(ctx, "quantise_weights", w[first]);
  }
}

void scatter_quantised_rows(Context& ctx, In x, In row_of_choice, const PagedRows& rows) {
  const int64_t T = x.dim(0), D = x.dim(1);
  if (T == 0 || D == 0) return;
  const auto threads =
      static_cast<unsigned>(std::clamp<int64_t>(ceil_div(D, 8 * 32) * 32, 32, kThreads));
  const int64_t K = row_of_choice.dim(1);
  with_constant(has_bf16_rows(x) && has_eights(rows.slab), [&](auto fast) {
    scatter_kernel<<<static_cast<unsigned>(T), threads,
                     static_cast<size_t>(K) * 2 * sizeof(int64_t), stream_of(ctx)>>>(
        D, View(x), source_of<fast>(x), row_of_choice.data<int32_t>(), row_of_choice.stride(0),
        static_cast<int>(K), PagedView(rows), elements_of<fast>(rows.slab),
        rows.scale.data<float>(), rows.scale.stride(0), FaultSite(ctx, kNotFinite));
  });
  check_launch(ctx, "scatter_quantised_rows", x);
}

void pack_e5m6(Context& ctx, In x, Out words, Out scale) {
  const int64_t T = x.dim(0), W = x.dim(1);
  if (T == 0 || W == 0) return;
  with_constant(has_bf16_rows(x), [&](auto fast) {
    pack_e5m6_kernel<<<warps_grid(T, W), kThreads, 0, stream_of(ctx)>>>(
        T, W, View(x), source_of<fast>(x), words.data<int32_t>(), words.stride(0),
        scale.data<float>(), scale.stride(0), FaultSite(ctx, kNotFinite));
  });
  check_launch(ctx, "pack_e5m6", x);
}

void unpack_e5m6(Context& ctx, In words, In scale, Out x) {
  const int64_t T = x.dim(0), W = x.dim(1);
  if (T == 0 || W == 0) return;
  with_constant(has_bf16_rows(x), [&](auto fast) {
    unpack_e5m6_kernel<fast><<<warps_grid(T, W), kThreads, 0, stream_of(ctx)>>>(
        T, W, words.data<int32_t>(), words.stride(0), scale.data<float>(), scale.stride(0),
        View(x));
  });
  check_launch(ctx, "unpack_e5m6", x);
}

}  // namespace hadal::ops::cuda
