// Block FP8 on CUDA: a thread block for each 128 x 128 block.
//
//   N rows   K columns
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/quant.h"

namespace hadal::ops::cuda {
namespace {

__global__ void quantise_kernel(int64_t N, int64_t K, View w, ScaleFormat format, View q,
                                View scale, FaultSite fault) {
  __shared__ float largest[kThreads];
  const int64_t n0 = blockIdx.y * kScaleBlock, k0 = blockIdx.x * kScaleBlock;
  const int64_t rows = N - n0 < kScaleBlock ? N - n0 : kScaleBlock;
  const int64_t cols = K - k0 < kScaleBlock ? K - k0 : kScaleBlock;
  float amax = 0.0f;
  for (int64_t i = threadIdx.x; i < rows * cols; i += blockDim.x) {
    const int64_t n = n0 + i / cols, k = k0 + i % cols;
    const float value = w.get<float>(n * w.stride0 + k);
    if (!isfinite(value))
      fault.raise(static_cast<double>(n), static_cast<double>(k), static_cast<double>(value));
    amax = fmaxf(amax, fabsf(value));
  }
  largest[threadIdx.x] = amax;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half)
      largest[threadIdx.x] = fmaxf(largest[threadIdx.x], largest[threadIdx.x + half]);
    __syncthreads();
  }
  const float block_scale = tile_scale(largest[0], format);
  if (threadIdx.x == 0)
    scale.put(blockIdx.y * scale.stride0 + static_cast<int64_t>(blockIdx.x), block_scale);
  for (int64_t i = threadIdx.x; i < rows * cols; i += blockDim.x) {
    const int64_t n = n0 + i / cols, k = k0 + i % cols;
    q.put(n * q.stride0 + k, w.get<float>(n * w.stride0 + k) / block_scale);
  }
}

template <class R>
__global__ void dequantise_kernel(int64_t N, int64_t K, View w, const float* scale,
                                  int64_t scale_stride, int64_t row_begin, View y) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < N * K;
       i += step) {
    const int64_t n = i / K, k = i % K;
    R value = w.get<R>(n * w.stride0 + k);
    if (scale != nullptr)
      value *=
          static_cast<R>(scale[(row_begin + n) / kScaleBlock * scale_stride + k / kScaleBlock]);
    y.put(n * y.stride0 + k, value);
  }
}

}  // namespace

void quantise_blocks(Context& ctx, In w, ScaleFormat format, Out q, Out scale) {
  const int64_t N = w.dim(0), K = w.dim(1);
  if (N == 0 || K == 0) return;
  const dim3 grid(static_cast<unsigned>(scale.dim(1)), static_cast<unsigned>(scale.dim(0)));
  quantise_kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(
      N, K, View(w), format, View(q), View(scale),
      FaultSite(ctx, "element [{0}, {1}] of w is {2}; FP8 holds finite weights only"));
  check_launch(ctx, "quantise_blocks", w);
}

void dequantise_blocks(Context& ctx, const Operand& w, Out y) {
  const int64_t N = y.dim(0), K = y.dim(1);
  const float* scale = w.scale.empty() ? nullptr : w.scale.data<float>();
  const int64_t scale_stride = w.scale.empty() ? 0 : w.scale.stride(0);
  with_arithmetic({w.data.dtype(), y.dtype()}, [&]<class R>(R) {
    dequantise_kernel<R><<<blocks_for(N * K, kThreads), kThreads, 0, stream_of(ctx)>>>(
        N, K, View(w.data), scale, scale_stride, w.row_begin, View(y));
  });
  check_launch(ctx, "dequantise_blocks", y);
}

}  // namespace hadal::ops::cuda
