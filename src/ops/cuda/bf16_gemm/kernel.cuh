// BF16 matrix products: copy engine, wgmma, f32 sums in registers; persistent.
//
// A warpgroup copies, two multiply; each of the two owns 64 of a tile's 128 rows.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/bf16_gemm/config.h"
#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/wgmma.cuh"

namespace hadal::cuda {

// Walks this block's share of the tiles; every role of a block walks the same list.
template <Bf16Work kWork, class C>
struct Bf16GemmTiles {
  const Bf16GemmArgs& args;
  int unit, row_tiles, col_tiles, units;
  int batch = 0, row = 0, col = 0;       // of c; batch is a head or an expert
  int a_page = 0, c_page = 0, rows = 0;  // of kPages: pages and rows in use
  int first_page = 0, expert_rows = 0;   // of kExpertRows

  __device__ explicit Bf16GemmTiles(const Bf16GemmArgs& a)
      : args(a), unit(static_cast<int>(blockIdx.x)) {
    col_tiles = (a.n + C::kCols - 1) / C::kCols;
    if constexpr (kWork == Bf16Work::kPages) {
      row_tiles = min(a.places, __ldg(a.page_begin + a.batches));
      units = row_tiles * col_tiles;
    } else {
      row_tiles = (a.m + C::kRows - 1) / C::kRows;
      units = row_tiles * col_tiles * a.batches;
    }
  }
  __device__ int expert_of(int position) const {
    int low = 0, high = args.batches;  // page_begin[low] <= position < page_begin[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (__ldg(args.page_begin + middle) <= position ? low : high) = middle;
    }
    return low;
  }
  __device__ static int page_at(const int* list, int position) {
    return list == nullptr ? position : __ldg(list + position);
  }
  __device__ bool next() {
    while (unit < units) {
      int local = unit;
      unit += static_cast<int>(gridDim.x);
      if constexpr (kWork != Bf16Work::kPages) {
        batch = local / (row_tiles * col_tiles);
        local -= batch * row_tiles * col_tiles;
      }
      const int group = local / (C::kGroup * col_tiles);
      const int in_group = local - group * C::kGroup * col_tiles;
      const int group_rows = min(C::kGroup, row_tiles - group * C::kGroup);
      const int col_tile = in_group / group_rows;
      const int row_tile = group * C::kGroup + in_group - col_tile * group_rows;
      col = col_tile * C::kCols;
      if constexpr (kWork == Bf16Work::kPages) {
        batch = expert_of(row_tile);
        a_page = page_at(args.a_page, row_tile);
        c_page = page_at(args.c_page, row_tile);
        rows = min(C::kRows, __ldg(args.counts + batch) -
                                 (row_tile - __ldg(args.page_begin + batch)) * C::kRows);
        row = 0;
        // A page that the pool could not give: its rows are left out.
        if (a_page < 0 || a_page >= args.a.batches || c_page < 0 || c_page >= args.c_pages)
          continue;
      } else {
        row = row_tile * C::kRows;
        rows = min(C::kRows, args.m - row);
      }
      if constexpr (kWork == Bf16Work::kExpertRows) {
        first_page = __ldg(args.page_begin + batch);
        expert_rows = min(__ldg(args.counts + batch), (args.places - first_page) * C::kRows);
        if (expert_rows <= 0) continue;
      }
      return true;
    }
    return false;
  }
  // Stages of K of this tile.
  __device__ int stages() const {
    int depth = kWork == Bf16Work::kExpertRows ? expert_rows : args.k;
    if (kWork == Bf16Work::kBatch && args.k_split > 0)
      depth = min(args.k_split, args.k - batch * args.k_split);
    return (depth + C::kDepth - 1) / C::kDepth;
  }
  // The matrix of a and b, and the first K, of this tile.
  __device__ int matrix() const {
    return kWork == Bf16Work::kBatch && args.k_split > 0 ? 0 : batch;
  }
  __device__ int first_depth() const {
    return kWork == Bf16Work::kBatch && args.k_split > 0 ? batch * args.k_split : 0;
  }
  // Of kExpertRows: pages of a and b that hold a stage, false if the pool could not give one.
  __device__ bool pages_of(int stage, int& a, int& b) const {
    const int position = first_page + stage * C::kDepth / C::kRows;
    a = page_at(args.a_page, position);
    b = page_at(args.b_page, position);
    return a >= 0 && a < args.a.batches && b >= 0 && b < args.b.batches;
  }
};

template <class C>
struct Bf16GemmShared {
  uint8_t *a, *b;  // [kStages] tiles
  uint64_t *full, *empty;
  __device__ explicit Bf16GemmShared(uint8_t* raw) {
    a = raw;
    b = a + C::kStages * C::kBytesA;
    full = reinterpret_cast<uint64_t*>(b + C::kStages * C::kBytesB);
    empty = full + C::kStages;
  }
};

// 64 columns x 64 rows: one swizzled tile of an operand whose rows are its depth.
inline constexpr int kBf16TileBytes = 64 * 128;

template <Bf16Layout kLayout, Bf16Work kWork, class C>
__device__ void bf16_gemm_copy(const Bf16GemmArgs& args, const CUtensorMap& map_a,
                               const CUtensorMap& map_b, const Bf16GemmShared<C>& s) {
  int stage = 0;
  uint32_t parity = 0;
  Bf16GemmTiles<kWork, C> tiles(args);
  while (tiles.next()) {
    const int stages = tiles.stages();
#pragma unroll 1
    for (int i = 0; i < stages; ++i) {
      int depth = tiles.first_depth() + i * C::kDepth;
      int batch_a = kWork == Bf16Work::kPages ? tiles.a_page : tiles.matrix();
      int batch_b = tiles.matrix();
      if constexpr (kWork == Bf16Work::kExpertRows) {
        if (!tiles.pages_of(i, batch_a, batch_b)) continue;
        depth %= C::kRows;
      }
      barrier_wait(s.empty + stage, parity ^ 1);
      uint64_t* const full = s.full + stage;
      barrier_expect(full, C::kBytesA + C::kBytesB);
      uint8_t* const a = s.a + stage * C::kBytesA;
      uint8_t* const b = s.b + stage * C::kBytesB;
      const int a_depth = args.k_repeat > 0 ? depth % args.k_repeat : depth;
      if constexpr (kLayout == Bf16Layout::kTn) {
        for (int t = 0; t < C::kRows / 64; ++t)
          copy_box3(a + t * kBf16TileBytes, &map_a, tiles.row + t * 64, depth, batch_a, full);
      } else {
        copy_box3(a, &map_a, a_depth, tiles.row, batch_a, full);
      }
      if constexpr (kLayout == Bf16Layout::kNt) {
        copy_box3(b, &map_b, depth, tiles.col, batch_b, full);
      } else {
        for (int t = 0; t < C::kCols / 64; ++t)
          copy_box3(b + t * kBf16TileBytes, &map_b, tiles.col + t * 64, depth, batch_b, full);
      }
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
  }
}

// Zeroes depth `rows` and on of a stage: what lies behind an expert's last row is anything.
template <class C>
__device__ void bf16_gemm_zero_tail(uint8_t* a, uint8_t* b, int rows) {
  const int thread = static_cast<int>(threadIdx.x) - 128;
  const int lines = C::kDepth - rows;
  constexpr int kTiles = (C::kRows + C::kCols) / 64;
  for (int i = thread; i < lines * kTiles * 8; i += 256) {
    const int tile = i / (lines * 8), line = rows + i % (lines * 8) / 8, unit = i % 8;
    uint8_t* const base = tile < C::kRows / 64 ? a + tile * kBf16TileBytes
                                               : b + (tile - C::kRows / 64) * kBf16TileBytes;
    *reinterpret_cast<int4*>(base + line * 128 + unit * 16) = int4{};
  }
  async_proxy_fence();
  named_sync(1, 256);
}

template <class C>
__device__ void bf16_gemm_store(const Bf16GemmArgs& args, const float (&acc)[C::kCols / 2],
                                int64_t at, int rows, int cols, int row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + half * 8;
    if (r >= rows) continue;
    const int64_t line = at + r * args.c_row_stride;
#pragma unroll
    for (int j = 0; j < C::kCols / 8; ++j) {
      const int col = j * 8 + lane % 4 * 2;
      if (col >= cols) break;
      float2 value{acc[j * 4 + half * 2], acc[j * 4 + half * 2 + 1]};
      if (args.c_is_f32) {
        auto* const to = reinterpret_cast<float2*>(static_cast<float*>(args.c) + line + col);
        if (args.accumulate)
          add_in_memory(reinterpret_cast<float*>(to), value);
        else
          *to = value;
      } else {
        auto* const to =
            reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(args.c) + line + col);
        if (args.accumulate) {
          const float2 old = __bfloat1622float2(*to);
          value.x += old.x;
          value.y += old.y;
        }
        *to = __floats2bfloat162_rn(value.x, value.y);
      }
    }
  }
}

template <Bf16Layout kLayout, Bf16Work kWork, class C>
__device__ void bf16_gemm_multiply(const Bf16GemmArgs& args, const Bf16GemmShared<C>& s,
                                   int group) {
  constexpr int kTransA = kLayout == Bf16Layout::kTn ? 1 : 0;
  constexpr int kTransB = kLayout == Bf16Layout::kNt ? 0 : 1;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int stage = 0;
  uint32_t parity = 0;
  Bf16GemmTiles<kWork, C> tiles(args);
  while (tiles.next()) {
    const int stages = tiles.stages();
    float acc[C::kCols / 2];
#pragma unroll
    for (float& value : acc) value = 0.0f;
    uint64_t* last = nullptr;  // whose products may still run
    for (int i = 0; i < stages; ++i) {
      if constexpr (kWork == Bf16Work::kExpertRows) {
        int a_page, b_page;
        if (!tiles.pages_of(i, a_page, b_page)) continue;
      }
      const int at = uniform(stage);
      barrier_wait(s.full + stage, parity);
      if constexpr (kWork == Bf16Work::kExpertRows) {
        const int rows = tiles.expert_rows - i * C::kDepth;
        if (rows < C::kDepth)
          bf16_gemm_zero_tail<C>(s.a + at * C::kBytesA, s.b + at * C::kBytesB, rows);
      }
      const uint32_t a_addr = smem_addr(s.a) + at * C::kBytesA + group * kBf16TileBytes;
      const uint32_t b_addr = smem_addr(s.b) + at * C::kBytesB;
      const uint64_t a = kTransA ? descriptor_mn(a_addr, kBf16TileBytes) : descriptor_k(a_addr);
      const uint64_t b = kTransB ? descriptor_mn(b_addr, kBf16TileBytes) : descriptor_k(b_addr);
      mma_fence();
#pragma unroll
      for (int k = 0; k < C::kDepth / 16; ++k) {
        mma_bf16<kTransA, kTransB>(acc, advance(a, k * (kTransA ? 2048 : 32)),
                                   advance(b, k * (kTransB ? 2048 : 32)));
      }
      mma_commit();
      mma_wait<1>();
      if (last != nullptr && threadIdx.x % 128 == 0) barrier_arrive(last);
      last = s.empty + stage;
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
    mma_wait<0>();
    mma_touch(acc);
    if (last != nullptr && threadIdx.x % 128 == 0) barrier_arrive(last);
    const int64_t batch = kWork == Bf16Work::kPages ? tiles.c_page : tiles.batch;
    const int64_t at = batch * args.c_batch_stride + tiles.row * args.c_row_stride + tiles.col;
    bf16_gemm_store<C>(args, acc, at, tiles.rows, args.n - tiles.col,
                       group * 64 + warp * 16 + lane / 4);
  }
}

template <Bf16Layout kLayout, Bf16Work kWork, int kCols>
__global__ void __launch_bounds__(Bf16GemmConfig<kCols>::kThreads, 1)
    bf16_gemm_kernel_sm90(const __grid_constant__ Bf16GemmArgs args,
                          const __grid_constant__ CUtensorMap map_a,
                          const __grid_constant__ CUtensorMap map_b) {
  using C = Bf16GemmConfig<kCols>;
  extern __shared__ uint8_t raw[];
  const Bf16GemmShared<C> s(raw + (1024 - smem_addr(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    prefetch_map(&map_a);
    prefetch_map(&map_b);
    for (int i = 0; i < C::kStages; ++i) {
      barrier_init(s.full + i, 1);
      barrier_init(s.empty + i, 2);
    }
    barrier_init_fence();
  }
  __syncthreads();
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int group = uniform(static_cast<int>(threadIdx.x) / 128);
  if (group == 0) {
    registers_shrink<40>();
    if (threadIdx.x == 0) bf16_gemm_copy<kLayout, kWork, C>(args, map_a, map_b, s);
  } else {
    registers_grow<232>();
    bf16_gemm_multiply<kLayout, kWork, C>(args, s, group - 1);
  }
}

}  // namespace hadal::cuda
