// Paced copies on CUDA.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/pair_launch.cuh"
#include "ops/paced_copy.h"

namespace hadal::ops::cuda {
namespace {

constexpr int kCopyThreads = 512;
constexpr int64_t kChunk =
    4096;  // words of 16 bytes that a block copies before it looks at the clock

__device__ inline uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Block b copies chunks b, b + B, ...; all B blocks together are at the link's rate.
__global__ void __launch_bounds__(kCopyThreads)
    paced_copy_kernel(const uint4* from, uint4* to, int64_t words, double nanoseconds_per_word) {
  __shared__ uint64_t begin;
  if (threadIdx.x == 0) begin = nanoseconds();
  __syncthreads();
  for (int64_t chunk = blockIdx.x * kChunk; chunk < words; chunk += gridDim.x * kChunk) {
    const int64_t end = chunk + kChunk < words ? chunk + kChunk : words;
    for (int64_t i = chunk + threadIdx.x; i < end; i += kCopyThreads) to[i] = from[i];
    if (threadIdx.x == 0) {
      const int64_t sent = chunk - blockIdx.x * kChunk + gridDim.x * kChunk;
      const int64_t due = sent < words ? sent : words;
      const auto until =
          begin + static_cast<uint64_t>(static_cast<double>(due) * nanoseconds_per_word);
      while (nanoseconds() < until) __nanosleep(200);
    }
    __syncthreads();
  }
}

}  // namespace

void paced_copy(Context& ctx, double bytes_per_second, int blocks, In x, Out y) {
  const int64_t words = x.num_bytes() / 16;
  if (words == 0) return;
  launch_in_pairs(ctx, paced_copy_kernel, blocks, kCopyThreads, 0,
                  static_cast<const uint4*>(x.raw()), static_cast<uint4*>(y.raw()), words,
                  16e9 / bytes_per_second);
  check_launch(ctx, "paced_copy", x);
}

}  // namespace hadal::ops::cuda
