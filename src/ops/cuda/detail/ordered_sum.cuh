// The sum of a vector in f64, in an order that its length fixes: each thread of one block adds
// every kSumThreads-th element, then its warp's threads in a tree, then the warps in order.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/launch.cuh"

namespace hadal::ops::cuda {

inline constexpr int kSumThreads = 1024;

// total[0] += the sum of x.
static __global__ void __launch_bounds__(kSumThreads)
    ordered_sum_kernel(int64_t n, View x, double* total) {
  constexpr int kAhead = 8;  // loads under way at once
  __shared__ double of_warp[kSumThreads / 32];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kSumThreads * kAhead) {
    double v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t at = i + j * kSumThreads;
      v[j] = at < n ? x.get<double>(at * x.stride0) : 0.0;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) sum += v[j];
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0;
  for (double part : of_warp) all += part;
  *total += all;
}

inline void ordered_sum_acc(Context& ctx, const char* op, const Tensor& x, const Tensor& total) {
  ordered_sum_kernel<<<1, kSumThreads, 0, stream_of(ctx)>>>(x.dim(0), View(x),
                                                            total.data<double>());
  check_launch(ctx, op, x);
}

}  // namespace hadal::ops::cuda
