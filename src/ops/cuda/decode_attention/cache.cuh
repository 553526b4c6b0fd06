// The cache as the phases of decode attention write and read it, for each format of its rows.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/decode_attention/block.cuh"
#include "ops/cuda/detail/cache_rows.h"
#include "ops/cuda/detail/e4m3.cuh"
#include "ops/cuda/detail/element.cuh"

namespace hadal::cuda {

__device__ __forceinline__ int decode_sequence(const DecodeAttentionArgs& args, int token) {
  int s = 0;
  while (s + 1 < args.seqs && __ldg(args.offsets + s + 1) <= token) ++s;
  return s;
}
// The page of a place of a sequence, or -1.
__device__ __forceinline__ int decode_page(const DecodeAttentionArgs& args, int seq, int place) {
  if (place < 0 || place >= args.table_places) return -1;
  const int page = __ldg(args.table + static_cast<int64_t>(seq) * args.table_stride + place);
  return page >= 0 && page < args.num_pages ? page : -1;
}

template <CacheRows kFormat>
class DecodePages;

template <>
class DecodePages<CacheRows::kBF16> {
 public:
  using C = DecodeC;

  __device__ static uint8_t* row(const DecodeAttentionArgs& args, int page, int index) {
    return static_cast<uint8_t*>(args.pages) +
           (static_cast<int64_t>(page) * C::kPage + index) * (C::kWidth * 2);
  }
  // Stores the latent element of each thread of the block.
  __device__ static void put_latent(uint8_t* row, __nv_bfloat16 value) {
    reinterpret_cast<__nv_bfloat16*>(row)[threadIdx.x] = value;
  }
  __device__ static __nv_bfloat16* key(uint8_t* row) {
    return reinterpret_cast<__nv_bfloat16*>(row) + C::kLatent;
  }

  // Two pages in shared memory.
  __device__ explicit DecodePages(uint8_t* shared)
      : wide_(reinterpret_cast<__nv_bfloat16*>(shared)) {}
  // The copy engine brings the first `rows` rows of a page into `slot` and counts them in at
  // `full`. A few rows for each warp: its lanes ask one after another.
  __device__ void bring(const DecodeAttentionArgs& args, int page, int rows, int slot,
                        uint64_t* full) const {
    constexpr int kBytes = C::kWidth * 2, kRowsOfWarp = C::kPage / C::kWarps;
    if (threadIdx.x == 0) barrier_expect(full, static_cast<uint32_t>(rows * kBytes));
    const int r = block_warp() * kRowsOfWarp + block_lane();
    if (block_lane() < kRowsOfWarp && r < rows)
      copy_bytes(wide_ + (slot * C::kPage + r) * C::kStride, row(args, page, r), kBytes, full);
  }
  // Rows begin .. end - 1, which this launch wrote, and zeros in those from end on.
  __device__ void finish(const DecodeAttentionArgs& args, int page, int begin, int end,
                         int slot) const {
    constexpr int kUnits = C::kWidth / 8;
    __nv_bfloat16* const to = wide_ + slot * C::kPage * C::kStride;
    for (int i = static_cast<int>(threadIdx.x); i < (C::kPage - begin) * kUnits; i += C::kThreads) {
      const int r = begin + i / kUnits, u = i % kUnits;
      *reinterpret_cast<int4*>(to + r * C::kStride + u * 8) =
          r < end ? fresh_16(row(args, page, r) + u * 16) : int4{};
    }
  }
  // The page in `slot`, [kPage, kStride], once all threads have seen it arrive.
  __device__ const __nv_bfloat16* ready(int slot) const {
    return wide_ + slot * C::kPage * C::kStride;
  }

 private:
  __nv_bfloat16* wide_;
};

// FP8 rows are brought as they are, two pages on their way, and widened into a third place.
template <>
class DecodePages<CacheRows::kFp8> {
 public:
  using C = DecodeC;

  __device__ static uint8_t* row(const DecodeAttentionArgs& args, int page, int index) {
    return static_cast<uint8_t*>(args.pages) +
           (static_cast<int64_t>(page) * C::kPage + index) * kRow;
  }
  __device__ static void put_latent(uint8_t* row, __nv_bfloat16 value) {
    constexpr int kWarpsOfTile = static_cast<int>(ops::Fp8LatentRow::kTile) / 32;
    __shared__ float of_warp[C::kWarps];
    const float v = __bfloat162float(value);
    float amax = fabsf(v);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, d));
    if (block_lane() == 0) of_warp[block_warp()] = amax;
    __syncthreads();
    const int tile = block_warp() / kWarpsOfTile;
    amax = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarpsOfTile; ++w) amax = fmaxf(amax, of_warp[tile * kWarpsOfTile + w]);
    const float scale = ops::latent_scale(amax);
    row[threadIdx.x] = ops::cuda::narrow_e4m3(v / scale).bits;
    if (threadIdx.x % ops::Fp8LatentRow::kTile == 0)
      reinterpret_cast<float*>(row + kV3Fp8Row.scale_at())[tile] = scale;
    __syncthreads();
  }
  __device__ static __nv_bfloat16* key(uint8_t* row) {
    return reinterpret_cast<__nv_bfloat16*>(row + kV3Fp8Row.key_at());
  }

  __device__ explicit DecodePages(uint8_t* shared)
      : wide_(reinterpret_cast<__nv_bfloat16*>(shared)), raw_(shared + C::kPageBytes) {}
  __device__ void bring(const DecodeAttentionArgs& args, int page, int rows, int slot,
                        uint64_t* full) const {
    if (threadIdx.x != 0) return;
    barrier_expect(full, static_cast<uint32_t>(rows * kRow));
    if (rows > 0)
      copy_bytes(raw_ + slot * C::kFp8PageBytes, row(args, page, 0),
                 static_cast<uint32_t>(rows * kRow), full);
  }
  __device__ void finish(const DecodeAttentionArgs& args, int page, int begin, int end,
                         int slot) const {
    constexpr int kUnits = kRow / 16;
    uint8_t* const to = raw_ + slot * C::kFp8PageBytes;
    for (int i = static_cast<int>(threadIdx.x); i < (C::kPage - begin) * kUnits; i += C::kThreads) {
      const int r = begin + i / kUnits, u = i % kUnits;
      *reinterpret_cast<int4*>(to + r * kRow + u * 16) =
          r < end ? fresh_16(row(args, page, r) + u * 16) : int4{};
    }
  }
  __device__ const __nv_bfloat16* ready(int slot) const {
    constexpr int kUnits = C::kLatent / 16, kKeyUnits = C::kRope / 8;
    const uint8_t* const raw = raw_ + slot * C::kFp8PageBytes;
    for (int i = static_cast<int>(threadIdx.x); i < C::kPage * kUnits; i += C::kThreads) {
      const int r = i / kUnits, u = i % kUnits;
      const uint8_t* const from = raw + r * kRow;
      const float scale = reinterpret_cast<const float*>(from + kV3Fp8Row.scale_at())[u * 16 / 128];
      uint4 wide[2];
      widen_e4m3(reinterpret_cast<const uint4*>(from)[u], scale, wide);
      auto* const to = reinterpret_cast<uint4*>(wide_ + r * C::kStride + u * 16);
      to[0] = wide[0];
      to[1] = wide[1];
    }
    static_assert(C::kPage * kKeyUnits == C::kThreads);
    const int r = static_cast<int>(threadIdx.x) / kKeyUnits,
              u = static_cast<int>(threadIdx.x) % kKeyUnits;
    reinterpret_cast<uint4*>(wide_ + r * C::kStride + C::kLatent)[u] =
        reinterpret_cast<const uint4*>(raw + r * kRow + kV3Fp8Row.key_at())[u];
    __syncthreads();
    return wide_;
  }

 private:
  static constexpr int kRow = static_cast<int>(kV3Fp8Row.bytes());

  __nv_bfloat16* wide_;
  uint8_t* raw_;
};

}  // namespace hadal::cuda
