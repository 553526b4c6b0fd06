// Transfers through windows on CUDA: stores over NVLink, and marks with release and acquire of the
// whole system.
//
//   G ranks   N places
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/pair_launch.cuh"
#include "ops/peer.h"

namespace hadal::ops::cuda {
namespace {

constexpr int kPutThreads = 512;
constexpr int kWarp = 32;

struct Windows {
  char* of[kMaxPeers];
};
Windows windows_at(const PeerView& view, int64_t offset) {
  Windows w{};
  for (int g = 0; g < view.size; ++g)
    w.of[g] = static_cast<char*>(view.window[static_cast<size_t>(g)]) + offset;
  return w;
}

// ---- where copies go ---------------------------------------------------------------------------

__global__ void places_kernel(int64_t n, int64_t m, int64_t slots, int G, int64_t columns,
                              const int64_t* counts, int32_t* copies, int32_t* choices,
                              int64_t* sent, int64_t sent_stride) {
  __shared__ int64_t first[kMaxPeers + 1];
  if (threadIdx.x == 0) {
    int64_t sum = 0;
    for (int g = 0; g < G; ++g) {
      first[g] = sum;
      sum += counts[g * columns];
      if (blockIdx.x == 0) sent[g * sent_stride] += counts[g * columns];
    }
    first[G] = sum;
  }
  __syncthreads();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n + m;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    int32_t& copy = i < n ? copies[i] : choices[i - n];
    if (copy < 0) continue;
    int g = 0;
    while (g + 1 < G && copy >= first[g + 1]) ++g;
    copy = static_cast<int32_t>(g * slots + copy - first[g]);
  }
}

__global__ void arrivals_kernel(int64_t N, int64_t K, const int32_t* ids, int32_t* place) {
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < N;
       n += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    bool any = false;
    for (int64_t k = 0; k < K; ++k) any = any || ids[n * K + k] >= 0;
    place[n] = any ? static_cast<int32_t>(n) : -1;
  }
}

// ---- rows --------------------------------------------------------------------------------------

// A warp for each row and place; `units` of Unit are a row.
template <class Unit>
__global__ void __launch_bounds__(kPutThreads)
    put_kernel(int64_t rows, int64_t C, int64_t units, int64_t slots, int me, int G,
               Windows windows, const Unit* x, const int32_t* place) {
  constexpr int kAtOnce = 4;
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kPutThreads / kWarp);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (kPutThreads / kWarp) + threadIdx.x / kWarp;
       i < rows * C; i += warps) {
    const int p = place[i];
    if (p < 0 || p >= G * slots) continue;
    Unit* to = reinterpret_cast<Unit*>(windows.of[p / slots]) + (me * slots + p % slots) * units;
    const Unit* from = x + i / C * units;
    int64_t u = lane;
    for (; u + (kAtOnce - 1) * kWarp < units; u += kAtOnce * kWarp) {
      Unit held[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) held[j] = from[u + j * kWarp];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) to[u + j * kWarp] = held[j];
    }
    for (; u < units; u += kWarp) to[u] = from[u];
  }
}

template <class Unit>
void launch_put(Context& ctx, const PeerView& view, int64_t offset, int64_t slots, int blocks,
                const Tensor& x, const Tensor& place) {
  const int64_t rows = x.dim(0), C = place.dim(1);
  const int64_t wanted = ceil_div(rows * C, kPutThreads / kWarp);
  launch_in_pairs(ctx, put_kernel<Unit>, static_cast<int>(std::min<int64_t>(blocks, wanted)),
                  kPutThreads, rows, C, x.num_bytes() / rows / static_cast<int64_t>(sizeof(Unit)),
                  slots, view.place, view.size, windows_at(view, offset),
                  static_cast<const Unit*>(x.raw()), place.data<int32_t>());
}

// ---- marks -------------------------------------------------------------------------------------

__device__ inline void store_release(uint64_t* to, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline uint64_t load_acquire(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

// What earlier kernels of the stream stored is done when this one begins; the fence puts it before
// the marks for every rank.
__global__ void post_kernel(int me, int G, Windows windows) {
  auto* const posts = reinterpret_cast<uint64_t*>(windows.of[me]) + kMaxPeers;
  const uint64_t now = *posts + 1;
  __syncthreads();
  if (threadIdx.x == 0) *posts = now;
  __threadfence_system();
  if (static_cast<int>(threadIdx.x) < G)
    store_release(reinterpret_cast<uint64_t*>(windows.of[threadIdx.x]) + me, now);
}

__global__ void await_kernel(int me, int G, Windows windows, const volatile int* stop) {
  constexpr int kLooksBetween = 64;
  const auto* const mine = reinterpret_cast<const uint64_t*>(windows.of[me]);
  if (static_cast<int>(threadIdx.x) < G) {
    const uint64_t wanted = mine[kMaxPeers];
    for (int looks = 0; load_acquire(mine + threadIdx.x) < wanted; ++looks) {
      if (looks % kLooksBetween == kLooksBetween - 1 && stop != nullptr && *stop != 0) break;
      __nanosleep(20);
    }
  }
  __syncthreads();
  __threadfence_system();
}

}  // namespace

void peer_places(Context& ctx, int64_t slots, In counts, Acc copy_of_rank, Acc copy_of_choice,
                 Acc sent) {
  const int64_t n = copy_of_rank.num_elements(), m = copy_of_choice.num_elements();
  places_kernel<<<static_cast<unsigned>(std::clamp<int64_t>(ceil_div(n + m, kThreads), 1, 256)),
                  kThreads, 0, stream_of(ctx)>>>(
      n, m, slots, static_cast<int>(counts.dim(0)), counts.dim(1), counts.data<int64_t>(),
      copy_of_rank.data<int32_t>(), copy_of_choice.data<int32_t>(), sent.data<int64_t>(),
      sent.stride(0));
  check_launch(ctx, "peer_places", copy_of_rank);
}

void peer_arrivals(Context& ctx, In ids, Out place) {
  const int64_t N = ids.dim(0);
  if (N == 0) return;
  arrivals_kernel<<<blocks_for(N, kThreads), kThreads, 0, stream_of(ctx)>>>(
      N, ids.dim(1), ids.data<int32_t>(), place.data<int32_t>());
  check_launch(ctx, "peer_arrivals", ids);
}

void peer_put(Context& ctx, const PeerView& view, int64_t offset, int64_t slots, int blocks, In x,
              In place) {
  if (x.num_bytes() == 0 || place.dim(1) == 0) return;
  const int64_t bytes = x.num_bytes() / x.dim(0);
  const auto put = [&]<class Unit>(Unit) {
    launch_put<Unit>(ctx, view, offset, slots, blocks, x, place);
  };
  if (bytes % 16 == 0)
    put(uint4{});
  else if (bytes % 8 == 0)
    put(uint64_t{});
  else if (bytes % 4 == 0)
    put(uint32_t{});
  else
    put(uint8_t{});
  check_launch(ctx, "peer_put", x);
}

void peer_post(Context& ctx, const PeerView& view, int64_t offset) {
  post_kernel<<<1, kWarp, 0, stream_of(ctx)>>>(view.place, view.size, windows_at(view, offset));
  check_launch(ctx, "peer_post", Tensor());
}

void peer_await(Context& ctx, const PeerView& view, int64_t offset, const int* stop) {
  await_kernel<<<1, kWarp, 0, stream_of(ctx)>>>(view.place, view.size, windows_at(view, offset),
                                                stop);
  check_launch(ctx, "peer_await", Tensor());
}

}  // namespace hadal::ops::cuda
