// Cross-entropy on CUDA: 16 threads a token.
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

}  // namespace

void cross_entropy_forward(Context& ctx, In logits, In targets, Out lse, Out loss) {
  const int64_t T = logits.dim(0), V = logits.dim(1);
  if (T == 0) return;
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
