// Absorbed MLA decode: 64 rows of (token, head) against the pages of one split, two at a time.
//
// Warpgroup w of the two owns the pages of parity w and the output columns of half w. The owner of
// page p forms S = Q K^T, continues the running maximum of page p - 1 and publishes P; both add P V
// to their half at once, since the page's buffer is what the next load waits for. Warpgroup 1 does
// so under its own softmax. P takes the place of the page's rope columns, dead once S is known.
// Blocks are persistent: the copies of the next tile run under the end of this one. The third
// warpgroup brings the pages: one thread by the copy engine where rows are bf16 (mla_decode_copy),
// all of its threads where they are FP8 (widen.cuh).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp16.h>

#include "ops/cuda/detail/wgmma.cuh"
#include "ops/cuda/mla_decode/widen.cuh"

namespace hadal::cuda {

template <int kCluster>
__device__ void mla_decode_copy(const MlaDecodeArgs& args, const CUtensorMap& map_q,
                                const CUtensorMap& map_pages, const MlaDecodeShared& s) {
  using C = MlaDecodeConfig;
  MlaDecodeTiles<kCluster> tile(args);
  const int box_rows = mla_decode_q_box_rows(args);
  uint32_t q_parity = 0, uses0 = 0, uses1 = 0;
#pragma unroll 1
  while (tile.next()) {
    const int* table =
        args.table + static_cast<int64_t>(tile.seq) * args.table_stride + tile.first_page;
    int row = __ldg(table) * C::kPage;
    const int q_boxes = tile.q_boxes(box_rows), q_row = tile.q_row();
    barrier_wait(s.q_empty, q_parity ^ 1);
    barrier_expect(s.q_full, static_cast<uint32_t>(q_boxes * box_rows * C::kChunks * 128));
    q_parity ^= 1;
#pragma unroll 1
    for (int i = 0; i < C::kChunks * q_boxes; ++i) {
      const int c = i / q_boxes, b = i - c * q_boxes;
      copy_box(s.q + c * C::kChunkBytes + b * box_rows * 128, &map_q, c * 64, q_row + b * box_rows,
               s.q_full);
    }
#pragma unroll 1
    for (int p = 0; p < tile.num_pages; ++p) {
      const int next = p + 1 < tile.num_pages ? __ldg(table + p + 1) * C::kPage : 0;
      const int buffer = p & 1;
      const uint32_t parity = (buffer == 0 ? uses0 : uses1) & 1;
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        const int half = buffer ^ i;
        const int bar = buffer * 2 + half;
        barrier_wait(s.empty + bar, parity ^ 1);
        barrier_expect(s.full + bar, static_cast<uint32_t>((4 + i) * C::kChunkBytes));
#pragma unroll 1
        for (int j = tile.rank; j < 4 + i; j += kCluster) {
          const int c = j < 4 ? half * 4 + j : 8;
          uint8_t* dst = s.page(buffer) + c * C::kChunkBytes;
          if constexpr (kCluster > 1) {
            copy_box_multicast(dst, &map_pages, c * 64, row, s.full + bar, (1 << kCluster) - 1);
          } else {
            copy_box(dst, &map_pages, c * 64, row, s.full + bar);
          }
        }
      }
      if (buffer == 0) {
        ++uses0;
      } else {
        ++uses1;
      }
      row = next;
    }
  }
}

// What the format of the rows changes beside who brings them: registers of a thread of the
// warpgroup that brings pages and of those that multiply, and arrivals on each of `full`.
template <CacheRows kFormat>
struct MlaDecodeRoles;
template <>
struct MlaDecodeRoles<CacheRows::kBF16> {
  static constexpr int kBringRegisters = 40, kMultiplyRegisters = 232;
  __device__ static uint32_t arrivals(int) { return 1; }
};
template <>
struct MlaDecodeRoles<CacheRows::kFp8> {
  static constexpr int kBringRegisters = 88, kMultiplyRegisters = 208;
  // The four warps that widen; and the copy of the keys, in the half of the non-owner.
  __device__ static uint32_t arrivals(int bar) { return bar == 1 || bar == 2 ? 5 : 4; }
};

// Zeroes the latent rows of a page past the context: 0 * garbage must not reach the output.
__device__ inline void mla_decode_clear_tail(uint8_t* page, int valid, int group_thread) {
  using C = MlaDecodeConfig;
  const int units = (C::kPage - valid) * 8;
  for (int i = group_thread; i < units * 8; i += 128) {
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

// Issues the products of kCount 64-column chunks, from chunk `first` on. The addresses are hidden
// from the compiler: hoisted out of the loops, the descriptors of all steps would take 70
// registers.
template <int kCount>
__device__ __forceinline__ void mla_decode_scores(float (&score)[32], uint32_t q, uint32_t k,
                                                  int first, int accumulate) {
  using C = MlaDecodeConfig;
  asm volatile("" : "+r"(q), "+r"(k));
  const uint64_t q_base = descriptor_k(q), k_base = descriptor_k(k);
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int chunk = c < 4 ? first + c : 8;
      const uint32_t at = static_cast<uint32_t>(chunk * C::kChunkBytes + i * 32);
      mma_bf16_n64(score, advance(q_base, at), advance(k_base, at), accumulate || c + i > 0);
    }
  }
}

template <int kCluster>
__device__ __forceinline__ void mla_decode_release(uint64_t* bar, int lane) {
  if (lane < kCluster) {
    if constexpr (kCluster > 1) {
      barrier_arrive_at(bar, static_cast<uint32_t>(lane));
    } else {
      barrier_arrive(bar);
    }
  }
}

// What is needed of a tile once it is computed.
struct MlaDecodeDone {
  int first_row, seq_rows, first_query, split, per_split, row0, rows;
  template <int kCluster>
  __device__ explicit MlaDecodeDone(const MlaDecodeTiles<kCluster>& tile)
      : first_row(tile.first_row),
        seq_rows(tile.seq_rows()),
        first_query(tile.first_query()),
        split(tile.split),
        per_split(tile.per_split),
        row0(tile.row0),
        rows(tile.rows()) {}
};

// Joins the two row sums, normalises, writes the rows of one warpgroup's half.
template <int kGroup>
__device__ inline void mla_decode_store(const MlaDecodeArgs& args, const MlaDecodeShared& s,
                                        const MlaDecodeDone& tile, uint32_t tile_parity,
                                        float (&out)[128], const float (&sum)[2],
                                        const float (&top)[2]) {
  using C = MlaDecodeConfig;
  const int warp = static_cast<int>(threadIdx.x) % 128 / 32,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int my_row = warp * 16 + lane / 4;
  float* row_sum = s.row_sum + tile_parity * 2 * C::kRows;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float total = sum[i];
    total += __shfl_xor_sync(0xffffffff, total, 1);
    total += __shfl_xor_sync(0xffffffff, total, 2);
    if (lane % 4 == 0) row_sum[kGroup * C::kRows + my_row + 8 * i] = total;
  }
  named_sync(3, 256);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = my_row + 8 * i;
    const float total = row_sum[row] + row_sum[C::kRows + row];
    const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
    const bool direct = mla_decode_splits(args, min(tile.row0 + row, tile.seq_rows - 1),
                                          tile.first_query, tile.per_split) == 1;
    // Another split's copy of a row that needs one split only: nobody reads it.
    const bool wanted = row < tile.rows && !(direct && tile.split > 0);
    const int64_t first_row = tile.first_row;
    const int64_t at = direct ? first_row + tile.row0 + row
                              : first_row * args.max_splits + int64_t{tile.split} * tile.seq_rows +
                                    tile.row0 + row;
    uint4* dst = static_cast<uint4*>(direct ? args.out : args.partial_out) +
                 (at * C::kLatent + kGroup * 256) / 8 + lane % 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      uint32_t v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float lo = out[16 * j + 4 * k + 2 * i] * inverse,
                    hi = out[16 * j + 4 * k + 2 * i + 1] * inverse;
        v[k] = direct ? pack_bf16(lo, hi) : pack_f16(lo, hi);
      }
      quad_transpose(v, lane);
      if (wanted) dst[j * 4] = uint4{v[0], v[1], v[2], v[3]};
    }
    if (!direct && kGroup == 0 && lane % 4 == 0 && row < tile.rows) {
      args.partial_lse[at] = total > 0.0f ? top[i] + log2f(total) : -INFINITY;
    }
  }
}

template <int kCluster, int kGroup, CacheRows kFormat>
__device__ void mla_decode_multiply(const MlaDecodeArgs& args, const MlaDecodeShared& s) {
  using C = MlaDecodeConfig;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int warp = thread / 32, lane = thread % 32;
  const int my_row = warp * 16 + lane / 4;  // and + 8
  const float scale = args.scale * 1.4426950408889634f;
  uint8_t* const own_page = s.page(kGroup);
  const uint32_t q = smem_addr(s.q), k = smem_addr(own_page);
  const uint64_t own_v =
      descriptor_mn(smem_addr(own_page + kGroup * 4 * C::kChunkBytes), C::kChunkBytes);
  const uint64_t other_v =
      descriptor_mn(smem_addr(s.page(kGroup ^ 1) + kGroup * 4 * C::kChunkBytes), C::kChunkBytes);
  const uint64_t other_p = descriptor_k(smem_addr(s.page(kGroup ^ 1) + 8 * C::kChunkBytes));
  uint64_t* const full_first = s.full + kGroup * 2 + kGroup;         // own half of the own page
  uint64_t* const full_second = s.full + kGroup * 2 + (kGroup ^ 1);  // the rest of it
  uint64_t* const own_empty = s.empty + kGroup * 2 + kGroup;
  uint64_t* const other_empty = s.empty + (kGroup ^ 1) * 2 + kGroup;
  const uint32_t p_row = static_cast<uint32_t>(warp * 16 + lane % 8 + (lane / 8 & 1) * 8);
  const uint32_t p_base = smem_addr(own_page + 8 * C::kChunkBytes) + p_row * 128;
  // Parities: of the own page's loads, of the other's published pages, of the tile.
  uint32_t own_uses = 0, other_uses = 0, tile_parity = 0;

  MlaDecodeTiles<kCluster> tile(args);
  bool more = tile.next();
  while (more) {
    const int pages = tile.num_pages, first_page = tile.first_page, length = tile.length;
    const int first_query = tile.first_query();
    int limit[2];  // last visible position of this thread's two rows
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = min((tile.row0 + my_row + 8 * i) / args.num_heads, tile.num_queries - 1);
      limit[i] = first_query + token;
    }
    float out[128], score[32];
#pragma unroll
    for (int i = 0; i < 128; ++i) out[i] = 0.0f;
    float now[2] = {-1e30f, -1e30f};  // running maximum, in powers of two
    float own[2] = {-1e30f, -1e30f};  // the maximum that `sum` refers to
    float sum[2] = {0.0f, 0.0f};      // of this thread's columns of the own pages

    const auto scores_first = [&] {
      barrier_wait(full_first, own_uses & 1);
      mma_fence();
      mla_decode_scores<4>(score, q, k, kGroup * 4, 0);
      mma_commit();
    };
    const auto scores_second = [&](int p) {
      barrier_wait(full_second, own_uses & 1);
      mma_fence();
      mla_decode_scores<5>(score, q, k, (kGroup ^ 1) * 4, 1);
      mma_commit();
      mma_wait<0>();
      ++own_uses;
      if (p + 2 >= pages && lane == 0) barrier_arrive(s.q_empty);
    };
    // Issues the products of the other's page.
    const auto other_issue = [&] {
      barrier_wait(s.published + (kGroup ^ 1), other_uses & 1);
      ++other_uses;
      float top[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) top[i] = s.row_max[(kGroup ^ 1) * C::kRows + my_row + 8 * i];
      mla_decode_rescale(out, exp2_fast(now[0] - top[0]), exp2_fast(now[1] - top[1]));
      now[0] = top[0], now[1] = top[1];
      mma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mma_bf16_n256_mn(out, advance(other_p, i * 32), advance(other_v, i * 2048), 1);
      }
      mma_commit();
    };
    const auto finish = [&](uint64_t* empty) {
      mma_wait<0>();
      mma_touch(out);
      mla_decode_release<kCluster>(empty, lane);
    };
    uint32_t prob[16];
    float here[2];
    // From the scores of the own page p: `here`, `prob`, both published.
    const auto softmax = [&](int p) {
      mma_touch(score);
      const int begin = (first_page + p) * C::kPage;
      if (begin + C::kPage > first_query) {
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
        here[i] = fmaxf(now[i], top[i] * scale);
        sum[i] *= exp2_fast(own[i] - here[i]);
        own[i] = here[i];
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        score[i] = exp2_fast(fmaf(score[i], scale, -here[(i & 2) / 2]));
        sum[(i & 2) / 2] += score[i];
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) prob[i] = pack_bf16(score[2 * i], score[2 * i + 1]);
      if (kFormat == CacheRows::kBF16 && begin + C::kPage > length)
        mla_decode_clear_tail(own_page, length - begin, thread);
      async_proxy_fence();
      // Every warp has read the rope columns (its products are done); P may replace them.
      named_sync(1 + kGroup, 128);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t unit = static_cast<uint32_t>(2 * j + lane / 16) ^ (p_row & 7);
        store_matrices(p_base + (unit << 4), prob[4 * j], prob[4 * j + 1], prob[4 * j + 2],
                       prob[4 * j + 3]);
      }
      if (lane % 4 == 0) {
        s.row_max[kGroup * C::kRows + my_row] = here[0];
        s.row_max[kGroup * C::kRows + my_row + 8] = here[1];
      }
      async_proxy_fence();
      __syncwarp();
      if (lane == 0) barrier_arrive(s.published + kGroup);
    };
    const auto own_page_products = [&] {
      mla_decode_rescale(out, exp2_fast(now[0] - here[0]), exp2_fast(now[1] - here[1]));
      now[0] = here[0], now[1] = here[1];
      mma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t a[4] = {prob[4 * i], prob[4 * i + 1], prob[4 * i + 2], prob[4 * i + 3]};
        mma_bf16_n256_mn(out, a, advance(own_v, i * 2048), 1);
      }
      mma_commit();
      finish(own_empty);
    };

    barrier_wait(s.q_full, tile_parity);
    if (kGroup < pages) {
      scores_first();
      scores_second(kGroup);
    } else if (lane == 0) {
      barrier_arrive(s.q_empty);
    }
    for (int p = 0; p < pages; p += 2) {
      if constexpr (kGroup == 0) {
        softmax(p);
        own_page_products();
        if (p + 1 < pages) {
          other_issue();
          finish(other_empty);
        }
      } else {
        other_issue();
        if (p + 1 < pages) {
          softmax(p + 1);
          finish(other_empty);
          own_page_products();
        } else {
          finish(other_empty);
        }
      }
      if (p + 2 + kGroup < pages) {
        scores_first();
        scores_second(p + 2 + kGroup);
      }
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) sum[i] *= exp2_fast(own[i] - now[i]);
    const MlaDecodeDone done(tile);
    more = tile.next();
    if (!more) let_next_kernel_start();
    mla_decode_store<kGroup>(args, s, done, tile_parity, out, sum, now);
    tile_parity ^= 1;
  }
}

template <int kCluster, CacheRows kFormat>
__global__ void __launch_bounds__(MlaDecodeConfig::kThreads, 1)
    mla_decode_kernel_sm90(const __grid_constant__ MlaDecodeArgs args,
                           const __grid_constant__ CUtensorMap map_q,
                           const __grid_constant__ CUtensorMap map_pages) {
  using Roles = MlaDecodeRoles<kFormat>;
  extern __shared__ uint8_t raw[];
  const MlaDecodeShared s(raw + (1024 - smem_addr(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    prefetch_map(&map_q);
    prefetch_map(&map_pages);
    barrier_init(s.q_full, 1);
    barrier_init(s.q_empty, 8);
    for (int i = 0; i < 4; ++i) {
      barrier_init(s.full + i, Roles::arrivals(i));
      barrier_init(s.empty + i, 4 * kCluster);
    }
    for (int i = 0; i < 2; ++i) barrier_init(s.published + i, 4);
    barrier_init_fence();
  }
  if constexpr (kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  wait_for_previous_kernel();
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 0) {
    registers_shrink<Roles::kBringRegisters>();
    if constexpr (kFormat == CacheRows::kBF16) {
      if (threadIdx.x == 0) mla_decode_copy<kCluster>(args, map_q, map_pages, s);
    } else {
      static_assert(kCluster == 1);
      mla_decode_widen(args, map_q, map_pages, s);
    }
  } else if (group == 1) {
    registers_grow<Roles::kMultiplyRegisters>();
    mla_decode_multiply<kCluster, 0, kFormat>(args, s);
  } else {
    registers_grow<Roles::kMultiplyRegisters>();
    mla_decode_multiply<kCluster, 1, kFormat>(args, s);
  }
  if constexpr (kCluster > 1) cluster_sync();
}

// Where the tiles of each sequence begin, in groups of a cluster's. One warp.
template <int kCluster>
__global__ void __launch_bounds__(32) mla_decode_tiles_kernel(const MlaDecodeArgs args) {
  using C = MlaDecodeConfig;
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x);
  int before = 0;
  if (lane == 0) args.first_tile[0] = 0;
  for (int seq0 = 0; seq0 < args.num_seqs; seq0 += 32) {
    const int seq = seq0 + lane;
    int tiles = 0;
    if (seq < args.num_seqs) {
      const int queries = mla_decode_queries(args, seq);
      if (queries > 0) {
        const int pages = (mla_decode_length(args, seq) + C::kPage - 1) / C::kPage;
        const int per_split = mla_decode_per_split(args, pages);
        tiles = MlaDecodeTiles<kCluster>::row_groups(args, queries) *
                ((pages + per_split - 1) / per_split);
      }
    }
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(0xffffffff, tiles, d);
      if (lane >= d) tiles += other;
    }
    if (seq < args.num_seqs) args.first_tile[seq + 1] = before + tiles;
    before += __shfl_sync(0xffffffff, tiles, 31);
  }
}

// Merges the splits of one row: four sums over splits 0, 4, .. / 1, 5, .. / ..., then their sum.
// One block a row, eight columns a thread.
__global__ void __launch_bounds__(256) mla_decode_merge_kernel(const MlaDecodeArgs args) {
  using C = MlaDecodeConfig;
  __shared__ float weight[MlaDecodeConfig::kMaxSplits];
  __shared__ float sums[3][64][8];
  const int token = static_cast<int>(blockIdx.x) / args.num_heads;
  const int seq = args.num_queries > 0 ? token / args.num_queries
                                       : mla_decode_seq_of(args.offsets, args.num_seqs, token);
  const int64_t first_row = static_cast<int64_t>(__ldg(args.offsets + seq)) * args.num_heads;
  const int row = static_cast<int>(blockIdx.x - first_row);
  const int queries = mla_decode_queries(args, seq), rows = queries * args.num_heads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int length = mla_decode_length(args, seq);
  const int per_split = mla_decode_per_split(args, (length + C::kPage - 1) / C::kPage);
  const int splits = mla_decode_splits(args, row, length - queries, per_split);
  // NOTE: wait before any return: who comes after this kernel relies on it to outlast the decode.
  wait_for_previous_kernel();
  if (splits == 1) return;
  const int64_t first = first_row * args.max_splits + row;
  const int column = thread % 64, lot = thread / 64;
  const uint4* src =
      static_cast<const uint4*>(args.partial_out) + first * (C::kLatent / 8) + column;
  const int64_t step = static_cast<int64_t>(rows) * (C::kLatent / 8);
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
  float sum[8] = {};
#pragma unroll 4
  for (int i = lot; i < splits; i += 4) {
    const uint4 value = src[i * step];
    const float w = weight[i];
    const uint32_t parts[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&parts[j]));
      sum[2 * j] = fmaf(w, two.x, sum[2 * j]);
      sum[2 * j + 1] = fmaf(w, two.y, sum[2 * j + 1]);
    }
  }
  if (lot > 0) {
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[lot - 1][column][j] = sum[j];
  }
  __syncthreads();
  if (lot > 0) return;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] += sums[i][column][j];
  }
  uint4* dst = static_cast<uint4*>(args.out) + (first_row + row) * (C::kLatent / 8);
  dst[column] = uint4{pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]),
                      pack_bf16(sum[4], sum[5]), pack_bf16(sum[6], sum[7])};
}

}  // namespace hadal::cuda
