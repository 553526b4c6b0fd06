// Sixteen rows of weights times one to four rows of activations, a warp's share of K, on the matrix
// unit.
//
// Widening e4m3 by itself takes more instructions than a warp has time for at the rate of the
// memory; as operands of mma.m16n8k16 weights take half a conversion each. The matrix unit wants
// pairs of K from each lane; since a sum does not care for the order of K, the pairs of lane l are
// those of the 16 bytes that it reads: elements (l % 4) E .. + E - 1 of every 4 E of K (E = 8 bf16
// or 16 e4m3). The eight columns of the other operand are the tokens, over and over.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/e4m3.cuh"
#include "ops/cuda/detail/mma.cuh"
#include "ops/cuda/gemv/load.cuh"

namespace hadal::cuda {

// Rows of activations as the matrix unit reads them: bf16 beside bf16 weights; beside e4m3 f16,
// times a power of two that takes the bound of their size to 2^14 .. 2^15, so that f16 holds them
// exactly but for what is 2^29 times smaller than that.
template <GemvWeight kType>
struct TileScale {
  float factor = 1.0f, unit = 1.0f;  // what rows are multiplied by; what undoes it

  __device__ explicit TileScale(float bound) {
    if constexpr (kType == GemvWeight::kE4M3) {
      const int exponent = static_cast<int>(__float_as_uint(bound) >> 23) - 127;
      const int power = min(14 - exponent, 126);
      factor = ldexpf(1.0f, power);
      unit = ldexpf(1.0f, -power);
    }
  }
  __device__ uint32_t pack(float low, float high) const {
    if constexpr (kType != GemvWeight::kE4M3) return pack_bf16(low, high);
    const __half2 pair = __floats2half2_rn(low * factor, high * factor);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  __device__ int4 pack(const float (&v)[8]) const {
    const uint32_t words[4] = {pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]),
                               pack(v[6], v[7])};
    return *reinterpret_cast<const int4*>(words);
  }
};

// Rows lane / 4 of the tile's first eight rows and of its last eight.
struct TileRows {
  ExpertRow row[2];
};

// kLots: how many lots of weights are on their way, 64 registers for two.
template <GemvWeight kType, int kTokens = 1, int kLots = 2>
class TileProduct {
  static_assert(kTokens == 1 || kTokens == 2 || kTokens == 4);
  static constexpr bool kIsE4M3 = kType == GemvWeight::kE4M3;
  static constexpr int kElements = GemvLoad<kType>::kElements;  // of a 16-byte piece
  static constexpr int kChunk = 4 * kElements;  // of K: a piece of each lane of four
  static constexpr int kChunks = 4;             // pieces that are asked for at once
  static constexpr int kBlock = 128;            // of K that share a scale

 public:
  static constexpr int kLot = kChunks * kChunk;

  __device__ TileProduct() {}
  // begin: a multiple of 128; end: of 16. Asks for the first lots.
  __device__ TileProduct(const TileRows& rows, int begin, int end)
      : TileProduct(rows, begin, end, FirstLot{}) {
    ask_second_lot();
  }
  // Asks for the first lot alone: ask_second_lot() is to follow.
  struct FirstLot {};
  __device__ TileProduct(const TileRows& rows, int begin, int end, FirstLot)
      : rows_(rows), begin_(begin), end_(end) {
    load(lot_[0], begin);
  }
  __device__ void ask_second_lot() {
    if constexpr (kLots > 1) load(lot_[1], begin_ + kLot);
  }

  // sum[0], sum[1]: of the first row with tokens 2 q and 2 q + 1, q = lane % 4, modulo kTokens;
  // sum[2], sum[3]: of the second. `x`: element `begin` of the first token's row in shared memory;
  // what lies between `end` and the next multiple of kChunk is finite. In the units of x.
  __device__ void run(const uint8_t* x, int row_bytes, float (&sum)[4]) {
    x += lane() / 4 % kTokens * row_bytes;
    float d[4] = {};
#pragma unroll
    for (float& e : sum) e = 0.0f;
    for (int k = begin_; k < end_; k += kLots * kLot) {
#pragma unroll
      for (int which = 0; which < kLots; ++which) {
        const int at = k + which * kLot;
        if (at >= end_) break;
        multiply(lot_[which], x + (at - begin_) * 2, end_ - at, sum, d);
        load(lot_[which], at + kLots * kLot);
      }
    }
  }

 private:
  struct Lot {
    int4 raw[kChunks][2];
    float scale[kIsE4M3 ? kLot / kBlock : 1][2];  // of e4m3
  };
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  // Pieces past `end` are the last one again: what they meet is zero, or left out by multiply().
  __device__ void load(Lot& lot, int k) {
    if (k >= end_) return;
    const bool whole = k + kLot <= end_;
    const int mine = k + lane() % 4 * kElements;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const char* const row = rows_.row[r].data;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int at = whole ? mine + c * kChunk : min(mine + c * kChunk, end_ - kElements);
        lot.raw[c][r] = __ldg(reinterpret_cast<const int4*>(row + at * GemvLoad<kType>::kBytes));
      }
      if constexpr (kIsE4M3)
#pragma unroll
        for (int b = 0; b < kLot / kBlock; ++b)
          lot.scale[b][r] = __ldg(rows_.row[r].scale + min(k / kBlock + b, (end_ - 1) / kBlock));
    }
  }

  // sum += d times the scales of both rows; d = 0.
  __device__ static void add_up(const float (&scale)[2], float (&sum)[4], float (&d)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = kIsE4M3 ? fmaf(d[i], scale[i / 2], sum[i]) : sum[i] + d[i];
      d[i] = 0.0f;
    }
  }

  __device__ static void multiply(const Lot& lot, const uint8_t* staged, int left, float (&sum)[4],
                                  float (&d)[4]) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c * kChunk < left) {
        const auto* const x =
            reinterpret_cast<const uint4*>(staged + (c * kChunk + lane() % 4 * kElements) * 2);
        if constexpr (kIsE4M3) {
          const uint4 first = x[0], second = x[1];
          step_e4m3(d, lot.raw[c][0].x, lot.raw[c][1].x, first.x, first.y);
          step_e4m3(d, lot.raw[c][0].y, lot.raw[c][1].y, first.z, first.w);
          step_e4m3(d, lot.raw[c][0].z, lot.raw[c][1].z, second.x, second.y);
          step_e4m3(d, lot.raw[c][0].w, lot.raw[c][1].w, second.z, second.w);
        } else {
          const uint4 pairs = *x;
          step_bf16(d, lot.raw[c][0].x, lot.raw[c][0].y, lot.raw[c][1].x, lot.raw[c][1].y, pairs.x,
                    pairs.y);
          step_bf16(d, lot.raw[c][0].z, lot.raw[c][0].w, lot.raw[c][1].z, lot.raw[c][1].w, pairs.z,
                    pairs.w);
        }
      }
      if ((c + 1) * kChunk % kBlock == 0) add_up(lot.scale[c * kChunk / kBlock], sum, d);
    }
  }
  __device__ static void step_e4m3(float (&d)[4], int low, int high, uint32_t b0, uint32_t b1) {
    uint32_t a[4];
    e4m3_to_f16(static_cast<uint32_t>(low), a[0], a[2]);
    e4m3_to_f16(static_cast<uint32_t>(high), a[1], a[3]);
    mma_f16(d, a, b0, b1);
  }
  __device__ static void step_bf16(float (&d)[4], int low0, int low1, int high0, int high1,
                                   uint32_t b0, uint32_t b1) {
    const uint32_t a[4] = {static_cast<uint32_t>(low0), static_cast<uint32_t>(high0),
                           static_cast<uint32_t>(low1), static_cast<uint32_t>(high1)};
    mma_bf16(d, a, b0, b1);
  }

  TileRows rows_;
  int begin_ = 0, end_ = 0;
  Lot lot_[kLots];
};

// Bytes of shared memory for `elements` of a row, zeros to the next lot's end included.
template <GemvWeight kType>
__host__ __device__ constexpr int staged_bytes(int elements) {
  constexpr int kLot = TileProduct<kType>::kLot;
  return (elements + kLot - 1) / kLot * kLot * 2;
}

// A warp brings `length` elements (a multiple of 8) into `staged` for its TileProduct; returns what
// their products are to be multiplied by.
template <GemvWeight kType>
__device__ __forceinline__ float stage_row(const __nv_bfloat16* x, int length, uint8_t* staged) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int units = length / 8, padded = staged_bytes<kType>(length) / 16;
  auto* const to = reinterpret_cast<int4*>(staged);
  const auto* const from = reinterpret_cast<const int4*>(x);
  float largest = 0.0f;
#pragma unroll 4
  for (int u = lane; u < padded; u += 32) {
    const int4 raw = u < units ? from[u] : int4{};
    to[u] = raw;
    if constexpr (kType == GemvWeight::kE4M3) {
      float v[8];
      unpack_bf16(raw, v);
#pragma unroll
      for (const float e : v) largest = fmaxf(largest, fabsf(e));
    }
  }
  if constexpr (kType == GemvWeight::kE4M3) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
  }
  const TileScale<kType> scale(largest);
  if constexpr (kType == GemvWeight::kE4M3) {
    for (int u = lane; u < padded; u += 32) {
      float v[8];
      unpack_bf16(to[u], v);
      to[u] = scale.pack(v);
    }
  }
  __syncwarp();
  return scale.unit;
}

}  // namespace hadal::cuda
