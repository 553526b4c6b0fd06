// The same product for one expert of at most 128 rows, where reading w is the limit.
//
// Narrow column tiles, so that every SM reads a part of w; the blocks of a cluster share the rows
// of a, taking turns at copying them for all. The products of a few stages are issued at once and
// added in order: K order and roundings, so the bits, are those of kernel.cuh.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/wgmma.cuh"
#include "ops/cuda/fp8_gemm/config.h"

namespace hadal::cuda {

template <int kCols, int kBlocks>
struct Fp8GemmThin {
  static constexpr int kCluster = kBlocks;
  static constexpr int kStages = kCols == 64 ? 8 : 10;
  static constexpr int kAhead = kCols == 64 ? 2 : 4;  // stages whose products are issued at once
  static constexpr int kThreads = 384;  // a copy warpgroup, two matrix warpgroups of 64 rows
  static constexpr int kBoxRows = 64;   // rows of a that one copy brings
  static constexpr int kBytesA = 128 * 128;
  static constexpr int kBytesW = kCols * 128;
  static constexpr int kSharedBytes = 1024 + kStages * (kBytesA + kBytesW + 512 + 16);

  uint8_t* a;       // [kStages][128][128]
  uint8_t* w;       // [kStages][kCols][128]
  float* scale;     // [kStages][128]
  uint64_t* full;   // [kStages]
  uint64_t* empty;  // [kStages]
  __device__ explicit Fp8GemmThin(uint8_t* raw) {
    a = raw;
    w = a + kStages * kBytesA;
    scale = reinterpret_cast<float*>(w + kStages * kBytesW);
    full = reinterpret_cast<uint64_t*>(scale + kStages * 128);
    empty = full + kStages;
  }
};

template <int kCols, int kBlocks>
__device__ inline void fp8_gemm_thin_copy(const Fp8GemmArgs& args, const CUtensorMap& map_a,
                                          const CUtensorMap& map_w,
                                          const Fp8GemmThin<kCols, kBlocks>& s, int rows, int rank,
                                          int first_group, int groups) {
  using C = Fp8GemmThin<kCols, kBlocks>;
  const int used = rows > 64 ? 128 : 64;
  const uint32_t bytes = static_cast<uint32_t>(used * 132 + C::kBytesW);
  constexpr uint16_t kAll = (1 << C::kCluster) - 1;
  int stage = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int g = first_group; g < groups; g += static_cast<int>(gridDim.x) / C::kCluster) {
    const int column = (g * C::kCluster + rank) * kCols;
#pragma unroll 1
    for (int k = 0; k < args.k / 128; ++k) {
      barrier_wait(s.empty + stage, parity ^ 1);
      barrier_expect(s.full + stage, bytes);
      copy_box(s.w + stage * C::kBytesW, &map_w, k * 128, column, s.full + stage);
      if (k % C::kCluster == rank) {
        uint8_t* const a = s.a + stage * C::kBytesA;
        copy_box_multicast(a, &map_a, k * 128, 0, s.full + stage, kAll);
        if (rows > 64) {
          copy_box_multicast(a + C::kBytesA / 2, &map_a, k * 128, 64, s.full + stage, kAll);
        }
        copy_bytes_multicast(s.scale + stage * 128, args.scale_a + k * args.scale_stride,
                             static_cast<uint32_t>(used * 4), s.full + stage, kAll);
      }
      if (++stage == C::kStages) stage = 0, parity ^= 1;
    }
  }
}

template <int kCols, int kBlocks>
__device__ inline void fp8_gemm_thin_multiply(const Fp8GemmArgs& args,
                                              const Fp8GemmThin<kCols, kBlocks>& s, int rows,
                                              int rank, int first_group, int groups,
                                              int warpgroup) {
  using C = Fp8GemmThin<kCols, kBlocks>;
  constexpr int kAcc = kCols / 2;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int my_row = warpgroup * 64 + warp * 16 + lane / 4;  // and + 8
  const int k_blocks = args.k / 128;
  // Each barrier of a stage counts both warpgroups: one that works alone arrives for both.
  const int arrivals = rows > 64 ? C::kCluster : 2 * C::kCluster;
  int stage = 0, stage_done = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int g = first_group; g < groups; g += static_cast<int>(gridDim.x) / C::kCluster) {
    const int column = (g * C::kCluster + rank) * kCols;
    const float* scale_w = args.scale_w + min(column, args.n - 1) / 128 * args.scale_w_row_stride;
    float lot = 0.0f, next_lot = lane < k_blocks ? __ldg(scale_w + lane) : 0.0f;
    float acc[kAcc];
#pragma unroll
    for (int i = 0; i < kAcc; ++i) acc[i] = 0.0f;
    // kCount stages from k on: all products issued, then each sum added as it comes.
    const auto run = [&]<int kCount>(int k, std::integral_constant<int, kCount>) {
      float partial[kCount][kAcc], row_scale[kCount][2];
      const auto issue = [&](int j, float(&sum)[kAcc], float(&scales)[2]) {
        if ((k + j) % 32 == 0) {
          lot = next_lot;
          next_lot = k + j + 32 + lane < k_blocks ? __ldg(scale_w + k + j + 32 + lane) : 0.0f;
        }
        const float block_scale = __shfl_sync(0xFFFFFFFFu, lot, (k + j) & 31);
        const int at = uniform(stage);
        const uint64_t a = descriptor_k(smem_addr(s.a) + at * C::kBytesA + warpgroup * 8192);
        const uint64_t w = descriptor_k(smem_addr(s.w) + at * C::kBytesW);
        barrier_wait(s.full + stage, parity);
        const float* scale = s.scale + stage * 128 + my_row;
        scales[0] = scale[0] * block_scale;
        scales[1] = scale[8] * block_scale;
        mma_fence();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (kCols == 64) {
            mma_e4m3_n64(sum, advance(a, i * 32), advance(w, i * 32), i > 0);
          } else {
            mma_e4m3_n32(sum, advance(a, i * 32), advance(w, i * 32), i > 0);
          }
        }
        mma_commit();
        if (++stage == C::kStages) stage = 0, parity ^= 1;
      };
      const auto add = [&](float(&sum)[kAcc], const float(&scales)[2]) {
        mma_touch(sum);
        if (lane < arrivals) {
          barrier_arrive_at(s.empty + stage_done, static_cast<uint32_t>(lane % C::kCluster));
        }
        if (++stage_done == C::kStages) stage_done = 0;
#pragma unroll
        for (int i = 0; i < kAcc; ++i) acc[i] += sum[i] * scales[(i / 2) % 2];
      };
#pragma unroll
      for (int j = 0; j < kCount; ++j) issue(j, partial[j], row_scale[j]);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (kCount - 1 - j == 3) mma_wait<3>();
        if (kCount - 1 - j == 2) mma_wait<2>();
        if (kCount - 1 - j == 1) mma_wait<1>();
        if (kCount - 1 - j == 0) mma_wait<0>();
        add(partial[j], row_scale[j]);
      }
    };
    int k = 0;
#pragma unroll 1
    for (; k + C::kAhead <= k_blocks; k += C::kAhead) {
      run(k, std::integral_constant<int, C::kAhead>{});
    }
#pragma unroll 1
    for (; k < k_blocks; ++k) run(k, std::integral_constant<int, 1>{});
    if (column >= args.n) continue;
    __nv_bfloat16* c = static_cast<__nv_bfloat16*>(args.c) + column + lane % 4 * 8;
#pragma unroll
    for (int half = 0; half < kCols / 32; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* d = acc + half * 16 + j * 4 + i * 2;
          v[j] = pack_bf16(d[0], d[1]);
        }
        quad_transpose(v, lane);
        const int row = my_row + 8 * i;
        if (row < rows) {
          *reinterpret_cast<uint4*>(c + row * args.c_row_stride + half * 32) =
              uint4{v[0], v[1], v[2], v[3]};
        }
      }
    }
  }
}

template <int kCols, int kBlocks>
__global__ void __launch_bounds__(Fp8GemmThin<kCols, kBlocks>::kThreads, 1)
    fp8_gemm_thin_kernel_sm90(const __grid_constant__ Fp8GemmArgs args,
                              const __grid_constant__ CUtensorMap map_a,
                              const __grid_constant__ CUtensorMap map_w) {
  using C = Fp8GemmThin<kCols, kBlocks>;
  extern __shared__ uint8_t raw[];
  const C s(raw + (1024 - smem_addr(raw) % 1024) % 1024);
  const int rank = static_cast<int>(cluster_rank());
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
  const int rows = __ldg(args.counts);
  const int group = static_cast<int>(blockIdx.x) / C::kCluster;
  const int groups = (args.n + kCols * C::kCluster - 1) / (kCols * C::kCluster);
  const int warpgroup = uniform(static_cast<int>(threadIdx.x) / 128);
  if (warpgroup == 0) {
    if (threadIdx.x == 0 && rows > 0) {
      fp8_gemm_thin_copy(args, map_a, map_w, s, rows, rank, group, groups);
    }
  } else if ((warpgroup - 1) * 64 < rows) {
    fp8_gemm_thin_multiply(args, s, rows, rank, group, groups, warpgroup - 1);
  }
  // A block may not leave while the others still write or signal into its shared memory.
  cluster_sync();
}

}  // namespace hadal::cuda
