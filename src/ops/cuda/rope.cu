// Rotary position embedding on CUDA: a thread a pair.
//
//   T tokens   H heads   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/rope.h"

namespace hadal::ops::cuda {
namespace {

__global__ void table_kernel(int64_t T, int64_t num_pairs, Array<const int32_t> positions,
                             Array<const double> inv_freq, double magnitude, View table) {
  const int64_t n = T * num_pairs, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const int64_t t = i / num_pairs, j = i % num_pairs, at = t * table.stride0 + j;
    const double angle = static_cast<double>(positions[t]) * inv_freq[j];
    table.put(at, magnitude * cos(angle));
    table.put(at + num_pairs, magnitude * sin(angle));
  }
}

// `sine` is +1 forward and -1 backward, which is the transpose.
template <class R>
__global__ void apply_kernel(int64_t T, int64_t H, int64_t num_pairs, RopeLayout layout, R sine,
                             View table, View x) {
  const int64_t n = T * H * num_pairs, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const int64_t t = i / (H * num_pairs), h = i / num_pairs % H, j = i % num_pairs;
    const bool interleaved = layout == RopeLayout::kInterleaved;
    const int64_t first = t * x.stride0 + h * x.stride1 + (interleaved ? 2 * j : j);
    const int64_t second = first + (interleaved ? 1 : num_pairs);
    const R c = table.get<R>(t * table.stride0 + j);
    const R s = sine * table.get<R>(t * table.stride0 + num_pairs + j);
    const R a = x.get<R>(first), b = x.get<R>(second);
    x.put(first, a * c - b * s);
    x.put(second, a * s + b * c);
  }
}

}  // namespace

void rope_table(Context& ctx, In positions, In inv_freq, double magnitude, Out table) {
  const int64_t T = positions.dim(0), num_pairs = inv_freq.dim(0);
  table_kernel<<<blocks_for(T * num_pairs, kThreads), kThreads, 0, stream_of(ctx)>>>(
      T, num_pairs, Array<const int32_t>(positions), Array<const double>(inv_freq), magnitude,
      View(table));
  check_launch(ctx, "rope_table", table);
}

void rope_apply(Context& ctx, RopeLayout layout, RopeDirection direction, In table, Acc x) {
  const int64_t T = x.dim(0), H = x.dim(1), num_pairs = x.dim(2) / 2;
  with_arithmetic({x.dtype(), table.dtype()}, [&]<class R>(R) {
    const R sine = direction == RopeDirection::kForward ? R(1) : R(-1);
    apply_kernel<R><<<blocks_for(T * H * num_pairs, kThreads), kThreads, 0, stream_of(ctx)>>>(
        T, H, num_pairs, layout, sine, View(table), View(x));
  });
  check_launch(ctx, "rope_apply", x);
}

}  // namespace hadal::ops::cuda
