// The sum of a vector in index order in f64: one block brings pieces, one thread adds them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/launch.cuh"

namespace hadal::ops::cuda {

// total[0] += x[0] + x[1] + ...
static __global__ void ordered_sum_kernel(int64_t n, View x, double* total) {
  constexpr int kPiece = 2048;
  __shared__ double piece[kPiece];
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t count = n - begin < kPiece ? n - begin : kPiece;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
      piece[i] = x.get<double>((begin + i) * x.stride0);
    __syncthreads();
    if (threadIdx.x == 0)
      for (int64_t i = 0; i < count; ++i) sum += piece[i];
    __syncthreads();
  }
  if (threadIdx.x == 0) *total += sum;
}

inline void ordered_sum_acc(Context& ctx, const char* op, const Tensor& x, const Tensor& total) {
  ordered_sum_kernel<<<1, kThreads, 0, stream_of(ctx)>>>(x.dim(0), View(x), total.data<double>());
  check_launch(ctx, op, x);
}

}  // namespace hadal::ops::cuda
