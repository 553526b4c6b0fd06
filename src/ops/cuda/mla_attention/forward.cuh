// Forward of MLA attention: 128 queries a block, 128 keys a step, from the diagonal to key 0.
//
// Each of two matrix warpgroups owns 64 queries, which are loaded for it alone, so that one may be
// a task ahead. The scores of the next step and P V of this one are issued together; the softmax of
// the next step runs under P V, and under the other warpgroup's products.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/mla_attention/tile.cuh"

namespace hadal::cuda {

template <class D>
struct MlaForwardShared {
  using C = MlaAttentionConfig;
  static constexpr int kStages = C::kForwardStages;
  static constexpr uint32_t kQChunk = C::kRows * 128, kKeyChunk = C::kForwardKeys * 128;
  static constexpr uint32_t kQBytes = D::kKeyChunks * kQChunk;
  static constexpr uint32_t kKBytes = D::kKeyChunks * kKeyChunk;
  static constexpr uint32_t kVBytes = D::kValueChunks * kKeyChunk;
  static constexpr int kBytes =
      static_cast<int>(kQBytes + kStages * (kKBytes + kVBytes)) + 2 * 32 + 18 * 8;
  uint8_t *q, *k, *v;
  uint64_t *q_full, *q_empty, *k_full, *k_empty, *v_full, *v_empty;
  MlaTaskRing tasks;

  __device__ explicit MlaForwardShared(uint8_t* raw) {
    q = raw;
    k = q + kQBytes;
    v = k + kStages * kKBytes;
    tasks.task = reinterpret_cast<MlaTask*>(v + kStages * kVBytes);
    q_full = reinterpret_cast<uint64_t*>(tasks.task + 2);
    q_empty = q_full + 2;
    k_full = q_empty + 2;
    k_empty = k_full + kStages;
    v_full = k_empty + kStages;
    v_empty = v_full + kStages;
    tasks.full = v_empty + kStages;
    tasks.empty = tasks.full + 2;
  }
  __device__ void init() const {
    for (int i = 0; i < 2; ++i) {
      barrier_init(q_full + i, 1);
      barrier_init(q_empty + i, MlaTaskRing::kMatrixWarps / 2);
    }
    for (int i = 0; i < kStages; ++i) {
      barrier_init(k_full + i, 1);
      barrier_init(v_full + i, 1);
      barrier_init(k_empty + i, MlaTaskRing::kMatrixWarps);
      barrier_init(v_empty + i, MlaTaskRing::kMatrixWarps);
    }
    tasks.init();
    barrier_init_fence();
  }
};

template <class D>
__device__ void mla_forward_copy(const MlaForwardArgs& args, const CUtensorMap& map_q,
                                 const CUtensorMap& map_kv, const CUtensorMap& map_k_pe,
                                 const MlaForwardShared<D>& s) {
  using C = MlaAttentionConfig;
  using S = MlaForwardShared<D>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  MlaTaskWalk walk(args.call, MlaOrder::kLastBlocks, args.call.counters);
  MlaRingAt<S::kStages> at;
  for (int number = 0;; ++number) {
    const MlaTask task = walk.next();
    s.tasks.put(number, task, lane);
    if (task.head < 0) return;
    if (lane == 0) {
      const int64_t q_column = task.head * args.q.head_stride,
                    k_column = task.head * args.kv.head_stride;
      const auto copy_q = [&](int half) {
        barrier_wait(s.q_empty + half, (number & 1) ^ 1);
        barrier_expect(s.q_full + half, S::kQBytes / 2);
        for (int c = 0; c < D::kKeyChunks; ++c) {
          const int64_t in_head =
              c < D::kNopeChunks ? c * 64 : D::kNope + (c - D::kNopeChunks) * 64;
          copy_box(s.q + c * S::kQChunk + half * 64 * 128, &map_q,
                   static_cast<int>(q_column + in_head),
                   task.begin + task.block * C::kRows + half * 64, s.q_full + half);
        }
      };
      copy_q(0);
#pragma unroll 1
      for (int n = task.block; n >= 0; --n) {
        const int key = task.begin + n * C::kForwardKeys;
        barrier_wait(s.k_empty + at.stage, at.parity ^ 1);
        barrier_expect(s.k_full + at.stage, S::kKBytes);
        const MlaCopy<C::kForwardKeys> to_k{s.k + at.stage * S::kKBytes, s.k_full + at.stage,
                                            C::kForwardKeys};
        for (int c = 0; c < D::kNopeChunks; ++c) to_k.chunk(c, &map_kv, k_column + c * 64, key);
        for (int c = 0; c < D::kRopeChunks; ++c)
          to_k.chunk(D::kNopeChunks + c, &map_k_pe, c * 64, key);
        if (n == task.block) copy_q(1);
        barrier_wait(s.v_empty + at.stage, at.parity ^ 1);
        barrier_expect(s.v_full + at.stage, S::kVBytes);
        const MlaCopy<C::kForwardKeys> to_v{s.v + at.stage * S::kVBytes, s.v_full + at.stage,
                                            C::kForwardKeys};
        for (int c = 0; c < D::kValueChunks; ++c)
          to_v.chunk(c, &map_kv, k_column + D::kNope + c * 64, key);
        at.next();
      }
    }
    __syncwarp();
  }
}

// Running maximum and sum of a thread's two rows.
struct MlaSoftmax {
  float scale;  // of scores to powers of two
  float top[2], sum[2];

  // score becomes P (f32), relative to the new maximum; returns what older sums are worth.
  template <int kCount>
  __device__ __forceinline__ float2 step(float (&score)[kCount]) {
    float now[2] = {top[0], top[1]};
#pragma unroll
    for (int i = 0; i < kCount; ++i) now[i / 2 % 2] = fmaxf(now[i / 2 % 2], score[i]);
    float factor[2], offset[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      now[i] = fmaxf(now[i], __shfl_xor_sync(0xFFFFFFFFu, now[i], 1));
      now[i] = fmaxf(now[i], __shfl_xor_sync(0xFFFFFFFFu, now[i], 2));
      factor[i] = exp2_fast((top[i] - now[i]) * scale);
      top[i] = now[i];
      offset[i] = now[i] * scale;
      sum[i] *= factor[i];
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      score[i] = exp2_fast(fmaf(score[i], scale, -offset[i / 2 % 2]));
      sum[i / 2 % 2] += score[i];
    }
    return {factor[0], factor[1]};
  }
};

template <class D>
__device__ void mla_forward_multiply(const MlaForwardArgs& args, const MlaForwardShared<D>& s,
                                     int group) {
  using C = MlaAttentionConfig;
  using S = MlaForwardShared<D>;
  constexpr int kSteps = C::kForwardKeys / 16;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t q = smem_addr(s.q) + group * 64 * 128, k = smem_addr(s.k), v = smem_addr(s.v);
  const int my_row = group * 64 + warp * 16 + lane / 4;  // of the tile, and + 8
  const MlaTurns turns(group);
  MlaRingAt<S::kStages> k_at, v_at;
  for (int number = 0;; ++number) {
    const MlaTask& task = s.tasks.wait(number);
    if (task.head < 0) return;
    const int last = task.block;  // step of keys, on the diagonal
    float out[D::kValue / 2], score[C::kForwardKeys / 2];
    uint32_t prob[C::kForwardKeys / 4];
    mla_zero(out);
    MlaSoftmax softmax{args.call.scale * 1.4426950408889634f, {-INFINITY, -INFINITY}, {0.0f, 0.0f}};

    const auto issue_scores = [&] {
      mma_fence();
      mla_scores<D>(score, q, S::kQChunk, k + uniform(k_at.stage) * S::kKBytes, S::kKeyChunk);
      mma_commit();
    };
    const auto issue_values = [&] {
      mma_fence();
      mla_accumulate<kSteps>(out, prob, v + uniform(v_at.stage) * S::kVBytes, S::kKeyChunk);
      mma_commit();
    };
    const auto release = [&](uint64_t* bar) {
      if (lane == 0) barrier_arrive(bar);
    };

    barrier_wait(s.q_full + group, number & 1);
    barrier_wait(s.k_full + k_at.stage, k_at.parity);
    issue_scores();
    mma_wait<0>();
    mma_touch(score);
    release(s.k_empty + k_at.stage);
    if (last == 0) release(s.q_empty + group);
    k_at.next();
#pragma unroll
    for (int i = 0; i < C::kForwardKeys / 2; ++i) {  // the diagonal
      const int key = i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (key > my_row + i / 2 % 2 * 8) score[i] = -INFINITY;
    }
    softmax.step(score);
    mla_pack(prob, score);
#pragma unroll 1
    for (int n = last - 1; n >= 0; --n) {
      barrier_wait(s.k_full + k_at.stage, k_at.parity);
      turns.begin();
      issue_scores();
      barrier_wait(s.v_full + v_at.stage, v_at.parity);
      issue_values();
      turns.end();
      mma_wait<1>();
      mma_touch(score);
      release(s.k_empty + k_at.stage);
      if (n == 0) release(s.q_empty + group);
      k_at.next();
      const float2 factor = softmax.step(score);
      mma_wait<0>();
      mma_touch(out);
      release(s.v_empty + v_at.stage);
      v_at.next();
      mla_pack(prob, score);
#pragma unroll
      for (int i = 0; i < D::kValue / 2; ++i) out[i] *= i / 2 % 2 ? factor.y : factor.x;
    }
    barrier_wait(s.v_full + v_at.stage, v_at.parity);
    issue_values();
    mma_wait<0>();
    mma_touch(out);
    release(s.v_empty + v_at.stage);
    v_at.next();

#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = softmax.sum[i];
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
      const int row = task.block * C::kRows + my_row + 8 * i;
      const bool in_use = row < task.length;
      const int64_t token = task.begin + row;
      mla_store_row(out, i, 1.0f / sum, mla_row(args.out, token, task.head), in_use, lane);
      if (in_use && lane % 4 == 0)
        args.lse[task.head * args.lse_stride + token] =
            softmax.top[i] * args.call.scale + logf(sum);
    }
    s.tasks.done(number);
  }
}

template <class D>
__global__ void __launch_bounds__(MlaAttentionConfig::kThreads, 1)
    mla_forward_kernel_sm90(const __grid_constant__ MlaForwardArgs args,
                            const __grid_constant__ CUtensorMap map_q,
                            const __grid_constant__ CUtensorMap map_kv,
                            const __grid_constant__ CUtensorMap map_k_pe) {
  extern __shared__ __align__(1024) uint8_t raw[];
  const MlaForwardShared<D> s(raw);
  if (threadIdx.x == 0) {
    prefetch_map(&map_q);
    prefetch_map(&map_kv);
    prefetch_map(&map_k_pe);
    s.init();
  }
  __syncthreads();
  const int group = uniform(static_cast<int>(threadIdx.x) / 128);
  if (group == 0) {
    registers_shrink<24>();
    if (threadIdx.x < 32) mla_forward_copy<D>(args, map_q, map_kv, map_k_pe, s);
  } else {
    registers_grow<240>();
    mla_forward_multiply<D>(args, s, group - 1);
  }
}

}  // namespace hadal::cuda
