// Tiles of MLA attention in shared memory, their products, and the stores of accumulators.
//
// A tile of R rows is chunks of 64 columns: chunk c of [R][128 bytes] at c * R * 128, swizzled. The
// nope columns come first, the rope columns start a chunk of their own.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/wgmma.cuh"
#include "ops/cuda/mla_attention/config.h"
#include "ops/cuda/mla_attention/tasks.cuh"

namespace hadal::cuda {

// A ring of stages: where it stands, and how often it has gone round.
template <int kStages>
struct MlaRingAt {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// Lets the two matrix warpgroups issue their products in turn: one forms P while the products of
// the other run. Both must take as many turns.
struct MlaTurns {
  int group;
  __device__ explicit MlaTurns(int g) : group(g) {
    if (group == 1) named_arrive(1, 256);  // the first turn is warpgroup 0's
  }
  __device__ void begin() const { named_sync(1 + group, 256); }
  __device__ void end() const { named_arrive(2 - group, 256); }
  __device__ void pass(int turns) const {
    for (int i = 0; i < turns; ++i) begin(), end();
  }
};

__device__ __forceinline__ void mma_bf16_rows(float (&d)[32], uint64_t a, uint64_t b, int more) {
  mma_bf16_n64(d, a, b, more);
}
__device__ __forceinline__ void mma_bf16_rows(float (&d)[64], uint64_t a, uint64_t b, int more) {
  mma_bf16_n128(d, a, b, more);
}

// d (+)= a b^T over kWidth columns; chunks of a and b are a_chunk and b_chunk bytes apart. The
// addresses are hidden from the compiler, which would keep all descriptors in registers.
template <int kWidth, int kAcc>
__device__ __forceinline__ void mla_product(float (&d)[kAcc], uint32_t a, uint32_t a_chunk,
                                            uint32_t b, uint32_t b_chunk, int accumulate) {
  asm volatile("" : "+r"(a), "+r"(b));
  const uint64_t a_base = descriptor_k(a), b_base = descriptor_k(b);
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    const uint32_t chunk = static_cast<uint32_t>(k / 64), in_chunk = static_cast<uint32_t>(k % 64);
    mma_bf16_rows(d, advance(a_base, chunk * a_chunk + in_chunk * 2),
                  advance(b_base, chunk * b_chunk + in_chunk * 2), accumulate || k > 0);
  }
}
// d = q k^T: nope columns, then rope columns.
template <class D, int kAcc>
__device__ __forceinline__ void mla_scores(float (&d)[kAcc], uint32_t a, uint32_t a_chunk,
                                           uint32_t b, uint32_t b_chunk) {
  mla_product<D::kNope>(d, a, a_chunk, b, b_chunk, 0);
  mla_product<D::kRope>(d, a + D::kNopeChunks * a_chunk, a_chunk, b + D::kNopeChunks * b_chunk,
                        b_chunk, 1);
}
// d += a b with a [64, 16 kSteps] in registers, b [16 kSteps, columns] of a tile.
template <int kSteps, int kAcc>
__device__ __forceinline__ void mla_accumulate(float (&d)[kAcc], const uint32_t (&a)[4 * kSteps],
                                               uint32_t b, uint32_t b_chunk) {
  asm volatile("" : "+r"(b));
  const uint64_t base = descriptor_mn(b, b_chunk);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const uint32_t step[4] = {a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]};
    mma_bf16_mn(d, step, advance(base, static_cast<uint32_t>(i) * 2048), 1);
  }
}

// Accumulators of 64 rows as the bf16 left operand of the next product.
template <int kCount>
__device__ __forceinline__ void mla_pack(uint32_t (&to)[kCount / 2], const float (&from)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) to[i] = pack_bf16(from[2 * i], from[2 * i + 1]);
}

template <int kCount>
__device__ __forceinline__ void mla_zero(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) d[i] = 0.0f;
}

// Row i (0: lane / 4, 1: + 8) of an accumulator, times factor, to bf16 at `row`, the first column
// of the tile's row. All lanes of a warp take part; those without `in_use` write nothing.
template <int kCount>
__device__ __forceinline__ void mla_store_row(const float (&d)[kCount], int i, float factor,
                                              __nv_bfloat16* row, bool in_use, int lane) {
#pragma unroll
  for (int j = 0; j < kCount / 16; ++j) {
    uint32_t v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      v[k] = pack_bf16(d[16 * j + 4 * k + 2 * i] * factor, d[16 * j + 4 * k + 2 * i + 1] * factor);
    quad_transpose(v, lane);
    if (in_use) *reinterpret_cast<uint4*>(row + 32 * j + 8 * (lane % 4)) = {v[0], v[1], v[2], v[3]};
  }
#pragma unroll
  for (int j = kCount / 16 * 4; j < kCount / 4; ++j) {  // a width that 32 does not divide
    if (in_use)
      *reinterpret_cast<uint32_t*>(row + 8 * j + 2 * (lane % 4)) =
          pack_bf16(d[4 * j + 2 * i] * factor, d[4 * j + 2 * i + 1] * factor);
  }
}

__device__ __forceinline__ __nv_bfloat16* mla_row(const MlaRows& rows, int64_t token, int head) {
  return const_cast<__nv_bfloat16*>(static_cast<const __nv_bfloat16*>(rows.data)) +
         token * rows.stride + head * rows.head_stride;
}

// Rows of shared memory from a tensor map: boxes of 64 columns and kBoxRows rows.
template <int kBoxRows>
struct MlaCopy {
  uint8_t* to;
  uint64_t* bar;
  int rows;  // of the tile, a multiple of kBoxRows
  __device__ void chunk(int c, const CUtensorMap* map, int64_t column, int row) const {
    for (int r = 0; r < rows; r += kBoxRows)
      copy_box(to + (c * rows + r) * 128, map, static_cast<int>(column), row + r, bar);
  }
};

}  // namespace hadal::cuda
