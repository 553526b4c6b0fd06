// The end of a product whose K was cut into parts.
//
//   M, N rows and columns   S parts
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/add_parts.h"
#include "ops/cuda/detail/launch.cuh"

namespace hadal::ops::cuda {
namespace {

__global__ void add_parts_kernel(int64_t M, int64_t N, int64_t S, const float* parts, float* c,
                                 int64_t c_row_stride, bool accumulate) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < M * N;
       i += step) {
    float* const to = c + i / N * c_row_stride + i % N;
    float sum = accumulate ? *to : 0.0f;
    for (int64_t s = 0; s < S; ++s) sum += parts[s * M * N + i];
    *to = sum;
  }
}

}  // namespace

void add_parts(Context& ctx, const char* op, const Tensor& parts, Start start, const Tensor& c) {
  const int64_t S = parts.dim(0), M = parts.dim(1), N = parts.dim(2);
  add_parts_kernel<<<blocks_for(M * N, kThreads), kThreads, 0, stream_of(ctx)>>>(
      M, N, S, parts.data<float>(), c.data<float>(), c.stride(0), start == Start::kOld);
  check_launch(ctx, op, c);
}

}  // namespace hadal::ops::cuda
