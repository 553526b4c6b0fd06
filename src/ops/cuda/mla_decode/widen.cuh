// Brings FP8 pages of the cache as the swizzled bf16 tiles that the matrix unit reads.
//
// A page is brought in two lots, the columns of half b of buffer b first, as mla_decode_copy does.
// A thread has 16 columns of each 64-column chunk of two rows: eight loads of a lot, which stay on
// their way in registers while the lot before is widened, one load for each that is used up. The
// bulk prefetch has called the page into the L2 by then. Keys are bf16 and come by the copy engine.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/cache_rows.h"
#include "ops/cuda/detail/e4m3.cuh"
#include "ops/cuda/mla_decode/tiles.cuh"

namespace hadal::cuda {

__device__ __forceinline__ void mla_decode_prefetch_page(const MlaDecodeArgs& args, int page) {
  constexpr int64_t kBytes = MlaDecodeConfig::kPage * kV3Fp8Row.bytes();
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                   static_cast<const uint8_t*>(args.pages) + page * kBytes),
               "r"(static_cast<uint32_t>(kBytes))
               : "memory");
}

__device__ __forceinline__ void mla_decode_q_copy(const MlaDecodeArgs& args,
                                                  const MlaDecodeTiles<1>& tile,
                                                  const CUtensorMap& map_q,
                                                  const MlaDecodeShared& s, uint32_t parity,
                                                  int lane) {
  using C = MlaDecodeConfig;
  const int box_rows = mla_decode_q_box_rows(args);
  const int boxes = tile.q_boxes(box_rows), q_row = tile.q_row();
  barrier_wait(s.q_empty, parity ^ 1);
  if (lane == 0)
    barrier_expect(s.q_full, static_cast<uint32_t>(boxes * box_rows * C::kChunks * 128));
  __syncwarp();
  for (int i = lane; i < C::kChunks * boxes; i += 32) {
    const int c = i / boxes, b = i - c * boxes;
    copy_box(s.q + c * C::kChunkBytes + b * box_rows * 128, &map_q, c * 64, q_row + b * box_rows,
             s.q_full);
  }
}

__device__ inline void mla_decode_widen(const MlaDecodeArgs& args, const CUtensorMap& map_q,
                                        const CUtensorMap& map_keys, const MlaDecodeShared& s) {
  using C = MlaDecodeConfig;
  constexpr int kRow = static_cast<int>(kV3Fp8Row.bytes());
  constexpr int kScales = static_cast<int>(kV3Fp8Row.scale_at());
  constexpr int kAhead = 3;  // pages that are called into the L2 before their loads
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int row = warp * 16 + lane / 4, quarter = lane % 4;  // and row + 8
  // Of unit 2 * quarter of the row; the unit after it is 16 bytes off in either direction.
  const int to = row * 128 + ((2 * quarter) ^ (row % 8)) * 16;
  uint32_t q_parity = 0, parities = 0;  // of a buffer's uses: a bit each

  MlaDecodeTiles<1> tile(args);
#pragma unroll 1
  while (tile.next()) {
    const int* const table =
        args.table + static_cast<int64_t>(tile.seq) * args.table_stride + tile.first_page;
    const int num_lots = 2 * tile.num_pages;
    const int num_rows = tile.length - tile.first_page * C::kPage;  // from the first page on
    int entries = lane < tile.num_pages ? __ldg(table + lane) : 0;  // a lane has one of 32 pages

    // Where a lot begins, and this thread's first 16 bytes of its first row.
    const auto page_of = [&](int lot) { return __shfl_sync(0xffffffffu, entries, lot / 2 % 32); };
    const auto bytes_of = [&](int lot) {
      const int half = lot / 2 % 2 ^ lot % 2;
      return static_cast<const uint8_t*>(args.pages) +
             static_cast<int64_t>(page_of(lot)) * (C::kPage * kRow) + row * kRow + half * 256;
    };
    uint4 raw[8];                    // [chunk][row]
    float2 scale[2], next_scale[2];  // [row]   of the half's two tiles
    const auto load = [&](const uint8_t* lot, int i) {
      return __ldcg(
          reinterpret_cast<const uint4*>(lot + quarter * 16 + i / 2 * 64 + i % 2 * (8 * kRow)));
    };
    const auto load_scales = [&](const uint8_t* lot, int half) {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        next_scale[r] = __ldcg(
            reinterpret_cast<const float2*>(lot - half * 256 + 8 * r * kRow + kScales + half * 8));
    };

    if (warp == 3 && lane >= 1 && lane < tile.num_pages && lane <= kAhead)
      mla_decode_prefetch_page(args, entries);
    {
      const uint8_t* const first = bytes_of(0);
      load_scales(first, 0);
#pragma unroll
      for (int i = 0; i < 8; ++i) raw[i] = load(first, i);
    }
    if (warp == 0) mla_decode_q_copy(args, tile, map_q, s, q_parity, lane);
    q_parity ^= 1;

#pragma unroll 1
    for (int lot = 0; lot < num_lots; ++lot) {
      const int buffer = lot / 2 % 2, second = lot % 2, half = buffer ^ second;
      const int keys = page_of(lot) * C::kPage;
      // Rows past the context may hold anything; a weight of 0 does not make a NaN of theirs 0.
      const int valid = num_rows - lot / 2 * C::kPage;
      if (valid < C::kPage) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (row + 8 * (i % 2) >= valid) raw[i] = uint4{0, 0, 0, 0};
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (row + 8 * r >= valid) next_scale[r] = float2{0.0f, 0.0f};
      }
      scale[0] = next_scale[0], scale[1] = next_scale[1];
      // The lot after this one; after the last, this one again.
      const int next = lot + 1 < num_lots ? lot + 1 : lot;
      if (second == 1 && next != lot) {
        const int page = next / 2;
        if (page % 32 == 0) entries = page + lane < tile.num_pages ? __ldg(table + page + lane) : 0;
        if (warp == 3 && page + kAhead < tile.num_pages) {
          const int ahead = page + kAhead;
          const int called = ahead / 32 == page / 32 ? __shfl_sync(0xffffffffu, entries, ahead % 32)
                                                     : __ldg(table + ahead);
          if (lane == 0) mla_decode_prefetch_page(args, called);
        }
      }
      const uint8_t* const bytes = bytes_of(next);
      load_scales(bytes, next / 2 % 2 ^ next % 2);

      const int bar = buffer * 2 + half;
      barrier_wait(s.empty + bar, (parities >> buffer & 1) ^ 1);
      if (second == 1) {
        if (thread == 0) {
          barrier_expect(s.full + bar, C::kChunkBytes);
          copy_box(s.page(buffer) + 8 * C::kChunkBytes, &map_keys, 0, keys, s.full + bar);
        }
        parities ^= 1u << buffer;
      }
      uint8_t* const dst = s.page(buffer) + half * 4 * C::kChunkBytes + to;
      uint8_t* const beside = dst + (to & 16 ? -16 : 16);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int chunk = i / 2, r = i % 2, at = chunk * C::kChunkBytes + r * 8 * 128;
        uint4 wide[2];
        widen_e4m3(raw[i], chunk < 2 ? scale[r].x : scale[r].y, wide);
        raw[i] = load(bytes, i);
        *reinterpret_cast<uint4*>(dst + at) = wide[0];
        *reinterpret_cast<uint4*>(beside + at) = wide[1];
        asm volatile("" ::: "memory");  // one after the other: all at once would spill
      }
      async_proxy_fence();
      __syncwarp();
      if (lane == 0) barrier_arrive(s.full + bar);
    }
  }
}

}  // namespace hadal::cuda
