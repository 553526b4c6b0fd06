// A barrier of all blocks of a cooperative launch, in two halves: what depends on no other block
// goes between arrive() and wait(), and hides the way to the L2 and back.
//
// The word is one that only these barriers write, zero at first. A barrier turns its top bit and
// leaves the others zero: each block adds 1, the first one what is missing to 2^31. A block knows
// the bit before it arrives for the first time, so it never needs what the addition returns.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace hadal::cuda {

class GridBarrier {
 public:
  __device__ explicit GridBarrier(uint32_t* word) : word_(word) {
    uint32_t value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word_) : "memory");
    top_ = value & kTop;
  }
  // What the block's threads wrote before is seen by all after their wait().
  __device__ __forceinline__ void arrive() const {
    __syncthreads();
    if (threadIdx.x != 0) return;
    const uint32_t step = blockIdx.x == 0 ? kTop - (gridDim.x - 1) : 1u;
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word_), "r"(step) : "memory");
  }
  __device__ __forceinline__ void wait() {
    if (threadIdx.x == 0) {
      uint32_t value;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word_) : "memory");
      } while ((value & kTop) == top_);
      top_ ^= kTop;
    }
    __syncthreads();
  }

 private:
  static constexpr uint32_t kTop = 1u << 31;

  uint32_t* word_;
  uint32_t top_;  // the bit before the next barrier, as thread 0 knows it
};

}  // namespace hadal::cuda
