// The formats of FP8 training on CUDA: tiles along rows and columns, weights, E5M6.
//
//   T tokens   N output width   K inner width   W width   P pages
//
// Every element is read once and written once; 16 threads hold a tile of a row, eight elements
// each. The bits are the CPU's.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/bf16_rows.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/pages.cuh"
#include "ops/cuda/detail/rows.cuh"
#include "ops/cuda/operands.h"
#include "ops/fp8.h"

namespace hadal::ops::cuda {
namespace {

constexpr int kTileThreads = kTileSize / 8;              // of a tile of a row
constexpr int kTilesPerBlock = kThreads / kTileThreads;  // rows that a block works on at once
constexpr const char* kNotFinite = "an element to quantise is {0}; FP8 holds finite values only";

// Elements that several threads read eight at a time; `fast`: bf16 at multiples of 16 bytes.
struct Source {
  const void* data;
  DType dtype;
  bool fast;

  __device__ Eight load(int64_t at, int64_t count) const {
    if (fast && count >= 8) return Eight::load(static_cast<const bf16*>(data) + at);
    Eight e{};
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) e.of[i] = cuda::load<float>(data, dtype, at + i);
    return e;
  }
};

// Eight e4m3 elements; `fast`: at multiples of 8 bytes.
struct Elements {
  uint8_t* data;
  bool fast;

  __device__ void store(int64_t at, const uint32_t (&two)[2], int64_t count) const {
    if (fast && count >= 8) {
      *reinterpret_cast<uint2*>(data + at) = uint2{two[0], two[1]};
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) data[at + i] = static_cast<uint8_t>(two[i / 4] >> (i % 4 * 8));
  }
  __device__ Eight load(int64_t at, int64_t count) const {
    uint32_t two[2] = {0, 0};
    if (fast && count >= 8) {
      const uint2 raw = *reinterpret_cast<const uint2*>(data + at);
      two[0] = raw.x, two[1] = raw.y;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < count) two[i / 4] |= uint32_t{data[at + i]} << (i % 4 * 8);
    }
    Eight e;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      e.of[i] = widen(e4m3{static_cast<uint8_t>(two[i / 4] >> (i % 4 * 8))});
    return e;
  }
};

// v / scale of two elements as e4m3, rounded once more to nearest even, saturating.
__device__ uint32_t e4m3_pair(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ void quantise_eight(const Eight& e, float scale, uint32_t (&two)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    two[i] = e4m3_pair(e.of[4 * i] / scale, e.of[4 * i + 1] / scale) |
             e4m3_pair(e.of[4 * i + 2] / scale, e.of[4 * i + 3] / scale) << 16;
}

__device__ float largest_of(const Eight& e, const FaultSite& fault) {
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (!isfinite(e.of[i])) fault.raise(static_cast<double>(e.of[i]));
    amax = fmaxf(amax, fabsf(e.of[i]));
  }
  return amax;
}
// Over the threads of a tile.
__device__ float largest_of_tile(float amax) {
#pragma unroll
  for (int d = kTileThreads / 2; d > 0; d /= 2)
    amax = fmaxf(amax, __shfl_xor_sync(kWholeWarp, amax, d));
  return amax;
}

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
    Page p;
    p.x = x.page_offset(position);
    p.q = q.page_offset(position);
    if (p.x < 0 || p.q < 0) return {};
    p.rows = layout.rows_at(layout.expert_of(position), position);
    p.column = p.q / q.page_stride * kPageRows;
    return p;
  }
};

// One tile column of one page.
template <class Pages>
__global__ void __launch_bounds__(kThreads)
    quantise_rows_kernel(Pages pages, int64_t K, Source x, TileRule rule, Elements q, float* scale,
                         int64_t scale_stride, FaultSite fault) {
  __shared__ float shared[kTilesPerBlock];
  const Page page = pages.at(blockIdx.x);
  const int64_t k = blockIdx.y * kTileSize + threadIdx.x % kTileThreads * 8;
  const int group = threadIdx.x / kTileThreads;
  float* const scales = scale + blockIdx.y * scale_stride + page.column;
  float square = 0.0f;
  if (rule.shape == TileShape::kSquare) {
    for (int64_t r = group; r < page.rows; r += kTilesPerBlock)
      square = fmaxf(square, largest_of(x.load(page.x + r * pages.x_stride + k, K - k), fault));
    square = largest_of_tile(square);
    if (threadIdx.x % kTileThreads == 0) shared[group] = square;
    __syncthreads();
    for (int i = 0; i < kTilesPerBlock; ++i) square = fmaxf(square, shared[i]);
  }
#pragma unroll 4
  for (int i = 0; i < kPageRows / kTilesPerBlock; ++i) {
    const int64_t r = group + i * kTilesPerBlock;
    const bool in_use = r < page.rows;
    const Eight e = x.load(page.x + r * pages.x_stride + k, in_use ? K - k : 0);
    const float amax = largest_of_tile(largest_of(e, fault));
    const float s = tile_scale(rule.shape == TileShape::kRow ? amax : square, rule.format);
    uint32_t two[2];
    quantise_eight(e, s, two);
    if (!in_use) continue;
    q.store(page.q + r * pages.q_stride + k, two, K - k);
    if (threadIdx.x % kTileThreads == 0) scales[r] = s;
  }
}

template <class Pages>
__global__ void __launch_bounds__(kThreads)
    dequantise_rows_kernel(Pages pages, int64_t K, Elements q, const float* scale,
                           int64_t scale_stride, void* y, DType dtype, bool fast) {
  const Page page = pages.at(blockIdx.x);
  const int64_t k = blockIdx.y * kTileSize + threadIdx.x % kTileThreads * 8;
  if (k >= K) return;
  const float* const scales = scale + blockIdx.y * scale_stride + page.column;
#pragma unroll 4
  for (int64_t r = threadIdx.x / kTileThreads; r < page.rows; r += kTilesPerBlock) {
    Eight e = q.load(page.q + r * pages.q_stride + k, K - k);
    const float s = scales[r];
#pragma unroll
    for (int i = 0; i < 8; ++i) e.of[i] = e.of[i] * s;
    const int64_t at = page.x + r * pages.x_stride + k;
    if (fast && K - k >= 8) {
      e.store(static_cast<bf16*>(y) + at);
      continue;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < K - k) store(y, dtype, at + i, e.of[i]);
  }
}

constexpr int kColumns = 64;  // that a block turns

// kColumns columns of one page: elements of x, or e4m3 elements times the scales of their tiles.
template <class Pages>
__global__ void __launch_bounds__(kThreads)
    quantise_columns_kernel(Pages pages, int64_t W, Source x, Elements elements, const float* scale,
                            int64_t scale_stride, uint8_t* to, float* to_scale, FaultSite fault) {
  __shared__ float tile[kTileSize][kColumns + 1];
  __shared__ float largest[kThreads / kColumns][kColumns];
  const int64_t position = blockIdx.x;
  const Page page = pages.at(position);
  if (page.rows == 0) return;
  const int64_t w0 = blockIdx.y * kColumns;
  constexpr int kRowThreadsHere = kColumns / 8;
  const int64_t w = w0 + threadIdx.x % kRowThreadsHere * 8;
#pragma unroll
  for (int i = 0; i < kTileSize * kRowThreadsHere / kThreads; ++i) {
    const int64_t r = threadIdx.x / kRowThreadsHere + i * (kThreads / kRowThreadsHere);
    const int64_t count = r < page.rows ? W - w : 0;
    const int64_t at = page.x + r * pages.x_stride + w;
    Eight e = elements.data == nullptr ? x.load(at, count) : elements.load(at, count);
    if (elements.data != nullptr && count > 0) {
      // Eight neighbours never straddle a tile.
      const float s = scale[w / kTileSize * scale_stride + page.column + r];
#pragma unroll
      for (int j = 0; j < 8; ++j) e.of[j] = e.of[j] * s;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) tile[r][threadIdx.x % kRowThreadsHere * 8 + j] = e.of[j];
  }
  __syncthreads();
  const int column = threadIdx.x % kColumns, part = threadIdx.x / kColumns;
  constexpr int kPart = kTileSize * kColumns / kThreads;  // rows that a thread turns
  float v[kPart], amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kPart; ++i) {
    v[i] = tile[part * kPart + i][column];
    if (!isfinite(v[i])) fault.raise(static_cast<double>(v[i]));
    amax = fmaxf(amax, fabsf(v[i]));
  }
  largest[part][column] = amax;
  __syncthreads();
  for (int i = 0; i < kThreads / kColumns; ++i) amax = fmaxf(amax, largest[i][column]);
  if (w0 + column >= W) return;
  const float s = tile_scale(amax, ScaleFormat::kF32);
  const int64_t row = position * W + w0 + column;
  if (part == 0) to_scale[row] = s;
  uint32_t words[kPart / 4];
#pragma unroll
  for (int i = 0; i < kPart / 4; ++i)
    words[i] = e4m3_pair(v[4 * i] / s, v[4 * i + 1] / s) |
               e4m3_pair(v[4 * i + 2] / s, v[4 * i + 3] / s) << 16;
  auto* const out = reinterpret_cast<uint4*>(to + row * kTileSize + part * kPart);
#pragma unroll
  for (int i = 0; i < kPart / 16; ++i)
    out[i] = uint4{words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]};
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
  __shared__ float largest[kThreads / 32];
  const int64_t e = blockIdx.z, n0 = blockIdx.y * kTileSize, k0 = blockIdx.x * kTileSize;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kWarps = kThreads / 32, kRowsOfWarp = kTileSize / kWarps;
  const int64_t k = k0 + lane * 4;
  float v[kRowsOfWarp][4], amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kRowsOfWarp; ++i) {
    const int64_t n = n0 + warp + i * kWarps;
    const int64_t at = e * w.from_next + n * w.from_stride + k;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[i][j] = n < N && k + j < K ? load<float>(w.from, w.dtype, at + j) : 0.0f;
      if (!isfinite(v[i][j])) fault.raise(static_cast<double>(v[i][j]));
      amax = fmaxf(amax, fabsf(v[i][j]));
    }
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) amax = fmaxf(amax, __shfl_xor_sync(kWholeWarp, amax, d));
  if (lane == 0) largest[warp] = amax;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) amax = fmaxf(amax, largest[i]);
  const float s = tile_scale(amax, ScaleFormat::kF32);
  if (threadIdx.x == 0) {
    w.scale[e * w.scale_next + blockIdx.y * w.scale_stride + blockIdx.x] = s;
    w.transposed_scale[e * w.transposed_scale_next + blockIdx.x * w.transposed_scale_stride +
                       blockIdx.y] = s;
  }
#pragma unroll
  for (int i = 0; i < kRowsOfWarp; ++i) {
    const int64_t n = n0 + warp + i * kWarps;
    const uint32_t four = e4m3_pair(v[i][0] / s, v[i][1] / s) | e4m3_pair(v[i][2] / s, v[i][3] / s)
                                                                    << 16;
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

// One token: quantised once, written to the row of each of its choices.
__global__ void scatter_kernel(int64_t D, View x, Source source, const int32_t* row_of_choice,
                               int64_t choice_stride, int64_t K, PagedView rows, Elements q,
                               float* scale, int64_t scale_stride, FaultSite fault) {
  const int64_t t = blockIdx.x;
  const int32_t* const choices = row_of_choice + t * choice_stride;
  const int64_t tiles = (D + kTileSize - 1) / kTileSize;
  const int64_t step = blockDim.x / kTileThreads;
  // Every thread of a warp takes part in the sums of tiles.
  for (int64_t tile0 = 0; tile0 < tiles; tile0 += step) {
    const int64_t tile = tile0 + threadIdx.x / kTileThreads;
    const int64_t d = tile * kTileSize + threadIdx.x % kTileThreads * 8;
    const Eight e = source.load(t * x.stride0 + d, D - d);
    const float s = tile_scale(largest_of_tile(largest_of(e, fault)), ScaleFormat::kPowerOfTwo);
    uint32_t two[2];
    quantise_eight(e, s, two);
    if (tile >= tiles) continue;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t row = choices[k], at = rows.row_offset(row);
      if (at < 0) continue;
      q.store(at + d, two, D - d);
      if (threadIdx.x % kTileThreads == 0)
        scale[tile * scale_stride + at / rows.page_stride * kPageRows + row % kPageRows] = s;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    pack_e5m6_kernel(int64_t rows, int64_t W, View x, Source source, int32_t* words,
                     int64_t words_stride, float* scale, int64_t scale_stride, FaultSite fault) {
  const int64_t tiles = (W + kTileSize - 1) / kTileSize;
  const int64_t item =
      static_cast<int64_t>(blockIdx.x) * kTilesPerBlock + threadIdx.x / kTileThreads;
  const int64_t t = item / tiles, tile = item % tiles;
  const int64_t w = tile * kTileSize + threadIdx.x % kTileThreads * 8;
  const bool in_use = t < rows;
  const Eight e = source.load(t * x.stride0 + w, in_use ? W - w : 0);
  const float s = e5m6_scale(largest_of_tile(largest_of(e, fault)));
  if (!in_use || w >= W) return;
  if (threadIdx.x % kTileThreads == 0) scale[t * scale_stride + tile] = s;
  uint32_t eight[8], packed[3];
#pragma unroll
  for (int i = 0; i < 8; ++i) eight[i] = to_e5m6(e.of[i] / s);
  pack_e5m6_words(eight, packed);
  int32_t* const to = words + t * words_stride + w / 8 * 3;
#pragma unroll
  for (int i = 0; i < 3; ++i) to[i] = static_cast<int32_t>(packed[i]);
}

__global__ void __launch_bounds__(kThreads)
    unpack_e5m6_kernel(int64_t rows, int64_t W, const int32_t* words, int64_t words_stride,
                       const float* scale, int64_t scale_stride, View x, bool fast) {
  const int64_t units = (W + 7) / 8;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= rows * units) return;
  const int64_t t = item / units, w = item % units * 8;
  const int32_t* const from = words + t * words_stride + w / 8 * 3;
  const uint32_t packed[3] = {static_cast<uint32_t>(from[0]), static_cast<uint32_t>(from[1]),
                              static_cast<uint32_t>(from[2])};
  uint32_t eight[8];
  unpack_e5m6_words(packed, eight);
  const float s = scale[t * scale_stride + w / kTileSize];
  Eight e;
#pragma unroll
  for (int i = 0; i < 8; ++i) e.of[i] = from_e5m6(eight[i]) * s;
  if (fast && W - w >= 8) {
    e.store(static_cast<bf16*>(x.data) + t * x.stride0 + w);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < W - w) x.put(t * x.stride0 + w + i, e.of[i]);
}

Source source_of(const Tensor& x) { return {x.raw(), x.dtype(), has_bf16_rows(x)}; }
Source source_of(const PagedRows& x) { return {x.slab.raw(), x.slab.dtype(), has_bf16_pages(x)}; }

bool has_eights(const Tensor& t, int64_t row_stride) {
  return reinterpret_cast<uintptr_t>(t.raw()) % 8 == 0 && row_stride % 8 == 0;
}
Elements elements_of(const Tensor& t) {
  return {reinterpret_cast<uint8_t*>(t.data<e4m3>()), has_eights(t, t.stride(0))};
}
Elements elements_of(const PagedRows& q) {
  return {reinterpret_cast<uint8_t*>(q.slab.data<e4m3>()),
          has_eights(q.slab, q.slab.stride(1)) && q.slab.stride(0) % 8 == 0};
}

LayoutPages layout_pages(const ExpertLayout& layout, const PagedRows& x, const PagedRows& q) {
  return {LayoutView(layout), PagedView(x), PagedView(q), x.slab.stride(1), q.slab.stride(1)};
}
DensePages dense_pages(const Tensor& x, const Tensor& q) {
  return {x.dim(0), x.stride(0), q.stride(0)};
}

dim3 tile_grid(int64_t pages, int64_t width, int64_t tile) {
  return dim3(static_cast<unsigned>(pages), static_cast<unsigned>(ceil_div(width, tile)));
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
  const int64_t T = x.dim(0), K = x.dim(1);
  if (T == 0 || K == 0) return;
  quantise_rows_kernel<<<tile_grid(num_tiles(T), K, kTileSize), kThreads, 0, stream_of(ctx)>>>(
      dense_pages(x, q.data), K, source_of(x), rule, elements_of(q.data), q.scale.data<float>(),
      q.scale.stride(0), FaultSite(ctx, kNotFinite));
  check_launch(ctx, "quantise_rows", x);
}

void dequantise_rows(Context& ctx, const TileRows& q, Out y) {
  const int64_t T = y.dim(0), K = y.dim(1);
  if (T == 0 || K == 0) return;
  dequantise_rows_kernel<<<tile_grid(num_tiles(T), K, kTileSize), kThreads, 0, stream_of(ctx)>>>(
      dense_pages(y, q.data), K, elements_of(q.data), q.scale.data<float>(), q.scale.stride(0),
      y.raw(), y.dtype(), has_bf16_rows(y));
  check_launch(ctx, "dequantise_rows", y);
}

void quantise_columns(Context& ctx, In x, const TileColumns& q) {
  const int64_t T = x.dim(0), W = x.dim(1);
  if (T == 0 || W == 0) return;
  quantise_columns_kernel<<<tile_grid(num_tiles(T), W, kColumns), kThreads, 0, stream_of(ctx)>>>(
      DensePages{T, x.stride(0), 0}, W, source_of(x), Elements{}, nullptr, int64_t{0},
      reinterpret_cast<uint8_t*>(q.data.data<e4m3>()), q.scale.data<float>(),
      FaultSite(ctx, kNotFinite));
  check_launch(ctx, "quantise_columns", x);
}

void grouped_quantise_rows(Context& ctx, const ExpertLayout& layout, const PagedRows& x,
                           TileRule rule, const PagedRows& q) {
  const int64_t P = places_of(x, q), K = x.slab.dim(2);
  if (P == 0 || K == 0) return;
  quantise_rows_kernel<<<tile_grid(P, K, kTileSize), kThreads, 0, stream_of(ctx)>>>(
      layout_pages(layout, x, q), K, source_of(x), rule, elements_of(q), q.scale.data<float>(),
      q.scale.stride(0), FaultSite(ctx, kNotFinite));
  check_launch(ctx, "grouped_quantise_rows", x.slab);
}

void grouped_dequantise_rows(Context& ctx, const ExpertLayout& layout, const PagedRows& q,
                             const PagedRows& y) {
  const int64_t P = places_of(y, q), K = y.slab.dim(2);
  if (P == 0 || K == 0) return;
  dequantise_rows_kernel<<<tile_grid(P, K, kTileSize), kThreads, 0, stream_of(ctx)>>>(
      layout_pages(layout, y, q), K, elements_of(q), q.scale.data<float>(), q.scale.stride(0),
      y.slab.raw(), y.slab.dtype(), has_bf16_pages(y));
  check_launch(ctx, "grouped_dequantise_rows", y.slab);
}

void grouped_quantise_columns(Context& ctx, const ExpertLayout& layout, const PagedRows& x,
                              const TileColumns& q) {
  const int64_t P = std::min(num_places(x), q.data.dim(0)), W = x.slab.dim(2);
  if (P == 0 || W == 0) return;
  const bool tiles = !x.scale.empty();
  quantise_columns_kernel<<<tile_grid(P, W, kColumns), kThreads, 0, stream_of(ctx)>>>(
      layout_pages(layout, x, x), W, tiles ? Source{} : source_of(x),
      tiles ? elements_of(x) : Elements{}, tiles ? x.scale.data<float>() : nullptr,
      tiles ? x.scale.stride(0) : 0, reinterpret_cast<uint8_t*>(q.data.data<e4m3>()),
      q.scale.data<float>(), FaultSite(ctx, kNotFinite));
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
  scatter_kernel<<<static_cast<unsigned>(T), threads, 0, stream_of(ctx)>>>(
      D, View(x), source_of(x), row_of_choice.data<int32_t>(), row_of_choice.stride(0),
      row_of_choice.dim(1), PagedView(rows), elements_of(rows), rows.scale.data<float>(),
      rows.scale.stride(0), FaultSite(ctx, kNotFinite));
  check_launch(ctx, "scatter_quantised_rows", x);
}

void pack_e5m6(Context& ctx, In x, Out words, Out scale) {
  const int64_t T = x.dim(0), W = x.dim(1);
  if (T == 0 || W == 0) return;
  pack_e5m6_kernel<<<static_cast<unsigned>(ceil_div(T * num_tiles(W), kTilesPerBlock)), kThreads, 0,
                     stream_of(ctx)>>>(T, W, View(x), source_of(x), words.data<int32_t>(),
                                       words.stride(0), scale.data<float>(), scale.stride(0),
                                       FaultSite(ctx, kNotFinite));
  check_launch(ctx, "pack_e5m6", x);
}

void unpack_e5m6(Context& ctx, In words, In scale, Out x) {
  const int64_t T = x.dim(0), W = x.dim(1);
  if (T == 0 || W == 0) return;
  unpack_e5m6_kernel<<<static_cast<unsigned>(ceil_div(T * ceil_div(W, 8), kThreads)), kThreads, 0,
                       stream_of(ctx)>>>(T, W, words.data<int32_t>(), words.stride(0),
                                         scale.data<float>(), scale.stride(0), View(x),
                                         has_bf16_rows(x));
  check_launch(ctx, "unpack_e5m6", x);
}

}  // namespace hadal::ops::cuda
