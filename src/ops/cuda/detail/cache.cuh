// The paged latent cache as kernels see it: PlainRows of the compute type, Fp8Rows.
//
//   R latent width   Dr rope width
//
// Both find rows by page, store a row and show the rows of a page as a matrix operand; kernels are
// templates on them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/attention.h"
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/matmul.cuh"

namespace hadal::ops::cuda {

inline constexpr const char* kNoPage = "position {0} of sequence {1} has no page in the cache";

// Where the cached rows of all sequences lie, page by page.
struct CachePages {
  View pages;
  Array<const int32_t> table;
  int64_t num_pages, places;  // pages of the cache, places of a row of the table

  explicit CachePages(const LatentPages& cache)
      : pages(cache.pages),
        table(cache.table),
        num_pages(cache.pages.dim(0)),
        places(cache.table.dim(1)) {}

  // Offset of the row of a position in elements of `pages`, or -1.
  __device__ int64_t offset(int64_t seq, int64_t position) const {
    const int64_t place = position / kCachePageTokens;
    const int64_t page = position >= 0 && place < places ? table.row(seq)[place] : -1;
    if (page < 0 || page >= num_pages) return -1;
    return page * pages.stride0 + position % kCachePageTokens * pages.stride1;
  }
};

struct PlainRows : CachePages {
  int64_t R;

  PlainRows(const LatentPages& cache, int64_t latent_width) : CachePages(cache), R(latent_width) {}

  // Stores latent elements value(0 .. R - 1) of the row at `at`, by all threads of the block.
  template <class T, class Fn>
  __device__ void put_latent(int64_t at, const Fn& value) const {
    for (int64_t i = threadIdx.x; i < R; i += blockDim.x) pages.put<T>(at + i, value(i));
  }
  template <class T>
  __device__ void put_key(int64_t at, int64_t i, T value) const {
    pages.put(at + R + i, value);
  }
  // The rows from `at` on as rows of an operand, and their columns as its rows.
  __device__ Matrix keys(int64_t at) const {
    return {advance(pages.data, pages.dtype, at), pages.dtype, pages.stride1, 1};
  }
  __device__ Matrix values(int64_t at) const {
    return {advance(pages.data, pages.dtype, at), pages.dtype, 1, pages.stride1};
  }
};

// FP8 rows as an operand; k_stride as in Matrix: 1 where the operand's rows are cached rows.
struct Fp8Matrix {
  const char* data;
  Fp8LatentRow format;
  int64_t bytes, k_stride;  // from row to row

  template <class T>
  __device__ T get(int64_t r, int64_t k) const {
    const char* const row = data + (k_stride == 1 ? r : k) * bytes;
    const int64_t column = k_stride == 1 ? k : r;
    if (column >= format.R) return load<T>(row + format.key_at(), DType::kBF16, column - format.R);
    const float scale =
        load<float>(row + format.scale_at(), DType::kF32, column / Fp8LatentRow::kTile);
    return static_cast<T>(load<float>(row, DType::kE4M3, column) * scale);
  }
};

struct Fp8Rows : CachePages {
  Fp8LatentRow format;
  DType act;  // of the elements that rows are made of
  int64_t R;

  Fp8Rows(const LatentPages& cache, DType act_)
      : CachePages(cache), format(*cache.fp8), act(act_), R(format.R) {}

  // A warp makes a tile: the scale is that of values rounded to `act`, as they are stored
  // elsewhere.
  template <class T, class Fn>
  __device__ void put_latent(int64_t at, const Fn& value) const {
    constexpr int kTile = static_cast<int>(Fp8LatentRow::kTile), kMine = kTile / 32;
    const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    for (int64_t tile = threadIdx.x / 32; tile < format.num_scales(); tile += warps) {
      const int64_t first = tile * kTile + lane;
      T v[kMine];
      float amax = 0.0f;
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        v[i] = first + 32 * i < R ? rounded(value(first + 32 * i)) : T(0);
        amax = fmaxf(amax, fabsf(static_cast<float>(v[i])));
      }
#pragma unroll
      for (int d = 16; d > 0; d /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, d));
      const float scale = latent_scale(amax);
#pragma unroll
      for (int i = 0; i < kMine; ++i)
        if (first + 32 * i < R) pages.put<T>(at + first + 32 * i, v[i] / static_cast<T>(scale));
      if (lane == 0) store(byte(at + format.scale_at()), DType::kF32, tile, scale);
    }
  }
  template <class T>
  __device__ void put_key(int64_t at, int64_t i, T value) const {
    store(byte(at + format.key_at()), DType::kBF16, i, rounded(value));
  }
  __device__ Fp8Matrix keys(int64_t at) const { return {byte(at), format, pages.stride1, 1}; }
  __device__ Fp8Matrix values(int64_t at) const {
    return {byte(at), format, pages.stride1, pages.stride1};
  }

 private:
  __device__ char* byte(int64_t at) const { return static_cast<char*>(pages.data) + at; }
  template <class T>
  __device__ T rounded(T v) const {
    return act == DType::kBF16 ? static_cast<T>(widen(narrow_bf16(round_to_odd(v)))) : v;
  }
};

// Calls fn with the rows of a cache. latent_width: R where rows are of the compute type.
template <class Fn>
void with_latent_rows(const LatentPages& cache, DType act, int64_t latent_width, const Fn& fn) {
  if (cache.fp8)
    fn(Fp8Rows(cache, act));
  else
    fn(PlainRows(cache, latent_width));
}

__device__ inline int64_t sequence_of(Array<const int32_t> offsets, int64_t S, int64_t token) {
  int64_t low = 0, high = S;  // offsets[low] <= token < offsets[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] <= token ? low : high) = middle;
  }
  return low;
}

}  // namespace hadal::ops::cuda
