// Block-scaled FP8 matrix product: copy engine, wgmma, f32 promotion every 128 of K; persistent.
//
// A warpgroup copies, two multiply; each of the two owns one page of a 256-row tile. Two blocks of
// a cluster work on neighbouring columns of the same rows, and each copies one page for both. Where
// one column tile is left at the end of N, they take neighbouring rows of it instead.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/wgmma.cuh"
#include "ops/cuda/fp8_gemm/config.h"
#include "ops/fp8_format.h"

namespace hadal::cuda {

// Walks this cluster's share of the tiles; every role of a block walks the same list. kOneLeft: the
// number of column tiles is odd.
template <bool kOneLeft>
struct Fp8GemmTiles {
  using C = Fp8GemmConfig;
  const Fp8GemmArgs& args;
  int unit, step, other_step;  // clusters take units in turns, there and back
  int column_pairs;            // of column tiles that the two blocks share rows for
  int expert = 0, expert_units = 0, first_unit = 0, first_page = 0, pages = 0;
  int row_tile = 0, column_tile = 0;  // in the expert; in N
  bool share_rows = true;             // with the cluster's other block

  __device__ Fp8GemmTiles(const Fp8GemmArgs& a)
      : args(a),
        unit(static_cast<int>(blockIdx.x) / C::kCluster),
        step(2 * (static_cast<int>(gridDim.x) / C::kCluster - unit) - 1),
        other_step(2 * static_cast<int>(gridDim.x) / C::kCluster - step),
        column_pairs((a.n + C::kCols - 1) / C::kCols / C::kCluster) {
    load();
  }
  __device__ int row_tiles() const { return (pages + 1) / 2; }
  __device__ void load() {
    if (args.page_begin == nullptr) {
      pages = (args.rows + C::kPage - 1) / C::kPage;
    } else {
      first_page = __ldg(args.page_begin + expert);
      pages = min(__ldg(args.page_begin + expert + 1), args.places) - first_page;
    }
    pages = max(pages, 0);
    expert_units = row_tiles() * column_pairs + (kOneLeft ? (row_tiles() + 1) / 2 : 0);
  }
  __device__ bool next(uint32_t rank) {
    while (unit - first_unit >= expert_units) {
      first_unit += expert_units;
      if (++expert == args.num_experts) return false;
      load();
    }
    const int local = unit - first_unit;
    unit += step;
    const int swap = step;
    step = other_step;
    other_step = swap;
    share_rows = !kOneLeft || local < row_tiles() * column_pairs;
    if (!share_rows) {
      row_tile = (local - row_tiles() * column_pairs) * C::kCluster + static_cast<int>(rank);
      column_tile = column_pairs * C::kCluster;
      return true;
    }
    const int group = local / (C::kGroup * column_pairs);
    const int in_group = local - group * C::kGroup * column_pairs;
    const int group_rows = min(C::kGroup, row_tiles() - group * C::kGroup);
    const int column = in_group / group_rows;
    row_tile = group * C::kGroup + in_group - column * group_rows;
    column_tile = column * C::kCluster + static_cast<int>(rank);
    return true;
  }
  // 0 where the other block has the last rows of the last columns.
  __device__ int tile_pages() const { return max(0, min(2, pages - 2 * row_tile)); }
  __device__ int position() const { return first_page + 2 * row_tile; }
  __device__ int rows_left(int group) const {
    const int rows = args.counts == nullptr ? args.rows : __ldg(args.counts + expert);
    return rows - (row_tile * 2 + group) * C::kPage;
  }
  // The page of a position, or -1 where the pool could not give one: such rows are left out.
  __device__ static int page_of(const int* list, int num_pages, int position) {
    const int page = list == nullptr ? position : __ldg(list + position);
    return page < num_pages ? page : -1;
  }
  __device__ int a_page(int position) const {
    return max(page_of(args.a_page, args.a_pages, position), 0);
  }
  __device__ int c_page(int position) const {
    return page_of(args.a_page, args.a_pages, position) < 0
               ? -1
               : page_of(args.c_page, args.c_pages, position);
  }
};

struct Fp8GemmShared {
  using C = Fp8GemmConfig;
  uint8_t* a;       // [kStages][kRows][kDepth]
  uint8_t* w;       // [kStages][kCols][kDepth]
  float* scale;     // [kStages][kRows]
  uint8_t* out;     // [8 warps][16][128]
  uint64_t* full;   // [kStages]
  uint64_t* empty;  // [kStages]
  __device__ explicit Fp8GemmShared(uint8_t* raw) {
    a = raw;
    w = a + C::kStages * C::kBytesA;
    out = w + C::kStages * C::kBytesW;
    scale = reinterpret_cast<float*>(out + C::kBytesOut);
    full = reinterpret_cast<uint64_t*>(scale + C::kStages * C::kRows);
    empty = full + C::kStages;
  }
};

template <bool kOneLeft>
__device__ inline void fp8_gemm_copy(const Fp8GemmArgs& args, const CUtensorMap& map_a,
                                     const CUtensorMap& map_w, const Fp8GemmShared& s,
                                     uint32_t rank) {
  using C = Fp8GemmConfig;
  int stage = 0;
  uint32_t parity = 0;
  Fp8GemmTiles<kOneLeft> tiles(args);
  while (tiles.next(rank)) {
    const int pages = tiles.tile_pages();
    const int position = tiles.position();
    const int page0 = pages > 0 ? tiles.a_page(position) : 0;
    const int page1 = pages == 2 ? tiles.a_page(position + 1) : 0;
    const int my_page = rank == 0 ? page0 : page1;
    const uint32_t bytes = static_cast<uint32_t>(pages * (C::kPage * (C::kDepth + 4)) + C::kBytesW);
#pragma unroll 1
    for (int k = 0; k < args.k_blocks(); ++k) {
      barrier_wait(s.empty + stage, parity ^ 1);
      barrier_expect(s.full + stage, bytes);
      uint8_t* const a = s.a + stage * C::kBytesA;
      if (kOneLeft && !tiles.share_rows) {
        if (pages > 0) copy_box(a, &map_a, k * C::kDepth, page0 * C::kPage, s.full + stage);
        if (pages == 2)
          copy_box(a + C::kPage * C::kDepth, &map_a, k * C::kDepth, page1 * C::kPage,
                   s.full + stage);
      } else if (static_cast<int>(rank) < pages) {
        copy_box_multicast(a + rank * C::kPage * C::kDepth, &map_a, k * C::kDepth,
                           my_page * C::kPage, s.full + stage, 3);
      }
      copy_box3(s.w + stage * C::kBytesW, &map_w, k * C::kDepth, tiles.column_tile * C::kCols,
                tiles.expert, s.full + stage);
      const float* scale = args.scale_a + k * args.scale_stride;
      if (pages > 0) {
        copy_bytes(s.scale + stage * C::kRows, scale + page0 * C::kPage, C::kPage * 4,
                   s.full + stage);
      }
      if (pages == 2) {
        copy_bytes(s.scale + stage * C::kRows + C::kPage, scale + page1 * C::kPage, C::kPage * 4,
                   s.full + stage);
      }
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
  }
}

// Writes 64 rows x 128 columns of one warpgroup as bf16, 16 rows x 64 columns a warp at a time.
// c: the first row and column; cols: columns of it that exist, a multiple of 8.
__device__ inline void fp8_gemm_store(const float (&acc)[64], uint8_t* staging, __nv_bfloat16* c,
                                      int64_t row_stride, int cols, int rows_left, int warp,
                                      int lane) {
  const uint32_t base = smem_addr(staging);
  const int matrix = lane / 8, row = lane % 8 + (matrix & 1) * 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* d = acc + half * 32 + j * 8;
      const int unit = 2 * j + matrix / 2;
      store_matrices(base + row * 128 + ((unit ^ (row & 7)) << 4), pack_bf16(d[0], d[1]),
                     pack_bf16(d[2], d[3]), pack_bf16(d[4], d[5]), pack_bf16(d[6], d[7]));
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = i * 4 + lane / 8, unit = lane % 8;
      const int4 value =
          *reinterpret_cast<const int4*>(staging + r * 128 + ((unit ^ (r & 7)) << 4));
      if (warp * 16 + r < rows_left && half * 64 + unit * 8 < cols)
        *reinterpret_cast<int4*>(c + (warp * 16 + r) * row_stride + half * 64 + unit * 8) = value;
    }
    __syncwarp();
  }
}

// The same, added to the bf16 that is there, and rounded once. What is there is asked for first,
// all of it; sums go through shared memory 16 rows x 32 columns a warp at a time.
__device__ inline void fp8_gemm_add_to_rows(const float (&acc)[64], uint8_t* staging,
                                            __nv_bfloat16* c, int64_t row_stride, int cols,
                                            int rows_left, int warp, int lane) {
  const int unit = lane % 4;  // eight columns
  const auto at = [&](int quarter, int i) {
    return c + (warp * 16 + i * 8 + lane / 4) * row_stride + quarter * 32 + unit * 8;
  };
  const auto exists = [&](int quarter, int i) {
    return warp * 16 + i * 8 + lane / 4 < rows_left && quarter * 32 + unit * 8 < cols;
  };
#pragma unroll
  for (int two = 0; two < 4; two += 2) {
    int4 old[2][2];
#pragma unroll
    for (int q = 0; q < 2; ++q)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        old[q][i] = exists(two + q, i) ? *reinterpret_cast<const int4*>(at(two + q, i)) : int4{};
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const int quarter = two + q;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* d = acc + (quarter * 4 + j) * 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = half * 8 + lane / 4, sixteen = 2 * j + unit / 2;  // bytes of a row
          *reinterpret_cast<float2*>(staging + r * 128 + ((sixteen ^ (r & 7)) << 4) +
                                     unit % 2 * 8) = float2{d[half * 2], d[half * 2 + 1]};
        }
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = i * 8 + lane / 4;
        const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&old[q][i]);
        uint32_t words[4];
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const float4 sum = *reinterpret_cast<const float4*>(staging + r * 128 +
                                                              (((2 * unit + part) ^ (r & 7)) << 4));
          const float2 a = __bfloat1622float2(pairs[2 * part]);
          const float2 b = __bfloat1622float2(pairs[2 * part + 1]);
          words[2 * part] = pack_bf16(sum.x + a.x, sum.y + a.y);
          words[2 * part + 1] = pack_bf16(sum.z + b.x, sum.w + b.y);
        }
        if (exists(quarter, i))
          *reinterpret_cast<uint4*>(at(quarter, i)) = uint4{words[0], words[1], words[2], words[3]};
      }
      __syncwarp();
    }
  }
}

// The same for every other result: f32, or an odd number of columns.
__device__ inline void fp8_gemm_store_any(const Fp8GemmArgs& args, const float (&acc)[64],
                                          int64_t at, int cols, int rows_left, int warp, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * 16 + lane / 4 + half * 8;
    if (row >= rows_left) continue;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const int col = j * 8 + lane % 4 * 2;
      if (col >= cols) break;
      const int64_t to = at + row * args.c_row_stride + col;
      float2 value{acc[j * 4 + half * 2], acc[j * 4 + half * 2 + 1]};
      if (args.c_is_f32) {
        auto* const p = reinterpret_cast<float2*>(static_cast<float*>(args.c) + to);
        if (args.accumulate) value = {value.x + p->x, value.y + p->y};
        *p = value;
      } else {
        auto* const p = reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(args.c) + to);
        if (args.accumulate) {
          const float2 old = __bfloat1622float2(*p);
          value = {value.x + old.x, value.y + old.y};
        }
        *p = __floats2bfloat162_rn(value.x, value.y);
      }
    }
  }
}

// A product of 64 rows with 64 or 128 columns over a stage, begun.
template <int kWidth>
__device__ inline void fp8_gemm_begin(float (&partial)[kWidth / 2], uint64_t a, uint64_t w) {
  mma_fence();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kWidth == 128)
      mma_e4m3_n128(partial, advance(a, i * 32), advance(w, i * 32), i > 0);
    else
      mma_e4m3_n64(partial, advance(a, i * 32), advance(w, i * 32), i > 0);
  }
  mma_commit();
}

template <bool kShort>
__device__ inline void fp8_gemm_add(float& sum, float partial, float scale) {
  sum = __fmaf_rn(partial, scale, sum);
  if constexpr (kShort) sum = ops::short_sum(sum);
}

template <bool kShort, bool kOneLeft>
__device__ inline void fp8_gemm_multiply(const Fp8GemmArgs& args, const Fp8GemmShared& s,
                                         uint32_t rank, int group) {
  using C = Fp8GemmConfig;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  uint8_t* staging = s.out + (group * 4 + warp) * 2048;
  const int k_blocks = args.k_blocks();
  const int w_blocks = (args.n + C::kCols - 1) / C::kCols;
  const bool store_rows = !args.c_is_f32 && args.n % 8 == 0 && args.c_row_stride % 8 == 0 &&
                          args.c_page_stride % 8 == 0;
  int stage = 0;
  uint32_t parity = 0;
  Fp8GemmTiles<kOneLeft> tiles(args);
  bool more = tiles.next(rank);
  const auto scales_of_tile = [&] {
    return args.scale_w + tiles.expert * args.scale_w_batch_stride +
           min(tiles.column_tile, w_blocks - 1) * args.scale_w_row_stride;
  };
  // Lane l has the scales of w at 32 i + l of K: one load in 32 stages, a stage's by shuffle.
  const float* scale_w = args.scale_w;
  float lot = 0.0f, next_lot = 0.0f;
  if (more) {
    scale_w = scales_of_tile();
    next_lot = lane < k_blocks ? __ldg(scale_w + lane) : 0.0f;
  }
  while (more) {
    const bool works = group < tiles.tile_pages();
    const int page = works ? tiles.c_page(tiles.position() + group) : -1;
    const int left = tiles.rows_left(group);
    const int column = tiles.column_tile * C::kCols;
    float acc[2][64];
#pragma unroll
    for (int i = 0; i < 64; ++i) acc[0][i] = acc[1][i] = 0.0f;
    float row_scale[4];
    uint64_t a = 0, w = 0;
    // Waits for a stage and reads what its products need.
    const auto prepare = [&](int k) {
      if (k % 32 == 0) {
        lot = next_lot;
        next_lot = k + 32 + lane < k_blocks ? __ldg(scale_w + k + 32 + lane) : 0.0f;
      }
      const float block_scale = __shfl_sync(0xFFFFFFFFu, lot, k & 31);
      const int at = uniform(stage);
      a = descriptor_k(smem_addr(s.a) + at * C::kBytesA + group * C::kPage * C::kDepth);
      w = descriptor_k(smem_addr(s.w) + at * C::kBytesW);
      barrier_wait(s.full + stage, parity);
      const float* scale = s.scale + stage * C::kRows + group * C::kPage + warp * 16 + lane / 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) row_scale[i] = scale[(i / 2) * 64 + (i % 2) * 8] * block_scale;
    };
    const auto products = [&]<int kWidth>() {
      prepare(0);
      for (int k = 0; k < k_blocks; ++k) {
        float partial[kWidth / 2];
        fp8_gemm_begin<kWidth>(partial, a, w);
        mma_wait<0>();
        mma_touch(partial);
#pragma unroll
        for (int i = 0; i < kWidth / 2; ++i)
          fp8_gemm_add<kShort>(acc[0][i], partial[i], row_scale[(i / 2) % 2]);
        fp8_gemm_begin<kWidth>(partial, advance(a, 8192), w);
        // The next stage's overhead runs under these products.
        const float lo = row_scale[2], hi = row_scale[3];
        uint64_t* const empty = s.empty + stage;
        if (++stage == C::kStages) stage = 0, parity ^= 1;
        if (k + 1 < k_blocks) prepare(k + 1);
        mma_wait<0>();
        mma_touch(partial);
        if (lane < C::kCluster) barrier_arrive_at(empty, static_cast<uint32_t>(lane));
#pragma unroll
        for (int i = 0; i < kWidth / 2; ++i)
          fp8_gemm_add<kShort>(acc[1][i], partial[i], (i / 2) % 2 ? hi : lo);
      }
    };
    if (works) {
      if (kOneLeft && args.n - column <= 64)
        products.template operator()<64>();
      else
        products.template operator()<128>();
    } else {
      for (int k = 0; k < k_blocks; ++k) {
        barrier_wait(s.full + stage, parity);
        if (lane < C::kCluster) barrier_arrive_at(s.empty + stage, static_cast<uint32_t>(lane));
        if (++stage == C::kStages) stage = 0, parity ^= 1;
      }
    }
    more = tiles.next(rank);
    if (more) {
      scale_w = scales_of_tile();
      next_lot = lane < k_blocks ? __ldg(scale_w + lane) : 0.0f;
    }
    if (page < 0 || column >= args.n) continue;
    const int cols = min(args.n - column, C::kCols);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int64_t at = page * args.c_page_stride + part * 64 * args.c_row_stride + column;
      if (store_rows && args.accumulate)
        fp8_gemm_add_to_rows(acc[part], staging, static_cast<__nv_bfloat16*>(args.c) + at,
                             args.c_row_stride, cols, left - part * 64, warp, lane);
      else if (store_rows)
        fp8_gemm_store(acc[part], staging, static_cast<__nv_bfloat16*>(args.c) + at,
                       args.c_row_stride, cols, left - part * 64, warp, lane);
      else
        fp8_gemm_store_any(args, acc[part], at, cols, left - part * 64, warp, lane);
    }
  }
}

template <bool kShort, bool kOneLeft>
__global__ void __launch_bounds__(Fp8GemmConfig::kThreads, 1)
    fp8_gemm_kernel_sm90(const __grid_constant__ Fp8GemmArgs args,
                         const __grid_constant__ CUtensorMap map_a,
                         const __grid_constant__ CUtensorMap map_w) {
  using C = Fp8GemmConfig;
  extern __shared__ uint8_t raw[];
  const Fp8GemmShared s(raw + (1024 - smem_addr(raw) % 1024) % 1024);
  const uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) {
    prefetch_map(&map_a);
    prefetch_map(&map_w);
    for (int i = 0; i < C::kStages; ++i) {
      barrier_init(s.full + i, 1);
      barrier_init(s.empty + i, 8 * C::kCluster);
    }
    barrier_init_fence();
  }
  cluster_sync();
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int group = uniform(static_cast<int>(threadIdx.x) / 128);
  if (group == 0) {
    registers_shrink<40>();
    if (threadIdx.x == 0) fp8_gemm_copy<kOneLeft>(args, map_a, map_w, s, rank);
  } else {
    registers_grow<232>();
    fp8_gemm_multiply<kShort, kOneLeft>(args, s, rank, group - 1);
  }
  // A block may not leave while the other still writes or signals into its shared memory.
  cluster_sync();
}

}  // namespace hadal::cuda
