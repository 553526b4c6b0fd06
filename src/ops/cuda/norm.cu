// RMSNorm on CUDA: a thread block a row for bf16, else 16 threads a row.
//
//   T rows   D width   B blocks of kGainRows rows
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/bf16_rows.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/rows.cuh"
#include "ops/norm.h"

namespace hadal::ops::cuda {
namespace {

// dgain is summed over blocks of this many rows, then over the blocks in order.
constexpr int64_t kGainRows = 64;

template <class R>
__global__ void forward_kernel(int64_t T, int64_t D, View x, View gain, R eps, View y,
                               Array<R> rstd) {
  const int64_t row = group_row(), t = row < T ? row : 0, n = row < T ? D : 0;
  const int64_t x0 = t * x.stride0, y0 = t * y.stride0;
  const R squares = sum_row<R>(n, [&](int64_t i) {
    const R v = x.get<R>(x0 + i);
    return v * v;
  });
  if (n == 0) return;
  const R r = R(1) / sqrt(squares / static_cast<R>(D) + eps);
  if (group_lane() == 0) rstd[t] = r;
  for (int64_t i = group_lane(); i < n; i += kLanes)
    y.put(y0 + i, (x.get<R>(x0 + i) * r) * gain.get<R>(i));
}

template <class R>
__global__ void recompute_kernel(int64_t T, int64_t D, View x, View gain, Array<const R> rstd,
                                 View y) {
  const int64_t t = group_row();
  if (t >= T) return;
  const R r = rstd[t];
  for (int64_t i = group_lane(); i < D; i += kLanes)
    y.put(t * y.stride0 + i, (x.get<R>(t * x.stride0 + i) * r) * gain.get<R>(i));
}

// x_hat = x r; dx = r (g dy - x_hat mean(g dy x_hat))
template <class R>
__global__ void dx_kernel(int64_t T, int64_t D, View x, View gain, Array<const R> rstd, View dy,
                          View dx) {
  const int64_t row = group_row(), t = row < T ? row : 0, n = row < T ? D : 0;
  const int64_t x0 = t * x.stride0, dy0 = t * dy.stride0, dx0 = t * dx.stride0;
  const R along = sum_row<R>(
      n, [&](int64_t i) { return (dy.get<R>(dy0 + i) * gain.get<R>(i)) * x.get<R>(x0 + i); });
  if (n == 0) return;
  const R r = rstd[t], c = r * r * r * along / static_cast<R>(D);
  for (int64_t i = group_lane(); i < n; i += kLanes)
    dx.put(dx0 + i, r * (gain.get<R>(i) * dy.get<R>(dy0 + i)) - c * x.get<R>(x0 + i));
}

// partial[b, j] = sum over the rows of block b, in order.
template <class R>
__global__ void dgain_blocks_kernel(int64_t T, int64_t D, View x, Array<const R> rstd, View dy,
                                    R* partial) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= D) return;
  const int64_t begin = blockIdx.y * kGainRows;
  const int64_t end = begin + kGainRows < T ? begin + kGainRows : T;
  R sum = 0;
  for (int64_t t = begin; t < end; ++t)
    sum += dy.get<R>(t * dy.stride0 + j) * (x.get<R>(t * x.stride0 + j) * rstd[t]);
  partial[blockIdx.y * D + j] = sum;
}

// The same for bf16: a warp takes eight rows and 256 columns, the eight warps add up in order.
constexpr int kGainWarps = 8, kGainColumns = 256;
__global__ void __launch_bounds__(kGainWarps * 32)
    dgain_blocks_bf16_kernel(int64_t T, int64_t D, View x, Array<const float> rstd, View dy,
                             float* partial) {
  constexpr int64_t kWarpRows = kGainRows / kGainWarps;
  __shared__ float of_warp[kGainWarps][kGainColumns];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kGainColumns + lane * 8;
  const int64_t first = blockIdx.y * kGainRows + warp * kWarpRows;
  Eight sum{};
  if (j < D) {
#pragma unroll 4
    for (int64_t t = first; t < first + kWarpRows; ++t) {
      if (t >= T) break;
      const Eight v = Eight::load(static_cast<const bf16*>(x.data) + t * x.stride0 + j);
      const Eight d = Eight::load(static_cast<const bf16*>(dy.data) + t * dy.stride0 + j);
      const float r = rstd[t];
#pragma unroll
      for (int i = 0; i < 8; ++i) sum.of[i] += d.of[i] * (v.of[i] * r);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) of_warp[warp][lane * 8 + i] = sum.of[i];
  __syncthreads();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kGainColumns + threadIdx.x;
  if (column >= D) return;
  float all = 0.0f;
#pragma unroll
  for (int w = 0; w < kGainWarps; ++w) all += of_warp[w][threadIdx.x];
  partial[blockIdx.y * D + column] = all;
}

template <class R>
__global__ void dgain_total_kernel(int64_t B, int64_t D, const R* partial, R* dgain) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= D) return;
  R sum = 0;
  for (int64_t b = 0; b < B; ++b) sum += partial[b * D + j];
  dgain[j] = sum;
}

__global__ void __launch_bounds__(kRowThreads)
    forward_bf16_kernel(int64_t D, View x, View gain, float eps, View y, Array<float> rstd) {
  hadal::cuda::let_next_kernel_start();
  hadal::cuda::wait_for_previous_kernel();
  __shared__ float shared[kRowThreads / 32];
  const int64_t t = blockIdx.x;
  const auto* from = static_cast<const bf16*>(x.data) + t * x.stride0;
  auto* const to = static_cast<bf16*>(y.data) + t * y.stride0;
  float squares = 0.0f;
  for (int64_t i = threadIdx.x * 8; i < D; i += kRowThreads * 8) {
    const Eight v = Eight::load(from + i);
#pragma unroll
    for (float value : v.of) squares += value * value;
  }
  const float r = 1.0f / sqrtf(sum_of_row(squares, shared) / static_cast<float>(D) + eps);
  if (threadIdx.x == 0) rstd[t] = r;
  for (int64_t i = threadIdx.x * 8; i < D; i += kRowThreads * 8) {
    Eight v = Eight::load(from + i);
    const Eight g = load_eight(gain.data, gain.dtype, i);
#pragma unroll
    for (int j = 0; j < 8; ++j) v.of[j] = (v.of[j] * r) * g.of[j];
    v.store(to + i);
  }
}

__global__ void __launch_bounds__(kRowThreads)
    recompute_bf16_kernel(int64_t D, View x, View gain, Array<const float> rstd, View y) {
  const int64_t t = blockIdx.x;
  const auto* from = static_cast<const bf16*>(x.data) + t * x.stride0;
  auto* const to = static_cast<bf16*>(y.data) + t * y.stride0;
  const float r = rstd[t];
  for (int64_t i = threadIdx.x * 8; i < D; i += kRowThreads * 8) {
    Eight v = Eight::load(from + i);
    const Eight g = load_eight(gain.data, gain.dtype, i);
#pragma unroll
    for (int j = 0; j < 8; ++j) v.of[j] = (v.of[j] * r) * g.of[j];
    v.store(to + i);
  }
}

__global__ void __launch_bounds__(kRowThreads)
    dx_bf16_kernel(int64_t D, View x, View gain, Array<const float> rstd, View dy, View dx) {
  __shared__ float shared[kRowThreads / 32];
  const int64_t t = blockIdx.x;
  const auto* xs = static_cast<const bf16*>(x.data) + t * x.stride0;
  const auto* dys = static_cast<const bf16*>(dy.data) + t * dy.stride0;
  auto* const to = static_cast<bf16*>(dx.data) + t * dx.stride0;
  float part = 0.0f;
  for (int64_t i = threadIdx.x * 8; i < D; i += kRowThreads * 8) {
    const Eight v = Eight::load(xs + i), d = Eight::load(dys + i);
    const Eight g = load_eight(gain.data, gain.dtype, i);
#pragma unroll
    for (int j = 0; j < 8; ++j) part += (d.of[j] * g.of[j]) * v.of[j];
  }
  const float along = sum_of_row(part, shared);
  const float r = rstd[t], c = r * r * r * along / static_cast<float>(D);
  for (int64_t i = threadIdx.x * 8; i < D; i += kRowThreads * 8) {
    const Eight v = Eight::load(xs + i), d = Eight::load(dys + i);
    const Eight g = load_eight(gain.data, gain.dtype, i);
    Eight out;
#pragma unroll
    for (int j = 0; j < 8; ++j) out.of[j] = r * (g.of[j] * d.of[j]) - c * v.of[j];
    out.store(to + i);
  }
}

unsigned row_blocks(int64_t T) { return static_cast<unsigned>(ceil_div(T, kRowsPerBlock)); }

}  // namespace

void rmsnorm_forward(Context& ctx, In x, In gain, double eps, Out y, Out rstd) {
  const int64_t T = x.dim(0), D = x.dim(1);
  if (T == 0) return;
  if (has_bf16_rows(x) && has_bf16_rows(y) && is_gain_of_bf16_rows(gain)) {
    launch_programmatic(ctx, forward_bf16_kernel, static_cast<unsigned>(T), kRowThreads, 0, D,
                        View(x), View(gain), static_cast<float>(eps), View(y), Array<float>(rstd));
    return check_launch(ctx, "rmsnorm_forward", x);
  }
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    forward_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
        T, D, View(x), View(gain), static_cast<R>(eps), View(y), Array<R>(rstd));
  });
  check_launch(ctx, "rmsnorm_forward", x);
}

void rmsnorm_recompute(Context& ctx, In x, In gain, In rstd, Out y) {
  const int64_t T = x.dim(0), D = x.dim(1);
  if (T == 0) return;
  if (has_bf16_rows(x) && has_bf16_rows(y) && is_gain_of_bf16_rows(gain)) {
    recompute_bf16_kernel<<<static_cast<unsigned>(T), kRowThreads, 0, stream_of(ctx)>>>(
        D, View(x), View(gain), Array<const float>(rstd), View(y));
    return check_launch(ctx, "rmsnorm_recompute", x);
  }
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    recompute_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
        T, D, View(x), View(gain), Array<const R>(rstd), View(y));
  });
  check_launch(ctx, "rmsnorm_recompute", x);
}

void rmsnorm_backward(Context& ctx, In x, In gain, In rstd, In dy, Out dx, Out dgain) {
  const int64_t T = x.dim(0), D = x.dim(1), B = ceil_div(T, kGainRows);
  const unsigned columns = static_cast<unsigned>(ceil_div(D, kThreads));
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    Tensor partial;
    const Block memory = ctx.memory.take_tensor(DTypeOf<R>::value, {B, D}, &partial);
    if (T > 0) {
      const bool is_bf16 =
          has_bf16_rows(x) && has_bf16_rows(dy) && has_bf16_rows(dx) && is_gain_of_bf16_rows(gain);
      // NOTE: before dx, which may be dy.
      const dim3 gain_blocks(columns, static_cast<unsigned>(B));
      static_assert(kGainColumns == kThreads);
      if (is_bf16)
        dgain_blocks_bf16_kernel<<<gain_blocks, kGainWarps * 32, 0, stream_of(ctx)>>>(
            T, D, View(x), Array<const float>(rstd), View(dy), static_cast<float*>(partial.raw()));
      else
        dgain_blocks_kernel<R><<<gain_blocks, kThreads, 0, stream_of(ctx)>>>(
            T, D, View(x), Array<const R>(rstd), View(dy), partial.data<R>());
      check_launch(ctx, "rmsnorm_backward", x);
      if (is_bf16)
        dx_bf16_kernel<<<static_cast<unsigned>(T), kRowThreads, 0, stream_of(ctx)>>>(
            D, View(x), View(gain), Array<const float>(rstd), View(dy), View(dx));
      else
        dx_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
            T, D, View(x), View(gain), Array<const R>(rstd), View(dy), View(dx));
      check_launch(ctx, "rmsnorm_backward", x);
    }
    dgain_total_kernel<R>
        <<<columns, kThreads, 0, stream_of(ctx)>>>(B, D, partial.data<R>(), dgain.data<R>());
  });
  check_launch(ctx, "rmsnorm_backward", x);
}

}  // namespace hadal::ops::cuda
