// Cross-entropy on CUDA: 16 threads a token, or a thread block where rows are long.
//
//   T tokens of the chunk   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/math.cuh"
#include "ops/cuda/detail/ordered_sum.cuh"
#include "ops/cuda/detail/rows.cuh"
#include "ops/loss.h"

namespace hadal::ops::cuda {
namespace {

constexpr const char* kTargetOutside =
    "target {0} of token {1} is outside the vocabulary of {2} ids; use -1 for no target";

// The target of token t, or -1 for none.
__device__ int64_t target_of(Array<const int32_t> targets, int64_t t, int64_t V, FaultSite fault) {
  const int64_t target = targets[t];
  if (target >= -1 && target < V) return target;
  if (group_lane() == 0)
    fault.raise(static_cast<double>(target), static_cast<double>(t), static_cast<double>(V));
  return -1;
}

template <class R>
__global__ void forward_kernel(int64_t T, int64_t V, View logits, Array<const int32_t> targets,
                               Array<R> lse, Array<R> loss, FaultSite fault) {
  const int64_t row = group_row(), t = row < T ? row : 0, n = row < T ? V : 0;
  const int64_t at = t * logits.stride0;
  const R largest = max_row<R>(n, [&](int64_t i) { return logits.get<R>(at + i); });
  const R sum = sum_row<R>(n, [&](int64_t i) { return exp_of(logits.get<R>(at + i) - largest); });
  if (row >= T) return;
  const int64_t target = target_of(targets, t, V, fault);
  if (group_lane() != 0) return;
  const R log_sum = largest + log_of(sum);
  lse[t] = log_sum;
  loss[t] = target < 0 ? R(0) : log_sum - logits.get<R>(at + target);
}

template <class R>
__global__ void backward_kernel(int64_t T, int64_t V, View logits, Array<const int32_t> targets,
                                Array<const R> lse, R scale, View dlogits, FaultSite fault) {
  const int64_t t = group_row();
  if (t >= T) return;
  const int64_t target = target_of(targets, t, V, fault);
  const R shift = lse[t];
  for (int64_t i = group_lane(); i < V; i += kLanes) {
    R value = 0;
    if (target >= 0) {
      value = scale * exp_of(logits.get<R>(t * logits.stride0 + i) - shift);
      if (i == target) value -= scale;
    }
    dlogits.put(t * dlogits.stride0 + i, value);
  }
}

// Rows of f32 that a block reads 16 bytes at a time.
constexpr int64_t kLongRow = 2048;
bool is_long(const Tensor& t) {
  return t.dtype() == DType::kF32 && t.dim(1) >= kLongRow && t.dim(1) % 4 == 0 &&
         t.stride(0) % 4 == 0 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}

// The maximum, then the sum, over the threads of the block in a fixed tree.
template <class Join>
__device__ float join_block(float value, float* shared, const Join& join) {
  for (int d = 16; d > 0; d /= 2) value = join(value, __shfl_xor_sync(kWholeWarp, value, d));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  float all = shared[0];
  for (int w = 1; w < kThreads / 32; ++w) all = join(all, shared[w]);
  __syncthreads();
  return all;
}

__global__ void forward_long_kernel(int64_t V, View logits, Array<const int32_t> targets,
                                    Array<float> lse, Array<float> loss, FaultSite fault) {
  __shared__ float shared[kThreads / 32];
  const int64_t t = blockIdx.x;
  const auto* row = static_cast<const float*>(logits.data) + t * logits.stride0;
  float mine = lowest<float>();
  for (int64_t i = threadIdx.x * 4; i < V; i += kThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(row + i);
    mine = fmaxf(fmaxf(mine, fmaxf(v.x, v.y)), fmaxf(v.z, v.w));
  }
  const float largest = join_block(mine, shared, [](float a, float b) { return b > a ? b : a; });
  float sum = 0.0f;
  for (int64_t i = threadIdx.x * 4; i < V; i += kThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(row + i);
    sum += (exp_of(v.x - largest) + exp_of(v.y - largest)) +
           (exp_of(v.z - largest) + exp_of(v.w - largest));
  }
  sum = join_block(sum, shared, [](float a, float b) { return a + b; });
  if (threadIdx.x != 0) return;
  const int64_t target = target_of(targets, t, V, fault);
  const float log_sum = largest + log_of(sum);
  lse[t] = log_sum;
  loss[t] = target < 0 ? 0.0f : log_sum - row[target];
}

__global__ void backward_long_kernel(int64_t V, View logits, Array<const int32_t> targets,
                                     Array<const float> lse, float scale, View dlogits,
                                     FaultSite fault) {
  const int64_t t = blockIdx.x;
  const int64_t target = target_of(targets, t, V, fault);
  const float shift = lse[t];
  const auto* row = static_cast<const float*>(logits.data) + t * logits.stride0;
  for (int64_t i = threadIdx.x * 4; i < V; i += kThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(row + i);
    const float x[4] = {v.x, v.y, v.z, v.w};
    float out[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out[j] = target >= 0 ? scale * exp_of(x[j] - shift) : 0.0f;
      if (i + j == target) out[j] -= scale;
    }
    if (dlogits.dtype == DType::kBF16) {
      uint2 packed;
      packed.x = narrow_bf16(out[0]).bits | static_cast<uint32_t>(narrow_bf16(out[1]).bits) << 16;
      packed.y = narrow_bf16(out[2]).bits | static_cast<uint32_t>(narrow_bf16(out[3]).bits) << 16;
      *reinterpret_cast<uint2*>(static_cast<bf16*>(dlogits.data) + t * dlogits.stride0 + i) =
          packed;
    } else {
      *reinterpret_cast<float4*>(static_cast<float*>(dlogits.data) + t * dlogits.stride0 + i) =
          float4{out[0], out[1], out[2], out[3]};
    }
  }
}

}  // namespace

void cross_entropy_forward(Context& ctx, In logits, In targets, Out lse, Out loss) {
  const int64_t T = logits.dim(0), V = logits.dim(1);
  if (T == 0) return;
  if (is_long(logits)) {
    forward_long_kernel<<<static_cast<unsigned>(T), kThreads, 0, stream_of(ctx)>>>(
        V, View(logits), Array<const int32_t>(targets), Array<float>(lse), Array<float>(loss),
        FaultSite(ctx, kTargetOutside));
    return check_launch(ctx, "cross_entropy_forward", logits);
  }
  with_arithmetic({logits.dtype()}, [&]<class R>(R) {
    forward_kernel<R>
        <<<static_cast<unsigned>(ceil_div(T, kRowsPerBlock)), kThreads, 0, stream_of(ctx)>>>(
            T, V, View(logits), Array<const int32_t>(targets), Array<R>(lse), Array<R>(loss),
            FaultSite(ctx, kTargetOutside));
  });
  check_launch(ctx, "cross_entropy_forward", logits);
}

void cross_entropy_backward(Context& ctx, In logits, In targets, In lse, double scale,
                            Out dlogits) {
  const int64_t T = logits.dim(0), V = logits.dim(1);
  if (T == 0) return;
  const bool is_bf16 = dlogits.dtype() == DType::kBF16 && dlogits.stride(0) % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(dlogits.raw()) % 8 == 0;
  if (is_long(logits) && (is_bf16 || is_long(dlogits))) {
    backward_long_kernel<<<static_cast<unsigned>(T), kThreads, 0, stream_of(ctx)>>>(
        V, View(logits), Array<const int32_t>(targets), Array<const float>(lse),
        static_cast<float>(scale), View(dlogits), FaultSite(ctx, kTargetOutside));
    return check_launch(ctx, "cross_entropy_backward", logits);
  }
  with_arithmetic({logits.dtype()}, [&]<class R>(R) {
    backward_kernel<R>
        <<<static_cast<unsigned>(ceil_div(T, kRowsPerBlock)), kThreads, 0, stream_of(ctx)>>>(
            T, V, View(logits), Array<const int32_t>(targets), Array<const R>(lse),
            static_cast<R>(scale), View(dlogits), FaultSite(ctx, kTargetOutside));
  });
  check_launch(ctx, "cross_entropy_backward", logits);
}

void sum_acc(Context& ctx, In x, Acc total) { ordered_sum_acc(ctx, "sum_acc", x, total); }

}  // namespace hadal::ops::cuda
