// FP8 weight gradients: copy engine, wgmma, f32 promotion after every page; persistent.
//
// Two threads copy, two warpgroups multiply; each of these owns 128 of a tile's 256 rows, 64 at a
// time, so that one's promotion runs under the other's products. Two blocks of a cluster work on
// neighbouring columns of the same rows, and each copies half of the rows for both. Sums leave
// through shared memory; the copy engine adds them to old values where those lie.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/wgmma.cuh"
#include "ops/cuda/fp8_wgrad/config.h"
#include "ops/fp8_format.h"

namespace hadal::cuda {

// Walks this cluster's share of the tiles; every role of a block walks the same list. The columns
// of a block may lie past the last.
struct Fp8WgradTiles {
  using C = Fp8WgradConfig;
  const Fp8WgradArgs& args;
  int unit = 0, next_unit, pages = 0;

  __device__ explicit Fp8WgradTiles(const Fp8WgradArgs& a)
      : args(a), next_unit(static_cast<int>(blockIdx.x) / C::kCluster) {}
  // NOTE: worked out anew where they are wanted; within a tile registers are short.
  __device__ int row_tiles() const { return (args.n + C::kRows - 1) / C::kRows; }
  __device__ int tiles() const { return row_tiles() * col_pairs(); }
  __device__ int batch() const { return unit / tiles(); }
  // Of kGroup row tiles, whose columns are walked together.
  __device__ int col_pairs() const {
    constexpr int kWide = C::kCols * C::kCluster;
    return (args.k + kWide - 1) / kWide;
  }
  __device__ int first_of_group() const {
    return unit % tiles() / (C::kGroup * col_pairs()) * C::kGroup;
  }
  __device__ int group_rows() const { return min(C::kGroup, row_tiles() - first_of_group()); }
  __device__ int in_group() const { return unit % tiles() - first_of_group() * col_pairs(); }
  __device__ int row() const { return (first_of_group() + in_group() % group_rows()) * C::kRows; }
  __device__ int col(uint32_t rank) const {
    return (in_group() / group_rows() * C::kCluster + static_cast<int>(rank)) * C::kCols;
  }
  __device__ int first_page() const {
    return args.page_begin == nullptr ? batch() * args.part_pages
                                      : __ldg(args.page_begin + batch());
  }
  __device__ bool next() {
    const int total = tiles() * args.batches;
    while (next_unit < total) {
      unit = next_unit;
      next_unit += static_cast<int>(gridDim.x) / C::kCluster;
      const int first = first_page();
      pages = args.page_begin == nullptr
                  ? min(args.part_pages, args.pages - first)
                  : min(__ldg(args.page_begin + batch() + 1), args.pages) - first;
      // An expert without rows adds nothing; a part without pages is zero.
      if (pages > 0 || !args.accumulate) return true;
    }
    return false;
  }
};

struct Fp8WgradShared {
  using C = Fp8WgradConfig;
  uint8_t *a, *b;  // [kStages] tiles
  uint8_t* out;    // [8][kBoxes] boxes of f32
  float* scales;   // [kStages][kRows + kCols]
  uint64_t *full, *empty;
  __device__ explicit Fp8WgradShared(uint8_t* raw) {
    a = raw;
    b = a + C::kStages * C::kBytesA;
    out = b + C::kStages * C::kBytesB;
    scales = reinterpret_cast<float*>(out + C::kBytesOut);
    full = reinterpret_cast<uint64_t*>(scales + C::kStages * C::kScales);
    empty = full + C::kStages;
  }
};

// Copies half of the rows for both blocks of the cluster, and the scales of all.
__device__ inline void fp8_wgrad_copy_rows(const Fp8WgradArgs& args, const CUtensorMap& map_a,
                                           const Fp8WgradShared& s, uint32_t rank) {
  using C = Fp8WgradConfig;
  const int half = static_cast<int>(rank) * 128;
  int stage = 0;
  uint32_t parity = 0;
  Fp8WgradTiles tiles(args);
  while (tiles.next()) {
    const int row = tiles.row(), first_page = tiles.first_page();
    const uint32_t scale_bytes = static_cast<uint32_t>(min(C::kRows, args.n - row)) * 4;
    const bool two = row + 128 < args.n;
#pragma unroll 1
    for (int page = first_page; page < first_page + tiles.pages; ++page) {
      barrier_wait(s.empty + stage, parity ^ 1);
      uint64_t* const full = s.full + stage;
      barrier_expect(full, static_cast<uint32_t>((two ? 256 : 128) * C::kDepth) + scale_bytes);
      if (rank == 0 || two)
        copy_box3_multicast(s.a + stage * C::kBytesA + half * C::kDepth, &map_a, 0, row + half,
                            page, full, 3);
      copy_bytes(s.scales + stage * C::kScales,
                 args.scale_a + static_cast<int64_t>(page) * args.n + row, scale_bytes, full);
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
  }
}

// Copies the columns and their scales.
__device__ inline void fp8_wgrad_copy_cols(const Fp8WgradArgs& args, const CUtensorMap& map_b,
                                           const Fp8WgradShared& s, uint32_t rank) {
  using C = Fp8WgradConfig;
  int stage = 0;
  uint32_t parity = 0;
  Fp8WgradTiles tiles(args);
  while (tiles.next()) {
    const int col = tiles.col(rank), first_page = tiles.first_page();
    const uint32_t scale_bytes = static_cast<uint32_t>(max(0, min(C::kCols, args.k - col))) * 4;
#pragma unroll 1
    for (int page = first_page; page < first_page + tiles.pages; ++page) {
      barrier_wait(s.empty + stage, parity ^ 1);
      uint64_t* const full = s.full + stage;
      barrier_expect(full, C::kBytesB + scale_bytes);
      copy_box3(s.b + stage * C::kBytesB, &map_b, 0, col, page, full);
      if (scale_bytes > 0)
        copy_bytes(s.scales + stage * C::kScales + C::kRows,
                   args.scale_b + static_cast<int64_t>(page) * args.k + col, scale_bytes, full);
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
  }
}

template <bool kShort>
__device__ inline void fp8_wgrad_add(float& sum, float partial, float scale) {
  sum = __fmaf_rn(partial, scale, sum);
  if constexpr (kShort) sum = ops::short_sum(sum);
}

// Sends a warp's 16 rows from the column `col` on. `out` is [kBoxes] boxes, each free again once
// the copy engine has read it.
__device__ inline void fp8_wgrad_send(const Fp8WgradArgs& args, const CUtensorMap& map_c,
                                      const float (&acc)[64], uint8_t* out, int row, int col,
                                      int batch, int lane) {
  using C = Fp8WgradConfig;
  asm volatile("" : "+r"(lane));  // what follows from it is not kept through the products
  const int r = lane / 4;
#pragma unroll
  for (int box = 0; box < C::kBoxes; ++box) {
    if (lane == 0) bulk_wait_read<C::kBoxes - 1>();
    __syncwarp();
    uint8_t* const to = out + box * C::kBytesBox;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = (box * 4 + j) * 4, at = (((j * 2 + lane % 4 / 2) ^ r) * 16) + lane % 2 * 8;
      *reinterpret_cast<float2*>(to + r * 128 + at) = {acc[i], acc[i + 1]};
      *reinterpret_cast<float2*>(to + (r + 8) * 128 + at) = {acc[i + 2], acc[i + 3]};
    }
    async_proxy_fence();
    __syncwarp();
    if (lane == 0) {
      if (args.accumulate)
        add_box3(&map_c, col + box * C::kBoxCols, row, batch, to);
      else
        store_box3(&map_c, col + box * C::kBoxCols, row, batch, to);
      bulk_commit();
    }
  }
}

template <bool kShort>
__device__ inline void fp8_wgrad_multiply(const Fp8WgradArgs& args, const CUtensorMap& map_c,
                                          const Fp8WgradShared& s, uint32_t rank, int group) {
  using C = Fp8WgradConfig;
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32 % 4);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint8_t* const out = s.out + (group * 4 + warp) * C::kBoxes * C::kBytesBox;
  int stage = 0;
  uint32_t parity = 0;
  Fp8WgradTiles tiles(args);
  while (tiles.next()) {
    float acc[2][64];
#pragma unroll
    for (int i = 0; i < 64; ++i) acc[0][i] = acc[1][i] = 0.0f;
    uint64_t a = 0, b = 0;
    float2 col[16] = {};
    float row[2] = {};
    const auto send = [&](int half) {
      fp8_wgrad_send(args, map_c, acc[half], out, tiles.row() + group * 128 + half * 64 + warp * 16,
                     tiles.col(rank), tiles.batch(), lane);
    };
    // Waits for a stage.
    const auto prepare = [&] {
      const int at = uniform(stage);
      a = descriptor_k(smem_addr(s.a) + at * C::kBytesA + group * 128 * C::kDepth);
      b = descriptor_k(smem_addr(s.b) + at * C::kBytesB);
      barrier_wait(s.full + stage, parity);
    };
    const auto col_scales = [&] {
      return reinterpret_cast<const float2*>(s.scales + stage * C::kScales + C::kRows +
                                             lane % 4 * 2);
    };
    const auto row_scales = [&] {
      return s.scales + stage * C::kScales + group * 128 + warp * 16 + lane / 4;
    };
    // 64 rows of the page, from `offset` bytes of a on.
    const auto products = [&](float(&partial)[64], int offset) {
      mma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mma_e4m3_n128(partial, advance(a, offset + i * 32), advance(b, i * 32), i > 0);
      mma_commit();
    };
    const auto finish = [&](float(&partial)[64]) {
      mma_wait<0>();
      mma_touch(partial);
    };
    const auto promote = [&](float(&sum)[64], const float(&partial)[64], int j) {
      const int i = j * 4;
      fp8_wgrad_add<kShort>(sum[i], partial[i], row[0] * col[j].x);
      fp8_wgrad_add<kShort>(sum[i + 1], partial[i + 1], row[0] * col[j].y);
      fp8_wgrad_add<kShort>(sum[i + 2], partial[i + 2], row[1] * col[j].x);
      fp8_wgrad_add<kShort>(sum[i + 3], partial[i + 3], row[1] * col[j].y);
    };
    // NOTE: scales that the first sums after the products want are read a page ahead, the others
    // under the products: what waits for shared memory between the instructions of the matrix unit
    // leaves the unit idle.
    const auto read_first = [&](float& lo, float& hi) {
      lo = row_scales()[0], hi = row_scales()[8];
    };
    if (tiles.pages > 0) {
      prepare();
      read_first(row[0], row[1]);
#pragma unroll
      for (int j = 0; j < 8; ++j) col[j] = col_scales()[j * 4];
    }
    for (int page = 0; page < tiles.pages; ++page) {
      const bool more = page + 1 < tiles.pages;
      float partial[64];
      products(partial, 0);
#pragma unroll
      for (int j = 8; j < 16; ++j) col[j] = col_scales()[j * 4];
      finish(partial);
#pragma unroll
      for (int j = 0; j < 16; ++j) promote(acc[0], partial, j);
      row[0] = row_scales()[64], row[1] = row_scales()[72];
      products(partial, 8192);
      // What comes before the next page's products runs under these.
      uint64_t* const empty = s.empty + stage;
      if (++stage == C::kStages) stage = 0, parity ^= 1;
      if (more) prepare();
      finish(partial);
      __syncwarp();
      if (lane < C::kCluster) barrier_arrive_at(empty, static_cast<uint32_t>(lane));
      float next[2] = {};
      if (more) read_first(next[0], next[1]);
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        promote(acc[1], partial, j);
        if (j < 8 && more) col[j] = col_scales()[j * 4];
      }
      row[0] = next[0], row[1] = next[1];
    }
    send(0);
    send(1);
  }
  // The copy engine may still read what this warp sent.
  if (lane == 0) bulk_wait_read<0>();
}

template <bool kShort>
__global__ void __launch_bounds__(Fp8WgradConfig::kThreads, 1)
    fp8_wgrad_kernel_sm90(const __grid_constant__ Fp8WgradArgs args,
                          const __grid_constant__ CUtensorMap map_a,
                          const __grid_constant__ CUtensorMap map_b,
                          const __grid_constant__ CUtensorMap map_c) {
  using C = Fp8WgradConfig;
  extern __shared__ uint8_t raw[];
  const Fp8WgradShared s(raw + (1024 - smem_addr(raw) % 1024) % 1024);
  const uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) {
    prefetch_map(&map_a);
    prefetch_map(&map_b);
    prefetch_map(&map_c);
    for (int i = 0; i < C::kStages; ++i) {
      barrier_init(s.full + i, 2);
      barrier_init(s.empty + i, 8 * C::kCluster);
    }
    barrier_init_fence();
  }
  cluster_sync();
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int group = uniform(static_cast<int>(threadIdx.x) / 128);
  if (group == 0) {
    registers_shrink<24>();
    if (threadIdx.x == 0) fp8_wgrad_copy_rows(args, map_a, s, rank);
    if (threadIdx.x == 32) fp8_wgrad_copy_cols(args, map_b, s, rank);
  } else {
    registers_grow<240>();
    fp8_wgrad_multiply<kShort>(args, map_c, s, rank, group - 1);
  }
  // A block may not leave while the other still writes or signals into its shared memory.
  cluster_sync();
}

}  // namespace hadal::cuda
