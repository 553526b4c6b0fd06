// Backward of MLA attention, what its two passes share: shared memory, copies, the walk over steps.
//
// A block holds 128 rows of one side, 64 for each of two matrix warpgroups, and streams the other
// side in steps of 64 rows. Nothing but the inputs passes through shared memory, and the warpgroups
// never wait for each other.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/mla_attention/tile.cuh"

namespace hadal::cuda {

// What both passes lay out alike: the held rows of q and dout, or of k and v; a ring of the others.
template <class D>
struct MlaBackwardShared {
  using C = MlaAttentionConfig;
  static constexpr int kStages = C::kBackwardStages;
  static constexpr uint32_t kHeldChunk = C::kRows * 128, kStepChunk = C::kStep * 128;
  static constexpr uint32_t kHeldBytes = D::kChunks * kHeldChunk;
  static constexpr uint32_t kStepBytes = D::kChunks * kStepChunk;
  static constexpr uint32_t kStatBytes = 2 * C::kStep * sizeof(float);
  static constexpr int kBytes = 1024 +
                                static_cast<int>(kHeldBytes + kStages * (kStepBytes + kStatBytes)) +
                                2 * 32 + (2 * kStages + 6) * 8;
  uint8_t *held, *step;
  float* stats;  // [kStages][2][kStep]
  uint64_t *held_full, *held_empty, *full, *empty;
  MlaTaskRing tasks;

  __device__ explicit MlaBackwardShared(uint8_t* raw) {
    held = raw;
    step = held + kHeldBytes;
    stats = reinterpret_cast<float*>(step + kStages * kStepBytes);
    tasks.task = reinterpret_cast<MlaTask*>(stats + kStages * 2 * C::kStep);
    held_full = reinterpret_cast<uint64_t*>(tasks.task + 2);
    held_empty = held_full + 1;
    full = held_empty + 1;
    empty = full + kStages;
    tasks.full = empty + kStages;
    tasks.empty = tasks.full + 2;
  }
  __device__ void init() const {
    barrier_init(held_full, 1);
    barrier_init(held_empty, MlaTaskRing::kMatrixWarps);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, MlaTaskRing::kMatrixWarps);
    }
    tasks.init();
    barrier_init_fence();
  }
};

struct MlaBackwardMaps {
  CUtensorMap q, kv, k_pe, dout;  // boxes of kStep rows
};

// Copies rows of q and dout, or of k and v, of one head: the chunks of a tile in order.
template <class D>
struct MlaSideCopy {
  const MlaBackwardArgs& args;
  const MlaBackwardMaps& maps;
  int head;
  __device__ void queries(const MlaCopy<MlaAttentionConfig::kStep>& to, int row) const {
    const int64_t q = head * args.q.head_stride, dout = head * args.dout.head_stride;
    for (int c = 0; c < D::kNopeChunks; ++c) to.chunk(c, &maps.q, q + c * 64, row);
    for (int c = 0; c < D::kRopeChunks; ++c)
      to.chunk(D::kNopeChunks + c, &maps.q, q + D::kNope + c * 64, row);
    for (int c = 0; c < D::kValueChunks; ++c)
      to.chunk(D::kKeyChunks + c, &maps.dout, dout + c * 64, row);
  }
  __device__ void keys(const MlaCopy<MlaAttentionConfig::kStep>& to, int row) const {
    const int64_t kv = head * args.kv.head_stride;
    for (int c = 0; c < D::kNopeChunks; ++c) to.chunk(c, &maps.kv, kv + c * 64, row);
    for (int c = 0; c < D::kRopeChunks; ++c) to.chunk(D::kNopeChunks + c, &maps.k_pe, c * 64, row);
    for (int c = 0; c < D::kValueChunks; ++c)
      to.chunk(D::kKeyChunks + c, &maps.kv, kv + D::kNope + c * 64, row);
  }
};

// Statistics of a slot of a head.
__device__ __forceinline__ float* mla_stats(const MlaBackwardArgs& args, int head, int slot) {
  using C = MlaAttentionConfig;
  const int64_t slots = args.call.num_tokens / C::kStep + args.call.num_seqs;
  return args.stats + (head * slots + slot) * (2 * C::kStep);
}

__device__ __forceinline__ int mla_steps(int length) {
  return (length + MlaAttentionConfig::kStep - 1) / MlaAttentionConfig::kStep;
}

// Steps [first, last] of the other side that a block of rows meets.
struct MlaSteps {
  int first, last;
};
__device__ __forceinline__ MlaSteps mla_query_steps(const MlaTask& task) {  // of a block of keys
  return {2 * task.block, mla_steps(task.length) - 1};
}
__device__ __forceinline__ MlaSteps mla_key_steps(const MlaTask& task) {  // of a block of queries
  return {0, min(2 * task.block + 1, mla_steps(task.length) - 1)};
}

template <class D, bool kHoldsKeys>
__device__ void mla_backward_copy(const MlaBackwardArgs& args, const MlaBackwardMaps& maps,
                                  const MlaBackwardShared<D>& s) {
  using C = MlaAttentionConfig;
  using S = MlaBackwardShared<D>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  MlaTaskWalk walk(args.call, kHoldsKeys ? MlaOrder::kFirstBlocks : MlaOrder::kLastBlocks,
                   args.call.counters + (kHoldsKeys ? 1 : 0));
  MlaRingAt<S::kStages> at;
  for (int number = 0;; ++number) {
    const MlaTask task = walk.next();
    s.tasks.put(number, task, lane);
    if (task.head < 0) return;
    if (lane == 0) {
      const MlaSideCopy<D> copy{args, maps, task.head};
      barrier_wait(s.held_empty, (number & 1) ^ 1);
      barrier_expect(s.held_full, S::kHeldBytes);
      const MlaCopy<C::kStep> to_held{s.held, s.held_full, C::kRows};
      const int row = task.begin + task.block * C::kRows;
      if constexpr (kHoldsKeys) {
        copy.keys(to_held, row);
      } else {
        copy.queries(to_held, row);
      }
      const MlaSteps steps = kHoldsKeys ? mla_query_steps(task) : mla_key_steps(task);
      const float* stats = mla_stats(args, task.head, task.slot);
#pragma unroll 1
      for (int i = 0; i <= steps.last - steps.first; ++i) {
        const int m = kHoldsKeys ? steps.first + i : steps.last - i;
        barrier_wait(s.empty + at.stage, at.parity ^ 1);
        barrier_expect(s.full + at.stage, S::kStepBytes + (kHoldsKeys ? S::kStatBytes : 0));
        const MlaCopy<C::kStep> to{s.step + at.stage * S::kStepBytes, s.full + at.stage, C::kStep};
        if constexpr (kHoldsKeys) {
          copy.queries(to, task.begin + m * C::kStep);
          copy_bytes(s.stats + at.stage * 2 * C::kStep, stats + m * 2 * C::kStep, S::kStatBytes,
                     s.full + at.stage);
        } else {
          copy.keys(to, task.begin + m * C::kStep);
        }
        at.next();
      }
    }
    __syncwarp();
  }
}

// threadIdx.x, read where it is used: what follows from it takes no register in the loop.
__device__ __forceinline__ int thread_again() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// The part of one matrix warpgroup in a task.
struct MlaPart {
  int skipped;  // steps before its diagonal: it only says that it is done with them
  int steps;    // from its diagonal on; 0: none of its rows is in the sequence
};
template <bool kHoldsKeys>
__device__ __forceinline__ MlaPart mla_part(const MlaTask& task, int group) {
  const int diagonal = 2 * task.block + group, all = mla_steps(task.length);
  const int steps = diagonal >= all ? 0 : (kHoldsKeys ? all - diagonal : diagonal + 1);
  const MlaSteps block = kHoldsKeys ? mla_query_steps(task) : mla_key_steps(task);
  return {block.last - block.first + 1 - steps, steps};
}

// After all lanes have read what is released.
__device__ __forceinline__ void mla_release(uint64_t* bar) {
  __syncwarp();
  if (thread_again() % 32 == 0) barrier_arrive(bar);
}

}  // namespace hadal::cuda
