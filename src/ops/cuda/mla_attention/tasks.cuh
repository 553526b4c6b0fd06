// Which tile a block works on next: longest first within a group of heads, taken from a counter.
//
// A pair is a (row block, sequence) that has rows; a unit is a (pair, head). The copy warp takes
// units and hands each task to the matrix warpgroups through shared memory. Which block does a task
// changes no result.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/mla_attention/config.h"

namespace hadal::cuda {

struct alignas(16) MlaTask {
  int begin, length;  // of the sequence, in tokens
  int block;          // of kRows rows
  int head;           // -1: no more tasks
  int slot;           // first block of kStep rows of the sequence's statistics
  int unused[3];
};

enum class MlaOrder : uint8_t { kFirstBlocks, kLastBlocks };

// Used by a whole warp.
class MlaTaskWalk {
  using C = MlaAttentionConfig;

 public:
  __device__ MlaTaskWalk(const MlaAttentionCall& call, MlaOrder order, int* counter)
      : call_(call),
        order_(order),
        counter_(counter),
        lane_(static_cast<int>(threadIdx.x) % 32),
        blocks_((call.max_len + C::kRows - 1) / C::kRows),
        pairs_(blocks_ * call.num_seqs) {
    for (int first = 0; first < pairs_; first += 32) valid_pairs_ += __popc(valid(first));
  }

  __device__ MlaTask next() {
    int unit = 0;
    if (lane_ == 0) unit = atomicAdd(counter_, 1);
    unit = uniform(unit);
    MlaTask task{};
    task.head = -1;
    if (unit >= valid_pairs_ * call_.num_heads) return task;
    const int group = unit / (valid_pairs_ * C::kHeadGroup);
    const int heads = min(C::kHeadGroup, call_.num_heads - group * C::kHeadGroup);
    const int in_group = unit - group * valid_pairs_ * C::kHeadGroup;
    const int wanted = in_group / heads;
    if (wanted < before_) first_ = before_ = 0;
    uint32_t mask = valid(first_);
    while (before_ + __popc(mask) <= wanted) {
      before_ += __popc(mask);
      first_ += 32;
      mask = valid(first_);
    }
    for (int i = before_; i < wanted; ++i) mask &= mask - 1;
    const int pair = first_ + __ffs(static_cast<int>(mask)) - 1;
    task.head = group * C::kHeadGroup + in_group - wanted * heads;
    task.block = block_of(pair);
    const int seq = pair % call_.num_seqs;
    task.begin = __ldg(call_.offsets + seq);
    task.length = __ldg(call_.offsets + seq + 1) - task.begin;
    task.slot = task.begin / C::kStep + seq;
    return task;
  }

 private:
  __device__ int block_of(int pair) const {
    const int at = pair / call_.num_seqs;
    return order_ == MlaOrder::kFirstBlocks ? at : blocks_ - 1 - at;
  }
  // Of pairs first .. first + 31: those that have rows.
  __device__ uint32_t valid(int first) const {
    const int pair = first + lane_;
    bool has_rows = false;
    if (pair < pairs_) {
      const int seq = pair % call_.num_seqs;
      const int length = __ldg(call_.offsets + seq + 1) - __ldg(call_.offsets + seq);
      has_rows = block_of(pair) * C::kRows < length;
    }
    return __ballot_sync(0xFFFFFFFFu, has_rows);
  }

  const MlaAttentionCall& call_;
  MlaOrder order_;
  int* counter_;
  int lane_, blocks_, pairs_, valid_pairs_ = 0;
  int first_ = 0, before_ = 0;  // a chunk of 32 pairs, and the valid ones before it
};

// Two tasks in shared memory, handed from the copy warp to the matrix warps.
struct MlaTaskRing {
  static constexpr int kMatrixWarps = 8;
  MlaTask* task;    // [2]
  uint64_t* full;   // [2]
  uint64_t* empty;  // [2]

  __device__ void init() const {
    for (int i = 0; i < 2; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, kMatrixWarps);
    }
  }
  __device__ void put(int number, const MlaTask& next, int lane) const {
    const int i = number & 1;
    if (lane == 0) {
      barrier_wait(empty + i, (number >> 1 & 1) ^ 1);
      task[i] = next;
      barrier_arrive(full + i);
    }
    __syncwarp();
  }
  // The task stays where it is until `done`: matrix warps have no registers to spare for it.
  __device__ const MlaTask& wait(int number) const {
    barrier_wait(full + (number & 1), number >> 1 & 1);
    return task[number & 1];
  }
  __device__ void done(int number) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + (number & 1));
  }
};

}  // namespace hadal::cuda
