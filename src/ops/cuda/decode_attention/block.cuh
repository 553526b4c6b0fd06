// What the phases of decode attention share: rows in shared memory, and products with them.
//
// Rows in shared memory are as the matrix unit reads them (gemv/tile.cuh), `units` has what undoes
// their scales.
//
// NOTE: what another block wrote in this launch is read past the L1 (fresh_*), which is not kept
// coherent; weights, which nobody writes, are read through it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/decode_attention/config.h"
#include "ops/cuda/gemv/tile.cuh"

namespace hadal::cuda {

using DecodeC = DecodeAttentionConfig;

__device__ __forceinline__ int4 fresh_16(const void* p) {
  return __ldcg(static_cast<const int4*>(p));
}
__device__ __forceinline__ float fresh_bf16(const __nv_bfloat16* p) {
  const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short*>(p));
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

__device__ __forceinline__ int block_warp() { return static_cast<int>(threadIdx.x) / 32; }
__device__ __forceinline__ int block_lane() { return static_cast<int>(threadIdx.x) % 32; }
// The sum over the block's threads, for all of them. Ends with a barrier.
__device__ __forceinline__ float sum_of_block(float value) {
  __shared__ float of_warp[DecodeC::kWarps];
  value = sum_of_warp(value);
  if (block_lane() == 0) of_warp[block_warp()] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < DecodeC::kWarps; ++w) total += of_warp[w];
  __syncthreads();
  return total;
}

// The largest over the block's threads, for all of them. Ends with a barrier.
__device__ __forceinline__ float largest_of_block(float value) {
  __shared__ float of_warp[DecodeC::kWarps];
#pragma unroll
  for (int d = 16; d > 0; d /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, d));
  if (block_lane() == 0) of_warp[block_warp()] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < DecodeC::kWarps; ++w) total = fmaxf(total, of_warp[w]);
  __syncthreads();
  return total;
}

// Elements between rows in shared memory: their banks differ.
__device__ __forceinline__ int row_stride_of(int width) { return width + 8; }

// `rows` rows of `width` elements into shared memory. Ends with a barrier.
template <GemvWeight kType>
__device__ __forceinline__ void bring_rows(const __nv_bfloat16* from, int64_t stride, int rows,
                                           int width, __nv_bfloat16* to, float* units) {
  for (int r = 0; r < rows; ++r) {
    auto* const row = reinterpret_cast<int4*>(to + r * row_stride_of(width));
    float largest = 0.0f;
    for (int u = static_cast<int>(threadIdx.x); u < width / 8; u += DecodeC::kThreads) {
      const int4 raw = fresh_16(from + r * stride + u * 8);
      row[u] = raw;
      if constexpr (kType == GemvWeight::kE4M3) {
        float v[8];
        unpack_bf16(raw, v);
#pragma unroll
        for (const float e : v) largest = fmaxf(largest, fabsf(e));
      }
    }
    if constexpr (kType == GemvWeight::kE4M3) largest = largest_of_block(largest);
    const TileScale<kType> scale(largest);
    if constexpr (kType == GemvWeight::kE4M3)
      for (int u = static_cast<int>(threadIdx.x); u < width / 8; u += DecodeC::kThreads) {
        float v[8];
        unpack_bf16(row[u], v);
        row[u] = scale.pack(v);
      }
    if (threadIdx.x == 0) units[r] = scale.unit;
  }
  __syncthreads();
}

// The same with RMSNorm, rounded to bf16. The first row and its gains are asked for when this is
// made, so that they do not stand in line behind weights that are asked for next.
template <GemvWeight kType>
class NormedRows {
 public:
  __device__ NormedRows(const __nv_bfloat16* from, int64_t stride, int rows, int width,
                        const float* gain, float eps)
      : from_(from), stride_(stride), rows_(rows), width_(width), gain_(gain), eps_(eps) {
    if (thread() >= pieces()) return;
    first_ = piece(0, thread());
    first_gains_ = gains(thread());
  }
  // Ends with a barrier.
  __device__ void bring(__nv_bfloat16* to, float* units) const {
    for (int r = 0; r < rows_; ++r) {
      auto* const row = reinterpret_cast<int4*>(to + r * row_stride_of(width_));
      float squares = 0.0f, largest = 0.0f;
      for (int u = thread(); u < pieces(); u += DecodeC::kThreads) {
        const int4 raw = r == 0 && u == thread() ? first_ : piece(r, u);
        row[u] = raw;
        float v[8];
        unpack_bf16(raw, v);
        const Gains g = u == thread() ? first_gains_ : gains(u);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          squares += v[j] * v[j];
          largest = fmaxf(largest, fabsf(v[j] * g.of[j]));
        }
      }
      const float inverse = rsqrtf(sum_of_block(squares) / static_cast<float>(width_) + eps_);
      if constexpr (kType == GemvWeight::kE4M3) largest = largest_of_block(largest * inverse);
      const TileScale<kType> scale(largest);
      for (int u = thread(); u < pieces(); u += DecodeC::kThreads) {
        float v[8];
        unpack_bf16(row[u], v);
        const Gains g = u == thread() ? first_gains_ : gains(u);
#pragma unroll
        for (int j = 0; j < 8; ++j)
          v[j] = __bfloat162float(__float2bfloat16(v[j] * inverse * g.of[j]));
        row[u] = scale.pack(v);
      }
      if (thread() == 0) units[r] = scale.unit;
    }
    __syncthreads();
  }

 private:
  struct Gains {
    float of[8];
  };
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ int pieces() const { return width_ / 8; }
  __device__ int4 piece(int r, int u) const { return fresh_16(from_ + r * stride_ + u * 8); }
  __device__ Gains gains(int u) const {
    const float4 a = __ldg(reinterpret_cast<const float4*>(gain_) + 2 * u);
    const float4 b = __ldg(reinterpret_cast<const float4*>(gain_) + 2 * u + 1);
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
  }

  const __nv_bfloat16* from_;
  int64_t stride_;
  int rows_, width_;
  const float* gain_;
  float eps_;
  int4 first_{};
  Gains first_gains_{};
};

// Sixteen outputs of a product for each of the tokens: the shares of kShare warps, side by side.
template <int kRows>
using TileSums = float[DecodeC::kWarps][16][kRows];

// Puts a warp's share where the others' are.
template <int kRows>
__device__ __forceinline__ void put_share(TileSums<kRows>& sums, const float (&share)[4]) {
  const int row = block_lane() / 4, token = block_lane() % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (token + i < kRows) {
      sums[block_warp()][row][token + i] = share[i];
      sums[block_warp()][row + 8][token + i] = share[2 + i];
    }
}

// Outputs of one or two matrices that stand one under the other, in tiles of 16; kShare warps of a
// block share K. Weights depend on nothing: the first are asked for when this is made, before the
// barrier that its rows wait for.
template <GemvWeight kType, int kRows, int kShare>
class DecodeProduct {
  using Tile = TileProduct<kType, kRows>;
  static constexpr int kTiles = DecodeC::kWarps / kShare;  // of a block at once

 public:
  struct Output {
    const ExpertMatrices* matrix;
    int outputs;        // a multiple of 16
    __nv_bfloat16* to;  // [T, stride]
    int64_t stride;
  };
  // Asks for its first weights; ask_rest() is to follow. With `adds` outputs are added to what is
  // there; with `sums` those of other ranks as well.
  __device__ DecodeProduct(const Output& first, const Output& second, int width, bool adds,
                           const PeerSumArgs* sums = nullptr)
      : first_(first), second_(second), width_(width), adds_(adds), sums_(sums) {
    find(static_cast<int>(blockIdx.x) * kTiles);
  }
  __device__ void ask_rest() { product_.ask_second_lot(); }
  // Ends with a barrier.
  __device__ void run(const __nv_bfloat16* rows, const float* units, int tokens,
                      TileSums<kRows>& sums) {
    while (tile_ * 16 < first_.outputs + second_.outputs) {
      float share[4];
      product_.run(reinterpret_cast<const uint8_t*>(rows + begin()), row_stride_of(width_) * 2,
                   share);
      put_share<kRows>(sums, share);
      __syncthreads();
      if (mine() < kTiles && token() < tokens && place_ != nullptr) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < kShare; ++w) total += sums[mine() * kShare + w][row()][token()];
        if (sums_ == nullptr || sums_->size == 0)
          *place_ = __float2bfloat16(old_ + total * units[token()]);
        else
          *place_ = __float2bfloat16(old_ + peer_sum_of(*sums_, peer_sum_number(*sums_),
                                                        int64_t{token()} * first_.outputs +
                                                            tile_ * 16 + mine() * 16 + row(),
                                                        total * units[token()]));
      }
      __syncthreads();
      find(tile_ + static_cast<int>(gridDim.x) * kTiles);
      ask_rest();
    }
  }

 private:
  __device__ int share() const { return ((width_ + kShare - 1) / kShare + 127) / 128 * 128; }
  __device__ int begin() const { return min(block_warp() % kShare * share(), width_); }
  // Of the output that this thread writes: the tile among the block's, its row, its token.
  __device__ static int mine() { return static_cast<int>(threadIdx.x) / (16 * kRows); }
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kRows % 16; }
  __device__ static int token() { return static_cast<int>(threadIdx.x) % kRows; }

  __device__ void find(int tile) {
    tile_ = tile;
    const auto of = [&](int at, int* n) {
      *n = at < first_.outputs ? at : at - first_.outputs;
      return at < first_.outputs ? first_ : second_;
    };
    int n = 0;
    const Output weights = of((tile + block_warp() / kShare) * 16, &n);
    if (n < weights.outputs) {
      constexpr int kBytes = GemvLoad<kType>::kBytes;
      const int r = n + block_lane() / 4;
      product_ = Tile({{expert_row<kBytes>(*weights.matrix, 0, r),
                        expert_row<kBytes>(*weights.matrix, 0, r + 8)}},
                      begin(), min(begin() + share(), width_), typename Tile::FirstLot{});
    } else {
      product_ = Tile();
    }
    const Output to = of((tile + mine()) * 16, &n);
    place_ = n < to.outputs ? to.to + token() * to.stride + n + row() : nullptr;
    old_ = adds_ && place_ != nullptr && mine() < kTiles ? fresh_bf16(place_) : 0.0f;
  }

  Output first_, second_;
  int width_, tile_;
  bool adds_;
  const PeerSumArgs* sums_;
  __nv_bfloat16* place_;
  float old_;
  Tile product_;
};

}  // namespace hadal::cuda
