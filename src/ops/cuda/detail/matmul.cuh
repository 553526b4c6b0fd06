// Matrix products by one thread block: what gemm and attention bodies call inside kernels.
//
//   M, N rows and columns of the result   K inner width
//
// Each element of the result is one chain of fused multiply-adds over k = 0, 1, ..., starting from
// zero or from the old value: the same bits however the result is cut into tiles, and those of the
// CPU's AVX2 and AVX-512 kernels. Called by all kThreads threads of a block together.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/element.cuh"

namespace hadal::ops::cuda {

inline constexpr int kTile = 64;   // rows and columns of the result that a block computes at once
inline constexpr int kDepth = 16;  // k that shared memory holds at once
inline constexpr int kMine = 4;    // rows and columns of a tile that belong to one thread

enum class Start : uint8_t { kZero, kOld };  // what a chain starts from

__host__ __device__ inline int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kE4M3:
      return 1;
  }
  return 0;
}

__host__ __device__ inline const void* advance(const void* p, DType dtype, int64_t elements) {
  return static_cast<const char*>(p) + elements * element_bytes(dtype);
}

// Element (r, k) of an operand is at data + r * row_stride + k * k_stride; one of the two is 1.
struct Matrix {
  const void* data;
  DType dtype;
  int64_t row_stride, k_stride;
  const float* scale = nullptr;  // block FP8: scale of (r, k) by its place in the stored matrix
  int64_t scale_stride = 0, stored_row = 0;
  bool rows_are_stored_rows = true;  // else the view is transposed

  template <class R>
  __device__ R get(int64_t r, int64_t k) const {
    const int64_t at = r * row_stride + k * k_stride;
    if (scale == nullptr) return load<R>(data, dtype, at);
    const int64_t row = stored_row + (rows_are_stored_rows ? r : k);
    const int64_t col = rows_are_stored_rows ? k : r;
    const float s = scale[row / kScaleBlock * scale_stride + col / kScaleBlock];
    return static_cast<R>(load<float>(data, dtype, at) * s);
  }
};

struct Result {
  void* data;
  DType dtype;
  int64_t row_stride;
};

template <class R>
struct TileMemory {
  R a[kDepth][kTile + 1], b[kDepth][kTile + 1];  // one more: rows start in different banks
};

// The thread's elements of a tile: rows thread_row() + i, columns thread_col() + 16 j.
template <class R>
struct Sums {
  R of[kMine][kMine];
};
__device__ inline int thread_row() { return static_cast<int>(threadIdx.x) / 16 * kMine; }
__device__ inline int thread_col() { return static_cast<int>(threadIdx.x) % 16; }

// Rows [row, row + kTile) and k [k0, k0 + kDepth) of an operand (a Matrix or what has its k_stride
// and get), zero past its edges.
template <class R, class Operand>
__device__ void load_tile(const Operand& m, int64_t row, int64_t num_rows, int64_t k0, int64_t K,
                          R (&tile)[kDepth][kTile + 1]) {
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += 256) {
    // Neighbouring threads read neighbouring elements.
    const int r = m.k_stride == 1 ? i / kDepth : i % kTile;
    const int k = m.k_stride == 1 ? i % kDepth : i / kTile;
    const bool inside = row + r < num_rows && k0 + k < K;
    tile[k][r] = inside ? m.template get<R>(row + r, k0 + k) : R(0);
  }
}

// Goes on with the chains of the tile at (row, col) over K more.
template <class R, class Operand>
__device__ void multiply_tile(int64_t row, int64_t M, int64_t col, int64_t N, int64_t K,
                              const Matrix& a, const Operand& b, Sums<R>& sums,
                              TileMemory<R>& memory) {
  for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
    load_tile(a, row, M, k0, K, memory.a);
    load_tile(b, col, N, k0, K, memory.b);
    __syncthreads();
    const int depth = static_cast<int>(K - k0 < kDepth ? K - k0 : kDepth);
    for (int k = 0; k < depth; ++k) {
      R x[kMine], y[kMine];
      for (int i = 0; i < kMine; ++i) x[i] = memory.a[k][thread_row() + i];
      for (int j = 0; j < kMine; ++j) y[j] = memory.b[k][thread_col() + 16 * j];
      for (int i = 0; i < kMine; ++i)
        for (int j = 0; j < kMine; ++j) sums.of[i][j] = fma(x[i], y[j], sums.of[i][j]);
    }
    __syncthreads();
  }
}

// Calls fn(row, column, sum) for the thread's elements inside M x N.
template <class R, class Fn>
__device__ void for_sums(int64_t row, int64_t M, int64_t col, int64_t N, Sums<R>& sums,
                         const Fn& fn) {
#pragma unroll
  for (int i = 0; i < kMine; ++i)
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const int64_t r = row + thread_row() + i, c = col + thread_col() + 16 * j;
      if (r < M && c < N) fn(r, c, sums.of[i][j]);
    }
}

template <class R>
__device__ void begin_tile(int64_t row, int64_t M, int64_t col, int64_t N, const Result& c,
                           Start start, Sums<R>& sums) {
  sums = Sums<R>{};
  if (start == Start::kZero) return;
  for_sums(row, M, col, N, sums, [&](int64_t r, int64_t j, R& sum) {
    sum = load<R>(c.data, c.dtype, r * c.row_stride + j);
  });
}

template <class R>
__device__ void end_tile(int64_t row, int64_t M, int64_t col, int64_t N, const Result& c,
                         Sums<R>& sums) {
  for_sums(row, M, col, N, sums, [&](int64_t r, int64_t j, R& sum) {
    store(c.data, c.dtype, r * c.row_stride + j, sum);
  });
}

// One tile of c = (or +=) a b^T.  a (M, K), b (N, K)
template <class R, class Operand>
__device__ void matmul_tile(int64_t row, int64_t M, int64_t col, int64_t N, int64_t K,
                            const Matrix& a, const Operand& b, const Result& c, Start start,
                            TileMemory<R>& memory) {
  Sums<R> sums;
  begin_tile(row, M, col, N, c, start, sums);
  multiply_tile(row, M, col, N, K, a, b, sums, memory);
  end_tile(row, M, col, N, c, sums);
}

// All of c, tile by tile; the block sees the result on return.
template <class R>
__device__ void block_matmul(int64_t M, int64_t N, int64_t K, const Matrix& a, const Matrix& b,
                             const Result& c, Start start, TileMemory<R>& memory) {
  for (int64_t row = 0; row < M; row += kTile)
    for (int64_t col = 0; col < N; col += kTile)
      matmul_tile(row, M, col, N, K, a, b, c, start, memory);
  __syncthreads();
}

}  // namespace hadal::ops::cuda
