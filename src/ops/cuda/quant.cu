// Block FP8 on CUDA: a thread block for each 128 x 128 block; to bf16 sixteen elements a thread.
//
//   N rows   K columns
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/dequantise.h"
#include "ops/cuda/detail/bf16_rows.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/operands.h"
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

// Matrices at even distances; strides in elements.
struct Fp8Matrices {
  const uint8_t* data;
  int64_t row_stride, next;
  const float* scale;
  int64_t scale_row_stride, scale_next, row_begin;
};

// bf16 from rows of a multiple of 16 elements at multiples of 16 bytes.
__global__ void __launch_bounds__(kThreads)
    dequantise_bf16_kernel(int N, int units, Fp8Matrices w, bf16* y, int64_t y_row_stride,
                           int64_t y_next) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int n = static_cast<int>(at / units), k = static_cast<int>(at % units) * 16;
  if (n >= N) return;
  const int64_t e = blockIdx.y;
  const uint4 raw = *reinterpret_cast<const uint4*>(w.data + e * w.next + n * w.row_stride + k);
  const float s = w.scale[e * w.scale_next + (w.row_begin + n) / kScaleBlock * w.scale_row_stride +
                          k / kScaleBlock];
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  bf16* const to = y + e * y_next + n * y_row_stride + k;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Eight out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = widen_e4m3_pair(words[half * 2 + i / 2] >> (i % 2 * 16));
      out.of[2 * i] = pair.x * s;
      out.of[2 * i + 1] = pair.y * s;
    }
    out.store(to + half * 8);
  }
}

// Whether that kernel takes w to y.
bool is_fast(const Operand& w, const Tensor& y) {
  return w.data.dtype() == DType::kE4M3 && !w.scale.empty() && y.dtype() == DType::kBF16 &&
         w.data.dim(1) % 16 == 0 && w.data.stride(0) % 16 == 0 && y.stride(y.rank() - 2) % 8 == 0 &&
         is_aligned(w.data) && is_aligned(y);
}

void launch_fast(Context& ctx, std::span<const Operand> w, int64_t next, int64_t scale_next,
                 const Tensor& y, int64_t y_next) {
  const Operand& first = w[0];
  const int64_t N = first.data.dim(0), units = first.data.dim(1) / 16;
  const dim3 grid(static_cast<unsigned>(ceil_div(N * units, kThreads)),
                  static_cast<unsigned>(w.size()));
  const Fp8Matrices matrices{reinterpret_cast<const uint8_t*>(first.data.raw()),
                             first.data.stride(0),
                             next,
                             first.scale.data<float>(),
                             first.scale.stride(0),
                             scale_next,
                             first.row_begin};
  dequantise_bf16_kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(
      static_cast<int>(N), static_cast<int>(units), matrices, y.data<bf16>(),
      y.stride(y.rank() - 2), y_next);
  check_launch(ctx, "dequantise_blocks", y);
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
  if (N == 0 || K == 0) return;
  if (is_fast(w, y)) return launch_fast(ctx, {&w, 1}, 0, 0, y, 0);
  const float* scale = w.scale.empty() ? nullptr : w.scale.data<float>();
  const int64_t scale_stride = w.scale.empty() ? 0 : w.scale.stride(0);
  with_arithmetic({w.data.dtype(), y.dtype()}, [&]<class R>(R) {
    dequantise_kernel<R><<<blocks_for(N * K, kThreads), kThreads, 0, stream_of(ctx)>>>(
        N, K, View(w.data), scale, scale_stride, w.row_begin, View(y));
  });
  check_launch(ctx, "dequantise_blocks", y);
}

void dequantise_matrices(Context& ctx, std::span<const Operand> w, Out y) {
  const int64_t next =
      distance_between(w, [](const Operand& o) -> const Tensor& { return o.data; });
  const int64_t scale_next =
      distance_between(w, [](const Operand& o) -> const Tensor& { return o.scale; });
  if (next >= 0 && next % 16 == 0 && scale_next >= 0 && is_fast(w[0], y) && y.stride(0) % 8 == 0)
    return launch_fast(ctx, w, next, scale_next, y, y.stride(0));
  for (size_t e = 0; e < w.size(); ++e)
    dequantise_blocks(ctx, w[e], y.row(static_cast<int64_t>(e)));
}

}  // namespace hadal::ops::cuda
