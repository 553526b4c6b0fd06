// What attention over the cache reads, in one launch: a block for each token.
//
//   T tokens   S sequences   H heads   R latent width   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/cache.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/ptx.cuh"
#include "ops/few_tokens.h"

namespace hadal::ops::cuda {
namespace {

constexpr int kWarps = kThreads / 32;

// Sum over the block: a thread's own, then its warp's in a tree, then the warps' in order.
template <class R>
__device__ R sum_of_block(R value, R* shared) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(0xffffffffu, value, d);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  R total = 0;
  for (int i = 0; i < kWarps; ++i) total += shared[i];
  return total;
}

struct Sizes {
  int64_t S, H, R, Dr;
};

// A pair of a row before and after its turn.
template <class T>
struct Pair {
  int64_t first, second;  // columns
  T a, b;

  __device__ Pair(RopeLayout layout, int64_t j, int64_t num_pairs)
      : first(layout == RopeLayout::kInterleaved ? 2 * j : j),
        second(layout == RopeLayout::kInterleaved ? 2 * j + 1 : j + num_pairs) {}
  __device__ void turn(T c, T s) {
    const T x = a, y = b;
    a = x * c - y * s;
    b = x * s + y * c;
  }
};

template <class T, class Rows>
__global__ void inputs_kernel(Sizes size, RopeLayout layout, T eps, Array<const int32_t> offsets,
                              Array<const int32_t> positions, View rope, View gain, View kv_lat,
                              View q_pe, Rows cache, View q_out, FaultSite fault) {
  __shared__ T shared[kWarps];
  hadal::cuda::let_next_kernel_start();
  hadal::cuda::wait_for_previous_kernel();
  const int64_t t = blockIdx.x, row = t * kv_lat.stride0, num_pairs = size.Dr / 2;
  const int64_t seq = sequence_of(offsets, size.S, t), at = cache.offset(seq, positions[t]);
  if (at < 0) {
    if (threadIdx.x == 0) fault.raise(positions[t], static_cast<double>(seq));
    return;
  }
  T squares = 0;
  for (int64_t i = threadIdx.x; i < size.R; i += blockDim.x) {
    const T v = kv_lat.get<T>(row + i);
    squares += v * v;
  }
  const T mean = sum_of_block(squares, shared) / static_cast<T>(size.R);
  const T r = T(1) / sqrt(mean + eps);
  cache.template put_latent<T>(
      at, [&](int64_t i) { return (kv_lat.get<T>(row + i) * r) * gain.get<T>(i); });
  // Pair 0 .. num_pairs - 1 is the key's, then the heads'.
  const int64_t table = t * rope.stride0;
  for (int64_t i = threadIdx.x; i < (size.H + 1) * num_pairs; i += blockDim.x) {
    const int64_t head = i / num_pairs - 1, j = i % num_pairs;
    Pair<T> pair(layout, j, num_pairs);
    const View& from = head < 0 ? kv_lat : q_pe;
    const int64_t from_at = head < 0 ? row + size.R : t * q_pe.stride0 + head * q_pe.stride1;
    pair.a = from.get<T>(from_at + pair.first);
    pair.b = from.get<T>(from_at + pair.second);
    pair.turn(rope.get<T>(table + j), rope.get<T>(table + num_pairs + j));
    if (head < 0) {
      cache.put_key(at, pair.first, pair.a);
      cache.put_key(at, pair.second, pair.b);
    } else {
      const int64_t to = t * q_out.stride0 + head * q_out.stride1;
      q_out.put(to + pair.first, pair.a);
      q_out.put(to + pair.second, pair.b);
    }
  }
}

}  // namespace

void latent_inputs(Context& ctx, const Packed& seq, const LatentNorm& norm, In kv_lat, In q_pe,
                   const LatentPages& cache, Out q_out) {
  const int64_t T = kv_lat.dim(0), Dr = q_pe.dim(2);
  if (T == 0) return;
  const Sizes size{seq.num_seqs, q_pe.dim(1), kv_lat.dim(1) - Dr, Dr};
  with_arithmetic({kv_lat.dtype()}, [&]<class R>(R) {
    with_latent_rows(cache, kv_lat.dtype(), size.R, [&]<class Rows>(const Rows& rows) {
      launch_programmatic(ctx, inputs_kernel<R, Rows>, static_cast<unsigned>(T), kThreads, 0, size,
                          norm.layout, static_cast<R>(norm.eps), Array<const int32_t>(seq.offsets),
                          Array<const int32_t>(seq.positions), View(seq.rope), View(norm.gain),
                          View(kv_lat), View(q_pe), rows, View(q_out), FaultSite(ctx, kNoPage));
    });
  });
  check_launch(ctx, "latent_inputs", kv_lat);
}

}  // namespace hadal::ops::cuda
