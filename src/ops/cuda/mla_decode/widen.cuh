// Brings FP8 pages of the cache as the swizzled bf16 tiles that the matrix unit reads.
//
// A page is brought in two lots, the columns of half b of buffer b first, as mla_decode_copy does.
// A thread has 16 columns of each 64-column chunk of two rows: eight loads of a lot, which stay on
// their way in registers while the lot before is widened, one load for each that is used up. The
// bulk prefetch has called the page into the L2 by then. Keys are bf16 and come by the copy engine.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/cache_rows.cuh"
#include "ops/cuda/mla_decode/tiles.cuh"

namespace hadal::cuda {

// Lots of one block in order: half a page each.
struct MlaDecodeLots {
  using C = MlaDecodeConfig;
  MlaDecodeTiles<1> tile;
  const int* table = nullptr;           // of the tile's pages
  int page = -1;                        // of the tile
  int second = 1;                       // lot of the page
  int row_page = 0, next_row_page = 0;  // where this page and the next one lie

  __device__ explicit MlaDecodeLots(const MlaDecodeArgs& args) : tile(args) {}
  __device__ bool next() {
    second ^= 1;
    if (second == 1) return true;
    if (++page == tile.num_pages || table == nullptr) {
      if (!tile.next()) return false;
      table = tile.args.table + static_cast<int64_t>(tile.seq) * tile.args.table_stride +
              tile.first_page;
      page = 0;
      next_row_page = __ldg(table);
    }
    row_page = next_row_page;
    if (page + 1 < tile.num_pages) next_row_page = __ldg(table + page + 1);
    return true;
  }
  __device__ int buffer() const { return page & 1; }
  __device__ int half() const { return buffer() ^ second; }
  // Rows of the page that belong to the context.
  __device__ int valid() const {
    return min(C::kPage, tile.length - (tile.first_page + page) * C::kPage);
  }
  __device__ const uint8_t* bytes() const {
    return static_cast<const uint8_t*>(tile.args.pages) +
           static_cast<int64_t>(row_page) * (C::kPage * kV3Fp8Row.bytes());
  }
};

__device__ __forceinline__ void mla_decode_prefetch_page(const MlaDecodeArgs& args, int page) {
  constexpr int64_t kBytes = MlaDecodeConfig::kPage * kV3Fp8Row.bytes();
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                   static_cast<const uint8_t*>(args.pages) + page * kBytes),
               "r"(static_cast<uint32_t>(kBytes))
               : "memory");
}

__device__ __forceinline__ uint4 load_stream_16(const uint8_t* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// What is kept of a lot that is on its way.
struct MlaDecodeLot {
  uint4 raw[8];     // [chunk][row]
  float2 scale[2];  // [row]   of the half's two tiles
};

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
  const int from = row * kRow + quarter * 16;
  // Of unit 2 * quarter of the row; the unit after it is 16 bytes off in either direction.
  const int to = row * 128 + ((2 * quarter) ^ (row % 8)) * 16;
  uint32_t q_parity = 0, uses0 = 0, uses1 = 0;

  MlaDecodeLots lots(args);
  MlaDecodeLot lot;
  bool more = lots.next();
  const auto load_scales = [&](const uint8_t* page, int half, int valid) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      lot.scale[r] = float2{0.0f, 0.0f};
      if (row + 8 * r < valid)
        lot.scale[r] =
            __ldcg(reinterpret_cast<const float2*>(page + (row + 8 * r) * kRow + kScales) + half);
    }
  };
  const auto load = [&](int i, const uint8_t* page, int half, int valid) {
    const int chunk = i / 2, r = i % 2;
    lot.raw[i] = uint4{0, 0, 0, 0};
    if (row + 8 * r < valid)
      lot.raw[i] = load_stream_16(page + from + r * 8 * kRow + half * 256 + chunk * 64);
  };
  // Calls pages into the L2: all of the first ones, then one a page.
  const auto call_ahead = [&] {
    if (thread != 96) return;
    for (int p = lots.page == 0 ? 1 : kAhead; p <= kAhead; ++p)
      if (lots.page + p < lots.tile.num_pages)
        mla_decode_prefetch_page(args, __ldg(lots.table + lots.page + p));
  };
  if (more) {
    call_ahead();
    load_scales(lots.bytes(), lots.half(), lots.valid());
#pragma unroll
    for (int i = 0; i < 8; ++i) load(i, lots.bytes(), lots.half(), lots.valid());
  }
  while (more) {
    // The lot that has arrived.
    const int buffer = lots.buffer(), half = lots.half(), second = lots.second;
    const int keys = lots.row_page * C::kPage;
    if (second == 0 && lots.page == 0) {
      if (warp == 0) mla_decode_q_copy(args, lots.tile, map_q, s, q_parity, lane);
      q_parity ^= 1;
    }
    const float2 scale[2] = {lot.scale[0], lot.scale[1]};
    // The one after it.
    more = lots.next();
    const uint8_t* const page = more ? lots.bytes() : static_cast<const uint8_t*>(args.pages);
    const int next_half = lots.half(), valid = more ? lots.valid() : 0;
    load_scales(page, next_half, valid);
    if (more && lots.second == 0) call_ahead();

    const int bar = buffer * 2 + half;
    const uint32_t parity = (buffer == 0 ? uses0 : uses1) & 1;
    barrier_wait(s.empty + bar, parity ^ 1);
    if (second == 1) {
      if (thread == 0) {
        barrier_expect(s.full + bar, C::kChunkBytes);
        copy_box(s.page(buffer) + 8 * C::kChunkBytes, &map_keys, 0, keys, s.full + bar);
      }
      if (buffer == 0) {
        ++uses0;
      } else {
        ++uses1;
      }
    }
    uint8_t* const dst = s.page(buffer) + half * 4 * C::kChunkBytes + to;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int chunk = i / 2, r = i % 2;
      uint4 wide[2];
      widen_e4m3(lot.raw[i], chunk < 2 ? scale[r].x : scale[r].y, wide);
      load(i, page, next_half, valid);
      uint8_t* const at = dst + chunk * C::kChunkBytes + r * 8 * 128;
      *reinterpret_cast<uint4*>(at) = wide[0];
      *reinterpret_cast<uint4*>(at + (to & 16 ? -16 : 16)) = wide[1];
    }
    async_proxy_fence();
    __syncwarp();
    if (lane == 0) barrier_arrive(s.full + bar);
  }
}

}  // namespace hadal::cuda
