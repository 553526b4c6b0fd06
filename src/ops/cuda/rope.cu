// Rotary position embedding on CUDA: a thread a pair, of bf16 four or eight pairs.
//
//   T tokens   H heads   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/bf16_rows.cuh"
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

// The same for bf16: four pairs that lie together, or eight pairs of which each half lies together.
template <bool kInterleaved>
__global__ void __launch_bounds__(kThreads)
    apply_bf16_kernel(int64_t items, int H, int num_pairs, float sine, const float* table,
                      int64_t table_stride, bf16* x, int64_t token_stride, int64_t head_stride) {
  constexpr int kPairs = kInterleaved ? 4 : 8;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int of_head = num_pairs / kPairs, of_token = H * of_head;
  const int64_t t = item / of_token;
  const int rest = static_cast<int>(item - t * of_token), h = rest / of_head;
  const int j = (rest - h * of_head) * kPairs;
  const float* const c = table + t * table_stride + j;
  const float* const s = c + num_pairs;
  bf16* const first = x + t * token_stride + h * head_stride + (kInterleaved ? 2 * j : j);
  if constexpr (kInterleaved) {
    Eight e = Eight::load(first);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float a = e.of[2 * i], b = e.of[2 * i + 1], turn = sine * s[i];
      e.of[2 * i] = a * c[i] - b * turn;
      e.of[2 * i + 1] = a * turn + b * c[i];
    }
    e.store(first);
  } else {
    Eight a = Eight::load(first), b = Eight::load(first + num_pairs);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float x0 = a.of[i], x1 = b.of[i], turn = sine * s[i];
      a.of[i] = x0 * c[i] - x1 * turn;
      b.of[i] = x0 * turn + x1 * c[i];
    }
    a.store(first);
    b.store(first + num_pairs);
  }
}

// Whether the heads of a tensor can be read sixteen bytes at a time.
bool has_bf16_heads(const Tensor& x) {
  return x.dtype() == DType::kBF16 && x.dim(2) % 16 == 0 && x.stride(0) % 8 == 0 &&
         x.stride(1) % 8 == 0 && x.stride(2) == 1 && reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0;
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
  if (has_bf16_heads(x) && table.dtype() == DType::kF32 && T > 0) {
    const bool interleaved = layout == RopeLayout::kInterleaved;
    const int64_t items = T * H * num_pairs / (interleaved ? 4 : 8);
    with_constant(interleaved, [&](auto together) {
      apply_bf16_kernel<together>
          <<<static_cast<unsigned>(ceil_div(items, kThreads)), kThreads, 0, stream_of(ctx)>>>(
              items, static_cast<int>(H), static_cast<int>(num_pairs),
              direction == RopeDirection::kForward ? 1.0f : -1.0f, table.data<float>(),
              table.stride(0), x.data<bf16>(), x.stride(0), x.stride(1));
    });
    return check_launch(ctx, "rope_apply", x);
  }
  with_arithmetic({x.dtype(), table.dtype()}, [&]<class R>(R) {
    const R sine = direction == RopeDirection::kForward ? R(1) : R(-1);
    apply_kernel<R><<<blocks_for(T * H * num_pairs, kThreads), kThreads, 0, stream_of(ctx)>>>(
        T, H, num_pairs, layout, sine, View(table), View(x));
  });
  check_launch(ctx, "rope_apply", x);
}

}  // namespace hadal::ops::cuda
