// Counts of a block's 32 warps, as each warp adds them up.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace hadal::ops::cuda {

struct WarpCounts {
  int all;
  int before;  // of the warps before this one
};

// in_warp: a count of each warp. All threads of the block call this behind a __syncthreads().
__device__ inline WarpCounts add_warp_counts(const int* in_warp, int warp, int lane) {
  constexpr int kWarps = 32;  // a lane each
  const int of_lane = in_warp[lane];
  WarpCounts counts{.all = of_lane, .before = lane < warp ? of_lane : 0};
#pragma unroll
  for (int d = kWarps / 2; d > 0; d /= 2) {
    counts.all += __shfl_xor_sync(0xffffffffu, counts.all, d);
    counts.before += __shfl_xor_sync(0xffffffffu, counts.before, d);
  }
  return counts;
}

}  // namespace hadal::ops::cuda
