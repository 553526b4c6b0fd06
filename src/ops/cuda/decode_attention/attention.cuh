// The phases between the query and the attention output.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/decode_attention/cache.cuh"

namespace hadal::cuda {

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_addr(p)));
}
__device__ __forceinline__ void load_matrices_turned(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_addr(p)));
}
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// A pair of a row turned by its token's angle.
struct Turned {
  int first, second;
  float a, b;
  __device__ Turned(const DecodeAttentionArgs& args, int token, int pair,
                    const __nv_bfloat16* row) {
    constexpr int kPairs = DecodeC::kRope / 2;
    const bool interleaved = args.layout == ops::RopeLayout::kInterleaved;
    first = interleaved ? 2 * pair : pair;
    second = interleaved ? 2 * pair + 1 : pair + kPairs;
    const float* const table = args.rope + token * args.rope_stride;
    const float c = __ldg(table + pair), s = __ldg(table + kPairs + pair);
    const float x = fresh_bf16(row + first), y = fresh_bf16(row + second);
    a = x * c - y * s;
    b = x * s + y * c;
  }
  __device__ void store(__nv_bfloat16* to) const {
    to[first] = __float2bfloat16(a);
    to[second] = __float2bfloat16(b);
  }
};

// The token's latent, normed, and its key, turned, into the cache; the query's rope part turned.
template <CacheRows kFormat>
__device__ inline void decode_latent(const DecodeAttentionArgs& args,
                                     const ops::cuda::FaultSite& no_page, int token) {
  constexpr int kPairs = DecodeC::kRope / 2;
  const int thread = static_cast<int>(threadIdx.x);
  const __nv_bfloat16* const lat = args.kv_lat + token * DecodeC::kWidth;
  const int seq = decode_sequence(args, token), position = __ldg(args.positions + token);
  const int page = decode_page(args, seq, position / DecodeC::kPage);
  static_assert(DecodeC::kLatent == DecodeC::kThreads);
  const float value = fresh_bf16(lat + thread);
  const float inverse =
      rsqrtf(sum_of_block(value * value) / static_cast<float>(DecodeC::kLatent) + args.eps);
  if (page < 0) {
    if (thread == 0) no_page.raise(position, seq);
  } else {
    using Pages = DecodePages<kFormat>;
    uint8_t* const to = Pages::row(args, page, position % DecodeC::kPage);
    Pages::put_latent(to, __float2bfloat16(value * inverse * __ldg(args.kv_norm + thread)));
    if (thread < kPairs) Turned(args, token, thread, lat + DecodeC::kLatent).store(Pages::key(to));
  }
  const int head_width = args.nope + DecodeC::kRope;
  for (int i = thread; i < args.heads * kPairs; i += DecodeC::kThreads) {
    const int64_t row = static_cast<int64_t>(token) * args.heads + i / kPairs;
    Turned(args, token, i % kPairs, args.q + row * head_width + args.nope)
        .store(args.q_abs + row * DecodeC::kWidth + DecodeC::kLatent);
  }
}

// q_abs[t, h, 64 columns] = q[t, h, :Dn] times the key part of wkv_b. `sums` is shared memory of
// [kWarps][kRows][64].
template <GemvWeight kType, int kRows>
__device__ inline void decode_absorb(const DecodeAttentionArgs& args, int head, int column,
                                     float* sums) {
  using Load = GemvLoad<kType>;
  constexpr int kElements = Load::kElements, kColumns = 64, kLanes = kColumns / kElements;
  constexpr int kAtOnce = 32 / kLanes;  // rows of a warp
  const int warp = block_warp(), lane = block_lane();
  const int first_row = head * (args.nope + args.v), head_width = args.nope + DecodeC::kRope;
  float sum[kRows][kElements] = {};
#pragma unroll 2
  for (int n = warp * kAtOnce + lane / kLanes; n < args.nope; n += DecodeC::kWarps * kAtOnce) {
    const ExpertRow row = expert_row<Load::kBytes>(args.wkv_b, 0, first_row + n);
    const int k = column + lane % kLanes * kElements;
    float w[kElements];
    Load::unpack(__ldg(reinterpret_cast<const int4*>(row.data + k * Load::kBytes)), w);
    float scale = 1.0f;
    if constexpr (kType == GemvWeight::kE4M3) scale = __ldg(row.scale + k / 128);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      const float q = t < args.tokens
                          ? scale * fresh_bf16(args.q + (t * args.heads + head) * head_width + n)
                          : 0.0f;
#pragma unroll
      for (int i = 0; i < kElements; ++i) sum[t][i] = fmaf(q, w[i], sum[t][i]);
    }
  }
#pragma unroll
  for (int t = 0; t < kRows; ++t)
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
#pragma unroll
      for (int d = kLanes; d < 32; d *= 2) sum[t][i] += __shfl_xor_sync(0xffffffffu, sum[t][i], d);
      if (lane < kLanes) sums[(warp * kRows + t) * kColumns + lane * kElements + i] = sum[t][i];
    }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  const int t = thread / kColumns, c = thread % kColumns;
  if (t < args.tokens && t < kRows) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < DecodeC::kWarps; ++w) total += sums[(w * kRows + t) * kColumns + c];
    args.q_abs[(t * args.heads + head) * DecodeC::kWidth + column + c] = __float2bfloat16(total);
  }
  __syncthreads();
}

// How a token's context is cut.
struct DecodeCut {
  int length, pages, per_split, splits;
  __device__ DecodeCut(const DecodeAttentionArgs& args, int token) {
    length = __ldg(args.positions + token) + 1;
    pages = (length + DecodeC::kPage - 1) / DecodeC::kPage;
    per_split = (pages + args.max_splits - 1) / args.max_splits;
    splits = (pages + per_split - 1) / per_split;
  }
};

// kHeads heads of a token over one split of its context: a warp for eight tokens and half of the
// depth (scores), a head (softmax), 32 columns (values).
template <CacheRows kFormat>
__device__ inline void decode_attend(const DecodeAttentionArgs& args, int task, uint8_t* shared) {
  using C = DecodeC;
  const int split = task % args.max_splits, rest = task / args.max_splits;
  const int group = rest % args.head_groups(), token = rest / args.head_groups();
  const DecodeCut cut(args, token);
  if (split >= cut.splits) return;
  const int seq = decode_sequence(args, token);
  const int first_page = split * cut.per_split;
  const int num_pages = min(cut.per_split, cut.pages - first_page);
  const int thread = static_cast<int>(threadIdx.x), warp = block_warp(), lane = block_lane();
  const int head0 = group * C::kHeads, heads = min(C::kHeads, args.heads - head0);

  auto* const q = reinterpret_cast<__nv_bfloat16*>(shared);
  auto* const scores = reinterpret_cast<float*>(shared + C::kQueryBytes);
  auto* const probs = reinterpret_cast<__nv_bfloat16*>(shared + C::kQueryBytes + C::kScoreBytes);
  const DecodePages<kFormat> pages(shared + C::kQueryBytes + C::kScoreBytes + C::kProbBytes);
  __shared__ float rescale[C::kHeads];

  const auto bring_page = [&](int p) {
    const int page = max(decode_page(args, seq, first_page + p), 0);
    pages.bring(args, page, cut.length - (first_page + p) * C::kPage, p & 1);
  };
  for (int i = thread; i < C::kHeads * (C::kWidth / 8); i += C::kThreads) {
    const int r = i / (C::kWidth / 8), u = i % (C::kWidth / 8);
    const int64_t row = static_cast<int64_t>(token) * args.heads + head0 + min(r, heads - 1);
    bring_async(q + r * C::kStride + u * 8, args.q_abs + row * C::kWidth + u * 8, true);
  }
  bring_page(0);
  commit_async();
  if (num_pages > 1) bring_page(1);
  commit_async();

  const float scale = args.scale * 1.4426950408889634f;
  float top = -INFINITY, total = 0.0f;  // of the head that this warp has, in powers of two
  float out[4][4] = {};
  for (int p = 0; p < num_pages; ++p) {
    wait_async<1>();
    __syncthreads();
    const __nv_bfloat16* const page = pages.ready(p & 1);
    {
      constexpr int kHalf = C::kWidth / 2;
      const int half = warp / 8, tokens0 = warp % 8 * 8;
      float score[4] = {};
#pragma unroll
      for (int k = 0; k < kHalf; k += 32) {
        uint32_t b[4];
        load_matrices(b,
                      page + (tokens0 + lane % 8) * C::kStride + half * kHalf + k + lane / 8 * 8);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t a[4];
          load_matrices(a, q + lane % 16 * C::kStride + half * kHalf + k + i * 16 + lane / 16 * 8);
          mma_16x8x16(score, a, b[2 * i], b[2 * i + 1]);
        }
      }
      float* const to = scores + half * C::kHeads * C::kPage + tokens0 + lane % 4 * 2;
      *reinterpret_cast<float2*>(to + lane / 4 * C::kPage) = float2{score[0], score[1]};
      *reinterpret_cast<float2*>(to + (lane / 4 + 8) * C::kPage) = float2{score[2], score[3]};
    }
    __syncthreads();
    {
      const int valid = cut.length - (first_page + p) * C::kPage;
      const float* const of_head = scores + warp * C::kPage;
      float s[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = lane + 32 * i;
        s[i] = at < valid ? (of_head[at] + of_head[C::kHeads * C::kPage + at]) * scale : -INFINITY;
      }
      float best = fmaxf(s[0], s[1]);
#pragma unroll
      for (int d = 16; d > 0; d /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, d));
      best = fmaxf(best, top);
      const float keep = exp2_fast(top - best);
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float e = exp2_fast(s[i] - best);
        sum += e;
        probs[warp * C::kProbStride + lane + 32 * i] = __float2bfloat16(e);
      }
      total = total * keep + sum_of_warp(sum);
      top = best;
      if (lane == 0) rescale[warp] = keep;
    }
    __syncthreads();
    const float lo = rescale[lane / 4], hi = rescale[lane / 4 + 8];
#pragma unroll
    for (auto& tile : out) tile[0] *= lo, tile[1] *= lo, tile[2] *= hi, tile[3] *= hi;
#pragma unroll
    for (int k = 0; k < C::kPage; k += 16) {
      uint32_t a[4];
      load_matrices(a, probs + lane % 16 * C::kProbStride + k + lane / 16 * 8);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t b[4];
        load_matrices_turned(
            b, page + (k + lane % 16) * C::kStride + warp * 32 + i * 16 + lane / 16 * 8);
        mma_16x8x16(out[2 * i], a, b[0], b[1]);
        mma_16x8x16(out[2 * i + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();
    if (p + 2 < num_pages) bring_page(p + 2);
    commit_async();
  }
  wait_async<0>();

  float* const to = args.partial + static_cast<int64_t>(task) * C::kHeads * C::kLatent;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int column = warp * 32 + i * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(to + lane / 4 * C::kLatent + column) = float2{out[i][0], out[i][1]};
    *reinterpret_cast<float2*>(to + (lane / 4 + 8) * C::kLatent + column) =
        float2{out[i][2], out[i][3]};
  }
  if (lane == 0) args.partial_stat[task * C::kHeads + warp] = float2{top, total};
  __syncthreads();
}

// out[t, h, 16 columns] = the splits' results joined, times the value part of wkv_b. `rows` is
// shared memory of [kRows][R] bf16.
template <GemvWeight kType, int kRows>
__device__ inline void decode_values(const DecodeAttentionArgs& args, int head, int first,
                                     __nv_bfloat16* rows) {
  using C = DecodeC;
  __shared__ float share[C::kMaxSplits];
  const int thread = static_cast<int>(threadIdx.x), warp = block_warp(), lane = block_lane();
  for (int t = 0; t < args.tokens; ++t) {
    const DecodeCut cut(args, t);
    const int task = (t * args.head_groups() + head / C::kHeads) * args.max_splits;
    const int row = head % C::kHeads;
    if (warp == 0) {
      const auto stat = [&](int s) {
        return __ldcg(args.partial_stat + (task + s) * C::kHeads + row);
      };
      float top = -INFINITY, total = 0.0f;
      for (int s = lane; s < cut.splits; s += 32) top = fmaxf(top, stat(s).x);
#pragma unroll
      for (int d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
      for (int s = lane; s < cut.splits; s += 32) {
        const float2 v = stat(s);
        const float keep = exp2_fast(v.x - top);
        share[s] = keep;
        total += keep * v.y;
      }
      total = sum_of_warp(total);
      for (int s = lane; s < cut.splits; s += 32) share[s] /= total;
    }
    __syncthreads();
    const float* const from =
        args.partial + (static_cast<int64_t>(task) * C::kHeads + row) * C::kLatent + thread;
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < cut.splits; ++s)
      sum = fmaf(share[s], __ldcg(from + static_cast<int64_t>(s) * C::kHeads * C::kLatent), sum);
    rows[t * C::kLatent + thread] = __float2bfloat16(sum);
    __syncthreads();
  }
  const ExpertRow row[1] = {expert_row<GemvLoad<kType>::kBytes>(
      args.wkv_b, 0, head * (args.nope + args.v) + args.nope + first + warp)};
  float sum[kRows][1] = {};
  add_products<kType, kRows, 1>(row, rows, C::kLatent, 0, C::kLatent, sum);
  if (lane == 0)
#pragma unroll
    for (int t = 0; t < kRows; ++t)
      if (t < args.tokens)
        args.out[(t * args.heads + head) * args.v + first + warp] = __float2bfloat16(sum[t][0]);
  __syncthreads();
}

}  // namespace hadal::cuda
