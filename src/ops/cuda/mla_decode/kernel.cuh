// Absorbed MLA decode: 64 rows of (token, head) against the pages of one split, two at a time.
//
// Warpgroup w of the two owns the scores of the pages of parity w and the output columns of half w.
// Page p: its owner forms S = Q K^T, continues the running maximum of page p - 1, and publishes
// P = exp(S - max); both add P V to their half. So the softmax of one warpgroup runs under the
// products of the other. P takes the place of the page's rope columns, dead once S is known.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/wgmma.cuh"
#include "ops/cuda/mla_decode/config.h"

namespace hadal::cuda {

struct MlaDecodeShared {
  using C = MlaDecodeConfig;
  uint8_t* q;          // [kChunks][kRows][128]
  uint8_t* pages;      // [2][kChunks][kPage][128]
  float* row_max;      // [2][kRows]   of the owner's latest page
  float* row_sum;      // [2][kRows]
  uint64_t* q_full;
  uint64_t* full;      // [2 pages][2 halves]; the rope columns count to the half of the non-owner
  uint64_t* empty;     // [2 pages][2 halves]
  uint64_t* published; // [2 pages]
  __device__ explicit MlaDecodeShared(uint8_t* raw) {
    q = raw;
    pages = q + C::kChunks * C::kChunkBytes;
    row_max = reinterpret_cast<float*>(pages + 2 * C::kChunks * C::kChunkBytes);
    row_sum = row_max + 2 * C::kRows;
    q_full = reinterpret_cast<uint64_t*>(row_sum + 2 * C::kRows);
    full = q_full + 1;
    empty = full + 4;
    published = empty + 4;
  }
  __device__ uint8_t* page(int buffer) const { return pages + buffer * C::kChunks * C::kChunkBytes; }
};

// What one block works on.
struct MlaDecodeWork {
  using C = MlaDecodeConfig;
  int seq, split, row0, rows;    // rows of the sequence's Q*H that this block has
  int length, num_splits, first_page, num_pages;
  __device__ explicit MlaDecodeWork(const MlaDecodeArgs& args) {
    seq = static_cast<int>(blockIdx.z);
    split = static_cast<int>(blockIdx.y);
    row0 = static_cast<int>(blockIdx.x) * C::kRows;
    rows = min(C::kRows, args.num_queries * args.num_heads - row0);
    length = __ldg(args.length + seq);
    const int total = (length + C::kPage - 1) / C::kPage;
    const int per_split =
        args.pages_per_split > 0 ? args.pages_per_split : mla_decode_pages_per_split(total);
    num_splits = (total + per_split - 1) / per_split;
    first_page = split * per_split;
    num_pages = min(per_split, total - first_page);
  }
};

template <int kCluster>
__device__ void mla_decode_copy(const MlaDecodeArgs& args, const MlaDecodeWork& work,
                                const CUtensorMap& map_q, const CUtensorMap& map_pages,
                                const MlaDecodeShared& s) {
  using C = MlaDecodeConfig;
  const int q_boxes = (work.rows + 15) / 16;
  barrier_expect(s.q_full, static_cast<uint32_t>(q_boxes * 16 * C::kChunks * 128));
  const int q_row = work.seq * args.num_queries * args.num_heads + work.row0;
#pragma unroll 1
  for (int c = 0; c < C::kChunks; ++c) {
    for (int b = 0; b < q_boxes; ++b) {
      copy_box(s.q + c * C::kChunkBytes + b * 2048, &map_q, c * 64, q_row + b * 16, s.q_full);
    }
  }
  const int* table = args.table + static_cast<int64_t>(work.seq) * args.table_stride + work.first_page;
  int next = __ldg(table);
  const uint32_t rank = kCluster > 1 ? cluster_rank() : 0;
#pragma unroll 1
  for (int p = 0; p < work.num_pages; ++p) {
    const int buffer = p & 1;
    const uint32_t parity = static_cast<uint32_t>(p >> 1) & 1;
    const int row = next * C::kPage;
    if (p + 1 < work.num_pages) next = __ldg(table + p + 1);
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const int half = buffer ^ i;
      const int bar = buffer * 2 + half;
      barrier_wait_cluster(s.empty + bar, parity ^ 1);
      barrier_expect(s.full + bar, static_cast<uint32_t>((4 + i) * C::kChunkBytes));
#pragma unroll 1
      for (int j = static_cast<int>(rank); j < 4 + i; j += kCluster) {
        const int c = j < 4 ? half * 4 + j : 8;
        uint8_t* dst = s.page(buffer) + c * C::kChunkBytes;
        if constexpr (kCluster > 1) {
          copy_box_multicast(dst, &map_pages, c * 64, row, s.full + bar, (1 << kCluster) - 1);
        } else {
          copy_box(dst, &map_pages, c * 64, row, s.full + bar);
        }
      }
    }
  }
}

// Zeroes the rows of a page past the context: 0 * garbage must not reach the output.
__device__ inline void mla_decode_clear_tail(uint8_t* page, int valid, int group_thread) {
  using C = MlaDecodeConfig;
  const int units = (C::kPage - valid) * 8;
  for (int i = group_thread; i < units * C::kChunks; i += 128) {
    const int c = i / units, u = i - c * units;
    *reinterpret_cast<int4*>(page + c * C::kChunkBytes + valid * 128 + u * 16) = int4{0, 0, 0, 0};
  }
}

__device__ __forceinline__ void mla_decode_rescale(float (&out)[128], float lo, float hi) {
  if (__any_sync(0xffffffff, lo != 1.0f || hi != 1.0f)) {
#pragma unroll
    for (int i = 0; i < 128; ++i) out[i] *= (i & 2) ? hi : lo;
  }
}

template <int kCluster, int kGroup>
__device__ void mla_decode_multiply(const MlaDecodeArgs& args, const MlaDecodeWork& work,
                                    const MlaDecodeShared& s) {
  using C = MlaDecodeConfig;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int warp = thread / 32, lane = thread % 32;
  const int my_row = warp * 16 + lane / 4;  // and + 8
  const float scale = args.scale * 1.4426950408889634f;
  // Last visible position of this thread's two rows.
  int limit[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = min((work.row0 + my_row + 8 * i) / args.num_heads, args.num_queries - 1);
    limit[i] = work.length - args.num_queries + token;
  }
  float out[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i] = 0.0f;
  float now[2] = {-1e30f, -1e30f};   // running maximum, in powers of two
  float own[2] = {-1e30f, -1e30f};   // the maximum that `sum` refers to
  float sum[2] = {0.0f, 0.0f};       // of this thread's columns of this kGroup's pages

  barrier_wait(s.q_full, 0);
  for (int pair = 0; pair * 2 < work.num_pages; ++pair) {
    const uint32_t parity = static_cast<uint32_t>(pair) & 1;
    const int pages = min(2, work.num_pages - pair * 2);
    uint32_t p[16];
    float first_max[2], second_max[2];
    if (kGroup < pages) {
      uint8_t* page = s.page(kGroup);
      const int begin = (work.first_page + pair * 2 + kGroup) * C::kPage;
      float score[32];
      barrier_wait(s.full + kGroup * 2 + kGroup, parity);
      const int valid = work.length - begin;
      if (valid < C::kPage) {
        barrier_wait(s.full + kGroup * 2 + (kGroup ^ 1), parity);
        mla_decode_clear_tail(page, valid, thread);
        async_proxy_fence();
        named_sync(1 + kGroup, 128);
      }
      const uint64_t q = descriptor_k(smem_addr(s.q));
      const uint64_t k = descriptor_k(smem_addr(page));
      mma_fence();
#pragma unroll
      for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = (kGroup * 4 + c) * (C::kChunkBytes >> 4) + i * 2;
          mma_bf16_n64(score, q + at, k + at, c + i > 0);
        }
      }
      mma_commit();
      barrier_wait(s.full + kGroup * 2 + (kGroup ^ 1), parity);
      mma_fence();
#pragma unroll
      for (int c = 0; c < 5; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int chunk = c < 4 ? (kGroup ^ 1) * 4 + c : 8;
          const int at = chunk * (C::kChunkBytes >> 4) + i * 2;
          mma_bf16_n64(score, q + at, k + at, 1);
        }
      }
      mma_commit();
      mma_wait<0>();
      mma_touch(score);

      if (begin + C::kPage > work.length - args.num_queries) {
#pragma unroll
        for (int i = 0; i < 32; ++i) {
          const int position = begin + (i / 4) * 8 + (lane % 4) * 2 + (i & 1);
          if (position > limit[(i & 2) / 2]) score[i] = -INFINITY;
        }
      }
      float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int i = 0; i < 32; ++i) top[(i & 2) / 2] = fmaxf(top[(i & 2) / 2], score[i]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffff, top[i], 1));
        top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffff, top[i], 2));
      }
      float before[2] = {now[0], now[1]};
      if (kGroup == 1) {
        barrier_wait(s.published + 0, parity);
#pragma unroll
        for (int i = 0; i < 2; ++i) before[i] = first_max[i] = s.row_max[my_row + 8 * i];
      }
      float here[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        here[i] = fmaxf(before[i], top[i] * scale);
        sum[i] *= exp2_fast(own[i] - here[i]);
        own[i] = here[i];
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        score[i] = exp2_fast(fmaf(score[i], scale, -here[(i & 2) / 2]));
        sum[(i & 2) / 2] += score[i];
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) p[i] = pack_bf16(score[2 * i], score[2 * i + 1]);
      // Every warp has read the rope columns (its products are done); P may replace them.
      named_sync(1 + kGroup, 128);
      const int matrix = lane / 8, row = warp * 16 + lane % 8 + (matrix & 1) * 8;
      const uint32_t base = smem_addr(page + 8 * C::kChunkBytes) + static_cast<uint32_t>(row) * 128;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t unit = static_cast<uint32_t>((2 * j + matrix / 2) ^ (row & 7));
        store_matrices(base + (unit << 4), p[4 * j], p[4 * j + 1], p[4 * j + 2], p[4 * j + 3]);
      }
      if (lane % 4 == 0) {
        s.row_max[kGroup * C::kRows + my_row] = here[0];
        s.row_max[kGroup * C::kRows + my_row + 8] = here[1];
      }
      async_proxy_fence();
      barrier_arrive(s.published + kGroup);
      if (kGroup == 0) {
        first_max[0] = here[0], first_max[1] = here[1];
      } else {
        second_max[0] = here[0], second_max[1] = here[1];
      }
    } else {
      barrier_wait(s.published + 0, parity);
#pragma unroll
      for (int i = 0; i < 2; ++i) first_max[i] = s.row_max[my_row + 8 * i];
    }

    // Page 0 of the pair, then page 1.
#pragma unroll
    for (int buffer = 0; buffer < 2; ++buffer) {
      if (buffer == 1) {
        if (pages < 2) break;
        if (kGroup == 0) {
          barrier_wait(s.published + 1, parity);
#pragma unroll
          for (int i = 0; i < 2; ++i) second_max[i] = s.row_max[C::kRows + my_row + 8 * i];
        }
      }
      const float lo = buffer == 0 ? first_max[0] : second_max[0];
      const float hi = buffer == 0 ? first_max[1] : second_max[1];
      mla_decode_rescale(out, exp2_fast(now[0] - lo), exp2_fast(now[1] - hi));
      now[0] = lo, now[1] = hi;
      const uint64_t v = descriptor_mn(
          smem_addr(s.page(buffer) + kGroup * 4 * C::kChunkBytes), C::kChunkBytes);
      mma_fence();
      if (buffer == kGroup) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t a[4] = {p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
          mma_bf16_n256_mn(out, a, v + i * (2048 >> 4), 1);
        }
      } else {
        const uint64_t a = descriptor_k(smem_addr(s.page(buffer) + 8 * C::kChunkBytes));
#pragma unroll
        for (int i = 0; i < 4; ++i) mma_bf16_n256_mn(out, a + i * 2, v + i * (2048 >> 4), 1);
      }
      mma_commit();
      mma_wait<0>();
      mma_touch(out);
      if (lane < kCluster) {
        uint64_t* bar = s.empty + buffer * 2 + kGroup;
        if constexpr (kCluster > 1) {
          barrier_arrive_at(bar, static_cast<uint32_t>(lane));
        } else {
          barrier_arrive(bar);
        }
      }
    }
  }

  // Join the two row sums at the final maximum, normalise, write.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] *= exp2_fast(own[i] - now[i]);
    sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 1);
    sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 2);
    if (lane % 4 == 0) s.row_sum[kGroup * C::kRows + my_row + 8 * i] = sum[i];
  }
  named_sync(3, 256);
  let_next_kernel_start();
  const int seq_rows = args.num_queries * args.num_heads;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = my_row + 8 * i;
    if (row >= work.rows) continue;
    const float total = s.row_sum[row] + s.row_sum[C::kRows + row];
    const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
    const int column = kGroup * 256 + (lane % 4) * 2;
    if (work.num_splits == 1) {
      const int64_t at = static_cast<int64_t>(work.seq) * seq_rows + work.row0 + row;
      uint32_t* dst = static_cast<uint32_t*>(args.out) + (at * C::kLatent + column) / 2;
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        dst[j * 4] = pack_bf16(out[4 * j + 2 * i] * inverse, out[4 * j + 2 * i + 1] * inverse);
      }
    } else {
      const int64_t at =
          (static_cast<int64_t>(work.seq) * args.max_splits + work.split) * seq_rows + work.row0 + row;
      float* dst = args.partial_out + at * C::kLatent + column;
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        *reinterpret_cast<float2*>(dst + j * 8) =
            float2{out[4 * j + 2 * i] * inverse, out[4 * j + 2 * i + 1] * inverse};
      }
      if (kGroup == 0 && lane % 4 == 0) {
        args.partial_lse[at] = total > 0.0f ? now[i] + log2f(total) : -INFINITY;
      }
    }
  }
}

template <int kCluster>
__global__ void __launch_bounds__(MlaDecodeConfig::kThreads, 1)
    mla_decode_kernel_sm90(const __grid_constant__ MlaDecodeArgs args,
                           const __grid_constant__ CUtensorMap map_q,
                           const __grid_constant__ CUtensorMap map_pages) {
  extern __shared__ uint8_t raw[];
  const MlaDecodeShared s(raw + (1024 - smem_addr(raw) % 1024) % 1024);
  const MlaDecodeWork work(args);
  if (work.num_pages <= 0) return;
  if (threadIdx.x == 0) {
    prefetch_map(&map_q);
    prefetch_map(&map_pages);
    barrier_init(s.q_full, 1);
    for (int i = 0; i < 4; ++i) {
      barrier_init(s.full + i, 1);
      barrier_init(s.empty + i, 4 * kCluster);
    }
    for (int i = 0; i < 2; ++i) barrier_init(s.published + i, 128);
    barrier_init_fence();
  }
  if constexpr (kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 0) {
    registers_shrink<40>();
    if (threadIdx.x == 0) mla_decode_copy<kCluster>(args, work, map_q, map_pages, s);
  } else if (group == 1) {
    registers_grow<232>();
    mla_decode_multiply<kCluster, 0>(args, work, s);
  } else {
    registers_grow<232>();
    mla_decode_multiply<kCluster, 1>(args, work, s);
  }
  if constexpr (kCluster > 1) cluster_sync();
}

// Merges the splits of one row, in split order: four sums over splits 0, 4, .. / 1, 5, .. / ..., then
// their sum. One block a row, four columns a thread.
__global__ void __launch_bounds__(512) mla_decode_merge_kernel(const MlaDecodeArgs args) {
  using C = MlaDecodeConfig;
  __shared__ float weight[512];
  __shared__ float4 sums[4][128];
  const int row = static_cast<int>(blockIdx.x), seq = static_cast<int>(blockIdx.y);
  const int rows = static_cast<int>(gridDim.x);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int pages = (__ldg(args.length + seq) + C::kPage - 1) / C::kPage;
  const int per_split =
      args.pages_per_split > 0 ? args.pages_per_split : mla_decode_pages_per_split(pages);
  const int splits = (pages + per_split - 1) / per_split;
  if (splits == 1) return;
  wait_for_previous_kernel();
  const int64_t first = static_cast<int64_t>(seq) * args.max_splits * rows + row;
  if (thread < 32) {
    float top = -INFINITY;
    for (int i = lane; i < splits; i += 32) {
      weight[i] = args.partial_lse[first + static_cast<int64_t>(i) * rows];
      top = fmaxf(top, weight[i]);
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, d));
    float total = 0.0f;
    for (int i = lane; i < splits; i += 32) {
      weight[i] = exp2f(weight[i] - top);
      total += weight[i];
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) total += __shfl_xor_sync(0xffffffff, total, d);
    for (int i = lane; i < splits; i += 32) weight[i] /= total;
  }
  __syncthreads();
  const int column = thread % 128, lot = thread / 128;
  const float4* src = reinterpret_cast<const float4*>(args.partial_out + first * C::kLatent) + column;
  const int64_t step = static_cast<int64_t>(rows) * (C::kLatent / 4);
  float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
  for (int i = lot; i < splits; i += 4) {
    const float4 value = src[i * step];
    const float w = weight[i];
    sum.x = fmaf(w, value.x, sum.x);
    sum.y = fmaf(w, value.y, sum.y);
    sum.z = fmaf(w, value.z, sum.z);
    sum.w = fmaf(w, value.w, sum.w);
  }
  sums[lot][column] = sum;
  __syncthreads();
  if (lot > 0) return;
  for (int i = 1; i < 4; ++i) {
    const float4 other = sums[i][column];
    sum.x += other.x, sum.y += other.y, sum.z += other.z, sum.w += other.w;
  }
  uint2* dst = reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(args.out) +
                                        (static_cast<int64_t>(seq) * rows + row) * C::kLatent);
  dst[column] = uint2{pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w)};
}

}  // namespace hadal::cuda
