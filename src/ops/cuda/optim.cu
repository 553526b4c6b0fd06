// AdamW, moving averages and sums of squares on CUDA.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/ordered_sum.cuh"
#include "ops/cuda/detail/rows.cuh"
#include "ops/optim.h"

namespace hadal::ops::cuda {
namespace {

constexpr int64_t kSumBlock = 4096;  // elements of one partial sum of squares

// What the rule does to one element, in the arithmetic type.
template <class R>
struct Factors {
  R grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  R keep;         // 1 - lr * weight_decay
  R step;         // lr / (1 - beta1^t)
  R correction2;  // 1 / (1 - beta2^t)
  R eps;
};

template <class R>
Factors<R> factors_of(const AdamW& rule) {
  const double correction1 = 1.0 - std::pow(rule.beta1, static_cast<double>(rule.step));
  const double correction2 = 1.0 - std::pow(rule.beta2, static_cast<double>(rule.step));
  return {.grad_scale = static_cast<R>(rule.grad_scale),
          .beta1 = static_cast<R>(rule.beta1),
          .one_minus_beta1 = static_cast<R>(1.0 - rule.beta1),
          .beta2 = static_cast<R>(rule.beta2),
          .one_minus_beta2 = static_cast<R>(1.0 - rule.beta2),
          .keep = static_cast<R>(1.0 - rule.lr * rule.weight_decay),
          .step = static_cast<R>(rule.lr / correction1),
          .correction2 = static_cast<R>(1.0 / correction2),
          .eps = static_cast<R>(rule.eps)};
}

template <class R>
__global__ void adamw_kernel(int64_t n, Factors<R> f, View grad, View param, View m, View v) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const R g = grad.get<R>(i) * f.grad_scale;
    const R mean = f.beta1 * m.get<R>(i) + f.one_minus_beta1 * g;
    const R square = f.beta2 * v.get<R>(i) + f.one_minus_beta2 * (g * g);
    m.put(i, mean);
    v.put(i, square);
    param.put(i,
              f.keep * param.get<R>(i) - (f.step * mean) / (sqrt(square * f.correction2) + f.eps));
  }
}

// Four neighbouring elements as f32; the same arithmetic.
struct Four {
  float of[4];
  __device__ static Four load(const View& x, int64_t i) {
    if (x.dtype == DType::kF32) {
      const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(x.data) + i);
      return {{v.x, v.y, v.z, v.w}};
    }
    const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(x.data) + i);
    return {{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
             __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u)}};
  }
  __device__ void store(const View& x, int64_t i) const {
    if (x.dtype == DType::kF32) {
      *reinterpret_cast<float4*>(static_cast<float*>(x.data) + i) =
          float4{of[0], of[1], of[2], of[3]};
      return;
    }
    const auto pair = [&](int j) {
      return narrow_bf16(of[j]).bits | static_cast<uint32_t>(narrow_bf16(of[j + 1]).bits) << 16;
    };
    *reinterpret_cast<uint2*>(static_cast<bf16*>(x.data) + i) = uint2{pair(0), pair(2)};
  }
};
bool has_fours(const Tensor& t) {
  return (t.dtype() == DType::kF32 || t.dtype() == DType::kBF16) && t.is_dense() &&
         t.num_elements() % 4 == 0 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}

__global__ void __launch_bounds__(kThreads)
    adamw_four_kernel(int64_t n, Factors<float> f, View grad, View param, View m, View v) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * 4;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4; i < n;
       i += step) {
    const Four g4 = Four::load(grad, i);
    Four p4 = Four::load(param, i), m4 = Four::load(m, i), v4 = Four::load(v, i);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float g = g4.of[j] * f.grad_scale;
      const float mean = f.beta1 * m4.of[j] + f.one_minus_beta1 * g;
      const float square = f.beta2 * v4.of[j] + f.one_minus_beta2 * (g * g);
      m4.of[j] = mean;
      v4.of[j] = square;
      p4.of[j] = f.keep * p4.of[j] - (f.step * mean) / (sqrtf(square * f.correction2) + f.eps);
    }
    m4.store(m, i);
    v4.store(v, i);
    p4.store(param, i);
  }
}

template <class R>
__global__ void ema_kernel(int64_t n, R keep, R take, View x, View average) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    average.put(i, keep * average.get<R>(i) + take * x.get<R>(i));
}

// The same for f32, with eight loads of a thread under way at once.
__global__ void __launch_bounds__(kThreads)
    sum_squares_f32_kernel(int64_t n, int64_t num_blocks, const float* x, double* partial) {
  constexpr int kAhead = 8;
  const int64_t block = group_row();
  const int64_t begin = block * kSumBlock + group_lane();
  const int64_t end =
      block < num_blocks ? (n < (block + 1) * kSumBlock ? n : (block + 1) * kSumBlock) : 0;
  double sum = 0;
  int64_t i = begin;
  for (; i + (kAhead - 1) * kLanes < end; i += kAhead * kLanes) {
    float v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) v[j] = x[i + j * kLanes];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) sum += static_cast<double>(v[j]) * static_cast<double>(v[j]);
  }
  for (; i < end; i += kLanes) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  sum = add_lanes(sum);
  if (block < num_blocks && group_lane() == 0) partial[block] = sum;
}

__global__ void sum_squares_kernel(int64_t n, int64_t num_blocks, View x, double* partial) {
  const int64_t block = group_row();
  const int64_t begin = block * kSumBlock;
  const int64_t left = block < num_blocks ? n - begin : 0;
  const double sum = sum_row<double>(left < kSumBlock ? left : kSumBlock, [&](int64_t i) {
    const double v = x.get<double>(begin + i);
    return v * v;
  });
  if (block < num_blocks && group_lane() == 0) partial[block] = sum;
}

}  // namespace

void adamw(Context& ctx, const AdamW& rule, In grad, Acc param, Acc m, Acc v) {
  const int64_t n = param.num_elements();
  if (has_fours(grad) && has_fours(param) && has_fours(m) && has_fours(v) && n > 0) {
    adamw_four_kernel<<<blocks_for(n / 4, kThreads), kThreads, 0, stream_of(ctx)>>>(
        n, factors_of<float>(rule), View(grad), View(param), View(m), View(v));
    return check_launch(ctx, "adamw", param);
  }
  with_arithmetic({param.dtype()}, [&]<class R>(R) {
    adamw_kernel<R><<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(
        n, factors_of<R>(rule), View(grad), View(param), View(m), View(v));
  });
  check_launch(ctx, "adamw", param);
}

void ema_update(Context& ctx, double decay, In x, Acc average) {
  const int64_t n = x.num_elements();
  if (n == 0) return;
  with_arithmetic({average.dtype()}, [&]<class R>(R) {
    ema_kernel<R><<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(
        n, static_cast<R>(decay), static_cast<R>(1.0 - decay), View(x), View(average));
  });
  check_launch(ctx, "ema_update", average);
}

void sum_squares_acc(Context& ctx, In x, Acc total) {
  const int64_t n = x.num_elements(), num_blocks = ceil_div(n, kSumBlock);
  if (n == 0) return;
  Tensor partial;
  const Block memory = ctx.memory.take_tensor(DType::kF64, {num_blocks}, &partial);
  const auto blocks = static_cast<unsigned>(ceil_div(num_blocks, kRowsPerBlock));
  if (x.dtype() == DType::kF32 && x.is_dense())
    sum_squares_f32_kernel<<<blocks, kThreads, 0, stream_of(ctx)>>>(n, num_blocks, x.data<float>(),
                                                                    partial.data<double>());
  else
    sum_squares_kernel<<<blocks, kThreads, 0, stream_of(ctx)>>>(n, num_blocks, View(x),
                                                                partial.data<double>());
  check_launch(ctx, "sum_squares_acc", x);
  ordered_sum_acc(ctx, "sum_squares_acc", partial, total);
}

}  // namespace hadal::ops::cuda
