// The phases between the query and the attention output.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/decode_attention/cache.cuh"
#include "ops/cuda/detail/mma.cuh"

namespace hadal::cuda {

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

// q_abs[t, h, 64 columns] = q[t, h, :Dn] times the key part of wkv_b.
template <GemvWeight kType, int kRows>
class DecodeAbsorb {
  using Load = GemvLoad<kType>;
  static constexpr int kElements = Load::kElements, kColumns = 64, kLanes = kColumns / kElements;
  static constexpr int kAtOnce = 32 / kLanes;  // rows of a warp
  static constexpr int kStep = DecodeC::kWarps * kAtOnce, kAhead = 2;

 public:
  static constexpr int kChunks = DecodeC::kLatent / kColumns;  // tasks of a head

  __device__ DecodeAbsorb(const DecodeAttentionArgs& args, int task) : args_(args) { find(task); }
  // Takes a task, and asks for its first weights.
  __device__ void find(int task) {
    head_ = task / kChunks;
    column_ = task % kChunks * kColumns;
    load(first());
  }
  // `sums` is shared memory of [kWarps][kRows][64]. Ends with a barrier.
  __device__ void run(float* sums) {
    const int warp = block_warp(), lane = block_lane();
    const int head_width = args_.nope + DecodeC::kRope;
    float sum[kRows][kElements] = {};
    for (int n0 = first(); n0 < args_.nope; n0 += kAhead * kStep) {
      if (n0 != first()) load(n0);
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int n = n0 + j * kStep;
        if (n >= args_.nope) break;
        float w[kElements];
        Load::unpack(raw_[j], w);
        float scale = 1.0f;
        if constexpr (kType == GemvWeight::kE4M3) scale = scale_[j];
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
          const float q =
              t < args_.tokens
                  ? scale * fresh_bf16(args_.q + (t * args_.heads + head_) * head_width + n)
                  : 0.0f;
#pragma unroll
          for (int i = 0; i < kElements; ++i) sum[t][i] = fmaf(q, w[i], sum[t][i]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kRows; ++t)
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
#pragma unroll
        for (int d = kLanes; d < 32; d *= 2)
          sum[t][i] += __shfl_xor_sync(0xffffffffu, sum[t][i], d);
        if (lane < kLanes) sums[(warp * kRows + t) * kColumns + lane * kElements + i] = sum[t][i];
      }
    __syncthreads();
    const int thread = static_cast<int>(threadIdx.x);
    const int t = thread / kColumns, c = thread % kColumns;
    if (t < args_.tokens && t < kRows) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < DecodeC::kWarps; ++w) total += sums[(w * kRows + t) * kColumns + c];
      args_.q_abs[(t * args_.heads + head_) * DecodeC::kWidth + column_ + c] =
          __float2bfloat16(total);
    }
    __syncthreads();
  }

 private:
  __device__ static int first() { return block_warp() * kAtOnce + block_lane() / kLanes; }
  // Rows n0 and n0 + kStep of the head's part.
  __device__ void load(int n0) {
    const int first_row = head_ * (args_.nope + args_.v);
    const int k = column_ + block_lane() % kLanes * kElements;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int n = n0 + j * kStep;
      if (n >= args_.nope || head_ >= args_.heads) break;
      const ExpertRow row = expert_row<Load::kBytes>(args_.wkv_b, 0, first_row + n);
      raw_[j] = __ldg(reinterpret_cast<const int4*>(row.data + k * Load::kBytes));
      if constexpr (kType == GemvWeight::kE4M3) scale_[j] = __ldg(row.scale + k / 128);
    }
  }

  const DecodeAttentionArgs& args_;
  int head_, column_;
  int4 raw_[kAhead];
  float scale_[kAhead];
};

// How a token's context is cut. A page more in each split takes as long as twenty more splits to
// join, whence the square root.
struct DecodeCut {
  int length, pages, per_split, splits;
  __device__ DecodeCut(const DecodeAttentionArgs& args, int token) {
    length = __ldg(args.positions + token) + 1;
    pages = (length + DecodeC::kPage - 1) / DecodeC::kPage;
    per_split = max((pages + args.max_splits - 1) / args.max_splits,
                    static_cast<int>(sqrtf(static_cast<float>(pages) / 20.0f) + 0.5f));
    per_split = max(per_split, 1);
    splits = (pages + per_split - 1) / per_split;
  }
};

// kHeads heads of a token over one split of its context.
struct DecodeSplit {
  int task, token, group, seq;
  int length;  // of the context
  int first_page, num_pages = 0;
  int fresh;  // position from which on this launch writes

  __device__ DecodeSplit(const DecodeAttentionArgs& args, int number) : task(number) {
    const int split = task % args.max_splits, rest = task / args.max_splits;
    group = rest % args.head_groups();
    token = rest / args.head_groups();
    if (token >= args.tokens) return;
    const DecodeCut cut(args, token);
    seq = decode_sequence(args, token);
    length = cut.length;
    fresh = __ldg(args.positions + __ldg(args.offsets + seq));
    first_page = split * cut.per_split;
    num_pages = split < cut.splits ? min(cut.per_split, cut.pages - first_page) : 0;
  }
  __device__ int page(const DecodeAttentionArgs& args, int p) const {
    return max(decode_page(args, seq, first_page + p), 0);
  }
  // Rows of page p that are before `position`.
  __device__ int rows_before(int position, int p) const {
    return min(max(position - (first_page + p) * DecodeC::kPage, 0), DecodeC::kPage);
  }
};

// Brings what earlier steps wrote of page p; two pages are on their way.
template <CacheRows kFormat>
__device__ __forceinline__ void bring_page(const DecodeAttentionArgs& args,
                                           const DecodeSplit& split,
                                           const DecodePages<kFormat>& pages, uint64_t* full,
                                           int p) {
  if (p < split.num_pages)
    pages.bring(args, split.page(args, p), split.rows_before(split.fresh, p), p & 1,
                full + (p & 1));
}

template <CacheRows kFormat>
__device__ __forceinline__ void bring_first_pages(const DecodeAttentionArgs& args,
                                                  const DecodeSplit& split,
                                                  const DecodePages<kFormat>& pages,
                                                  uint64_t* full) {
  bring_page(args, split, pages, full, 0);
  bring_page(args, split, pages, full, 1);
}

// The queries of a split's heads into shared memory; places past the last head hold it again.
__device__ __forceinline__ void bring_queries(const DecodeAttentionArgs& args,
                                              const DecodeSplit& split, __nv_bfloat16* to) {
  using C = DecodeC;
  constexpr int kPieces = C::kWidth / 8, kTotal = C::kHeads * kPieces;
  constexpr int kEach = (kTotal + C::kThreads - 1) / C::kThreads;
  const auto piece = [](int j) { return static_cast<int>(threadIdx.x) + j * C::kThreads; };
  int4 raw[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int r = min(piece(j), kTotal - 1) / kPieces, u = min(piece(j), kTotal - 1) % kPieces;
    const int64_t row = static_cast<int64_t>(split.token) * args.heads +
                        min(split.group * C::kHeads + r, args.heads - 1);
    raw[j] = fresh_16(args.q_abs + row * C::kWidth + u * 8);
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j)
    if (piece(j) < kTotal)
      *reinterpret_cast<int4*>(to + piece(j) / kPieces * C::kStride + piece(j) % kPieces * 8) =
          raw[j];
}

// A warp for sixteen tokens and a share of the depth (scores), a head (softmax), 32 columns
// (values). The split's first two pages are on their way; `parity` is that of `full` for each.
template <CacheRows kFormat>
__device__ inline void decode_attend(const DecodeAttentionArgs& args, const DecodeSplit& split,
                                     const DecodePages<kFormat>& pages, uint64_t* full,
                                     uint32_t (&parity)[2], uint8_t* shared) {
  using C = DecodeC;
  const int num_pages = split.num_pages;
  if (num_pages == 0) return;
  const int warp = block_warp(), lane = block_lane();

  auto* const q = reinterpret_cast<__nv_bfloat16*>(shared);
  auto* const scores = reinterpret_cast<float*>(shared + C::kQueryBytes);
  auto* const probs = reinterpret_cast<__nv_bfloat16*>(shared + C::kQueryBytes + C::kScoreBytes);
  __shared__ float rescale[C::kHeads];

  bring_queries(args, split, q);
  const float scale = args.scale * 1.4426950408889634f;
  float top = -INFINITY, total = 0.0f;  // of the head that this warp has, in powers of two
  float out[4][4] = {};
  for (int p = 0; p < num_pages; ++p) {
    const int old_rows = split.rows_before(split.fresh, p);
    if (old_rows < C::kPage)
      pages.finish(args, split.page(args, p), old_rows, split.rows_before(split.length, p), p & 1);
    barrier_wait(full + (p & 1), parity[p & 1]);
    parity[p & 1] ^= 1;
    __syncthreads();
    const __nv_bfloat16* const page = pages.ready(p & 1);
    {
      constexpr int kGroups = C::kPage / 16, kShare = C::kWidth / C::kDepthShares;
      static_assert(kGroups * C::kDepthShares == C::kWarps && kShare % 16 == 0);
      const int share = warp / kGroups, tokens0 = warp % kGroups * 16;
      const __nv_bfloat16* const q_at = q + lane % 16 * C::kStride + share * kShare + lane / 16 * 8;
      const __nv_bfloat16* const k_at = page + (tokens0 + lane / 16 * 8 + lane % 8) * C::kStride +
                                        share * kShare + lane / 8 % 2 * 8;
      float score[2][4] = {};
#pragma unroll
      for (int k = 0; k < kShare; k += 16) {
        uint32_t a[4], b[4];
        load_matrices(a, q_at + k);
        load_matrices(b, k_at + k);
        mma_bf16(score[0], a, b[0], b[1]);
        mma_bf16(score[1], a, b[2], b[3]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* const to = scores + (share * C::kHeads + lane / 4) * C::kScoreStride + tokens0 +
                          i * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(to) = float2{score[i][0], score[i][1]};
        *reinterpret_cast<float2*>(to + 8 * C::kScoreStride) = float2{score[i][2], score[i][3]};
      }
    }
    __syncthreads();
    {
      const int valid = split.length - (split.first_page + p) * C::kPage;
      const float* const of_head = scores + warp * C::kScoreStride;
      float s[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = lane + 32 * i;
        float sum = 0.0f;
#pragma unroll
        for (int d = 0; d < C::kDepthShares; ++d)
          sum += of_head[d * C::kHeads * C::kScoreStride + at];
        s[i] = at < valid ? sum * scale : -INFINITY;
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
        mma_bf16(out[2 * i], a, b[0], b[1]);
        mma_bf16(out[2 * i + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();
    bring_page(args, split, pages, full, p + 2);
  }

  // By way of shared memory, where queries were, so that each warp stores whole lines.
  auto* const staged = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float* const at = staged + lane / 4 * C::kOutStride + warp * 32 + i * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(at) = float2{out[i][0], out[i][1]};
    *reinterpret_cast<float2*>(at + 8 * C::kOutStride) = float2{out[i][2], out[i][3]};
  }
  __syncthreads();
  const int heads = min(C::kHeads, args.heads - split.group * C::kHeads);
  auto* const to = reinterpret_cast<float4*>(args.partial + static_cast<int64_t>(split.task) *
                                                                C::kHeads * C::kLatent);
  constexpr int kPieces = C::kLatent / 4;
  for (int i = static_cast<int>(threadIdx.x); i < heads * kPieces; i += C::kThreads)
    to[i] =
        *reinterpret_cast<const float4*>(staged + i / kPieces * C::kOutStride + i % kPieces * 4);
  if (lane == 0) args.partial_stat[split.task * C::kHeads + warp] = float2{top, total};
}

// The joined results of `splits` splits of a token's head: column threadIdx.x.
__device__ inline float decode_joined(const DecodeAttentionArgs& args, int token, int head,
                                      int splits) {
  using C = DecodeC;
  constexpr int kAhead = 16;
  const int task = (token * args.head_groups() + head / C::kHeads) * args.max_splits;
  const int64_t row = static_cast<int64_t>(task) * C::kHeads + head % C::kHeads;
  const float* const from = args.partial + row * C::kLatent + threadIdx.x;
  const float2* const stat = args.partial_stat + row;
  const int lane = block_lane();
  float top = -INFINITY, total = 0.0f, sum = 0.0f;
  for (int s0 = 0; s0 < splits; s0 += 32) {
    const int count = min(32, splits - s0);
    float part[kAhead];
    const auto load = [&](int j0) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (j0 + j < count)
          part[j] = __ldcg(from + static_cast<int64_t>(s0 + j0 + j) * C::kHeads * C::kLatent);
    };
    const float2 mine =
        lane < count ? __ldcg(stat + (s0 + lane) * C::kHeads) : float2{-INFINITY, 0.0f};
    load(0);
    float best = mine.x;
#pragma unroll
    for (int d = 16; d > 0; d /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, d));
    best = fmaxf(best, top);
    const float keep = exp2_fast(top - best), share = exp2_fast(mine.x - best);
    total = total * keep + sum_of_warp(share * mine.y);
    sum *= keep;
    top = best;
    for (int j0 = 0; j0 < count; j0 += kAhead) {
      if (j0 > 0) load(j0);
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const float share_j = __shfl_sync(0xffffffffu, share, (j0 + j) & 31);
        if (j0 + j < count) sum = fmaf(share_j, part[j], sum);
      }
    }
  }
  return sum / total;
}

// out[t, h, 16 columns] = the joined results times the value part of wkv_b.
template <GemvWeight kType, int kRows>
class DecodeValues {
  static constexpr int kShare = 4, kLatent = DecodeC::kLatent;  // warps that share R
  using Tile = TileProduct<kType, kRows, 1>;
  static_assert(kLatent / kShare <= Tile::kLot);

 public:
  __device__ DecodeValues(const DecodeAttentionArgs& args, int task) : args_(args) {
#pragma unroll
    for (int t = 0; t < kRows; ++t) splits_[t] = t < args.tokens ? DecodeCut(args, t).splits : 0;
    find(task);
  }
  // Takes a task, and asks for its first weights.
  __device__ void find(int task) {
    const int tiles = args_.v / 16;  // tasks of a head
    head_ = task / tiles;
    column_ = task % tiles * 16;
    if (head_ >= args_.heads || block_warp() >= kShare) return;
    constexpr int kBytes = GemvLoad<kType>::kBytes;
    const int row = head_ * (args_.nope + args_.v) + args_.nope + column_ + block_lane() / 4;
    product_ = Tile(
        {{expert_row<kBytes>(args_.wkv_b, 0, row), expert_row<kBytes>(args_.wkv_b, 0, row + 8)}},
        begin(), begin() + kLatent / kShare);
  }
  // `rows` is shared memory for kRows rows of R. Ends with a barrier.
  __device__ void run(__nv_bfloat16* rows, float* units, TileSums<kRows>& sums) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      if (t >= args_.tokens) break;
      const float value = decode_joined(args_, t, head_, splits_[t]);
      const TileScale<kType> scale(kType == GemvWeight::kE4M3 ? largest_of_block(fabsf(value))
                                                              : 0.0f);
      const float rounded = __bfloat162float(__float2bfloat16(value));
      reinterpret_cast<uint16_t*>(rows)[t * row_stride_of(kLatent) + thread] =
          static_cast<uint16_t>(scale.pack(rounded, 0.0f));
      if (thread == 0) units[t] = scale.unit;
    }
    __syncthreads();
    if (block_warp() < kShare) {
      float share[4];
      product_.run(reinterpret_cast<const uint8_t*>(rows + begin()), row_stride_of(kLatent) * 2,
                   share);
      put_share<kRows>(sums, share);
    }
    __syncthreads();
    const int row = thread / kRows, token = thread % kRows;
    if (row < 16 && token < args_.tokens) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < kShare; ++w) total += sums[w][row][token];
      args_.out[(token * args_.heads + head_) * args_.v + column_ + row] =
          __float2bfloat16(total * units[token]);
    }
    __syncthreads();
  }

 private:
  __device__ static int begin() { return block_warp() * (kLatent / kShare); }

  const DecodeAttentionArgs& args_;
  int head_, column_;
  int splits_[kRows];
  Tile product_;
};

}  // namespace hadal::cuda
