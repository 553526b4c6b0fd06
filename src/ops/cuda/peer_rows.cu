// Rows through windows on CUDA: a thread has a line at a time (detail/peer_sum.cuh).
//
//   G ranks
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/peer_sum.cuh"
#include "ops/peer_rows.h"

namespace hadal::ops::cuda {
namespace {

using hadal::cuda::PeerSumArgs;

// Words of the ranks. Of line 0 all have one: that a rank has begun is what the others go by.
struct PeerWords {
  int64_t begin[kMaxSumPeers + 1];
  __device__ bool has(int g, int64_t line) const { return line < begin[g + 1] - begin[g]; }
  __device__ bool sends(int g, int64_t line) const { return line == 0 || has(g, line); }
};
PeerWords words_of(std::span<const int64_t> bounds, DType dtype) {
  PeerWords words{};
  for (size_t g = 0; g < bounds.size(); ++g)
    words.begin[g] = bounds[g] * static_cast<int64_t>(dtype_size(dtype)) / 4;
  return words;
}

__global__ void __launch_bounds__(kThreads)
    gather_kernel(const __grid_constant__ PeerSumArgs sums, const __grid_constant__ PeerWords words,
                  const uint32_t* x, uint32_t* y) {
  const uint32_t number = hadal::cuda::peer_sum_number(sums);
  const int64_t line = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int me = sums.me;
  const bool is_mine = words.has(me, line);
  const uint32_t mine = is_mine ? x[line] : 0;
  uint64_t got[kMaxSumPeers];
#pragma unroll
  for (int g = 0; g < kMaxSumPeers; ++g)
    if (g < sums.size && g != me && words.sends(me, line))
      put_peer_line(sums, number, g, line, hadal::cuda::peer_line_of(number, mine));
#pragma unroll
  for (int g = 0; g < kMaxSumPeers; ++g)
    if (g < sums.size && g != me && words.sends(g, line))
      got[g] = look_at_peer_line(sums, number, g, line);
  if (is_mine) y[words.begin[me] + line] = mine;
  int looks = 0;
#pragma unroll
  for (int g = 0; g < kMaxSumPeers; ++g)
    if (g < sums.size && g != me && words.sends(g, line)) {
      const uint32_t word = await_peer_line(sums, number, g, line, got[g], looks);
      if (words.has(g, line)) y[words.begin[g] + line] = word;
    }
  __syncthreads();
  if (threadIdx.x == 0) peer_sum_is_made(sums, number, static_cast<int>(gridDim.x));
}

template <bool is_f32>
__global__ void __launch_bounds__(kThreads)
    sum_scatter_kernel(const __grid_constant__ PeerSumArgs sums,
                       const __grid_constant__ PeerWords words, const uint32_t* x, uint32_t* y) {
  const uint32_t number = hadal::cuda::peer_sum_number(sums);
  const int64_t line = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int me = sums.me;
#pragma unroll
  for (int g = 0; g < kMaxSumPeers; ++g)
    if (g < sums.size && g != me && words.sends(g, line)) {
      const uint32_t word = words.has(g, line) ? x[words.begin[g] + line] : 0;
      put_peer_line(sums, number, g, line, hadal::cuda::peer_line_of(number, word));
    }
  if (words.sends(me, line)) {
    const bool is_mine = words.has(me, line);
    const uint32_t mine = is_mine ? x[words.begin[me] + line] : 0;
    uint64_t got[kMaxSumPeers];
#pragma unroll
    for (int g = 0; g < kMaxSumPeers; ++g)
      got[g] = g < sums.size && g != me ? look_at_peer_line(sums, number, g, line)
                                        : hadal::cuda::peer_line_of(number, mine);
    uint32_t terms[kMaxSumPeers];
    int looks = 0;
#pragma unroll
    for (int g = 0; g < kMaxSumPeers; ++g)
      terms[g] = await_peer_line(sums, number, g, line, got[g], looks);
    if (is_mine) y[line] = hadal::cuda::peer_total<is_f32>(terms, sums.size);
  }
  __syncthreads();
  if (threadIdx.x == 0) peer_sum_is_made(sums, number, static_cast<int>(gridDim.x));
}

}  // namespace

void peer_gather(Context& ctx, const PeerSums& sums, std::span<const int64_t> bounds, In x, Out y) {
  const auto blocks = static_cast<unsigned>(ceil_div(peer_row_lines(y, bounds), kThreads));
  gather_kernel<<<blocks, kThreads, 0, stream_of(ctx)>>>(
      hadal::cuda::peer_sum_args(&sums), words_of(bounds, y.dtype()),
      static_cast<const uint32_t*>(x.raw()), static_cast<uint32_t*>(y.raw()));
  check_launch(ctx, "peer_gather", y);
}

void peer_sum_scatter(Context& ctx, const PeerSums& sums, std::span<const int64_t> bounds, In x,
                      Out y) {
  const auto blocks = static_cast<unsigned>(ceil_div(peer_row_lines(x, bounds), kThreads));
  const auto kernel =
      x.dtype() == DType::kF32 ? sum_scatter_kernel<true> : sum_scatter_kernel<false>;
  kernel<<<blocks, kThreads, 0, stream_of(ctx)>>>(
      hadal::cuda::peer_sum_args(&sums), words_of(bounds, x.dtype()),
      static_cast<const uint32_t*>(x.raw()), static_cast<uint32_t*>(y.raw()));
  check_launch(ctx, "peer_sum_scatter", x);
}

}  // namespace hadal::ops::cuda
