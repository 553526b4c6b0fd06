// Transfers through windows on CUDA: stores over NVLink, and marks with release and acquire of the
// whole system.
//
//   G ranks   N places   T tokens   K choices of a token   C places of a row   E experts of a rank
// SPDX-License-Identifier: Apache-2.0
#include "core/pinned.h"
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/pair_launch.cuh"
#include "ops/cuda/detail/peer_sum.cuh"
#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/shared_bytes.h"
#include "ops/cuda/detail/warp_counts.cuh"
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

// ---- where tokens go ---------------------------------------------------------------------------

constexpr int kRouteThreads = 1024;  // of a block that fills the slots of a rank
static_assert(kRouteThreads / kWarp == kWarp);
constexpr const char* kNoRank = "choice {0} of token {1} is expert {2}, which no rank has";

// Four choices, in one store over a link.
template <class T>
struct alignas(16) Four {
  T of[4];
};

// What a slot says of its token's choices.
template <class R>
struct Slots {
  int32_t* ids;
  R* weights;
  int K;
  template <class Choice>  // choice(k, &id, &weight)
  __device__ void put(int64_t slot, const Choice& choice) const {
    int k = 0;
    for (; K % 4 == 0 && k < K; k += 4) {
      Four<int32_t> four_ids;
      Four<R> four_weights;
#pragma unroll
      for (int i = 0; i < 4; ++i) choice(k + i, four_ids.of[i], four_weights.of[i]);
      *reinterpret_cast<Four<int32_t>*>(ids + slot * K + k) = four_ids;
      *reinterpret_cast<Four<R>*>(weights + slot * K + k) = four_weights;
    }
    for (; k < K; ++k) choice(k, ids[slot * K + k], weights[slot * K + k]);
  }
};

// Block g finds the tokens that go to rank g and gives them slots in token order: a running count
// over pieces of a token a thread, and within a piece the matches of earlier threads. Block 0 also
// says what goes nowhere.
template <class R>
__global__ void __launch_bounds__(kRouteThreads)
    route_kernel(int64_t T, int K, int C, int64_t E, int64_t slots, int me, Windows ids_of,
                 Windows weights_of, Array<const int32_t> ids, Array<const R> weights,
                 int32_t* place_of_rank, int32_t* place_of_choice, int64_t* sent,
                 int64_t sent_stride, FaultSite fault) {
  __shared__ int in_warp[2][kWarp];
  const int g = static_cast<int>(blockIdx.x), G = static_cast<int>(gridDim.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Slots<R> to{reinterpret_cast<int32_t*>(ids_of.of[g]) + me * slots * K,
                    reinterpret_cast<R*>(weights_of.of[g]) + me * slots * K, K};
  int64_t next = 0;
  int turn = 0;
  for (int64_t begin = 0; begin < T; begin += kRouteThreads, turn ^= 1) {
    const int64_t t = begin + threadIdx.x;
    int before = 0, ranks = 0;  // of the token: those below g, and all
    int64_t last = -1;
    bool goes = false;
    for (int k = 0; t < T && k < K; ++k) {
      const int32_t expert = ids.row(t)[k];
      const bool left_out = expert < 0 || expert >= G * E;
      if (left_out && g == 0) {
        place_of_choice[t * K + k] = -1;
        if (expert != -1)
          fault.raise(static_cast<double>(k), static_cast<double>(t), static_cast<double>(expert));
      }
      if (left_out || expert / E == last) continue;
      last = expert / E;
      before += last < g ? 1 : 0;
      goes = goes || last == g;
      ++ranks;
    }
    for (int c = ranks; g == 0 && t < T && c < C; ++c) place_of_rank[t * C + c] = -1;
    const unsigned matches = __ballot_sync(0xffffffffu, goes);
    if (lane == 0) in_warp[turn][warp] = __popc(matches);
    __syncthreads();
    const WarpCounts counted = add_warp_counts(in_warp[turn], warp, lane);
    if (goes && before < C) {
      const int64_t slot = next + counted.before + __popc(matches & ((1u << lane) - 1u));
      const auto place = static_cast<int32_t>(g * slots + slot);
      place_of_rank[t * C + before] = place;
      to.put(slot, [&](int k, int32_t& id, R& weight) {
        const int32_t expert = ids.row(t)[k];
        const bool mine = expert >= 0 && expert / E == g;
        id = mine ? static_cast<int32_t>(expert % E) : -1;
        weight = mine ? weights.row(t)[k] : R(0);
        if (mine) place_of_choice[t * K + k] = place;
      });
    }
    next += counted.all;
  }
  for (int64_t slot = next + threadIdx.x; slot < slots; slot += kRouteThreads)
    to.put(slot, [](int, int32_t& id, R& weight) {
      id = -1;
      weight = R(0);
    });
  if (threadIdx.x != 0) return;
  sent[g * sent_stride] += next;
  if (g == 0) sent[G * sent_stride] += T;
}

// The same where token t has slot t everywhere. A choice a thread; then the ranks of a token.
template <class R>
__global__ void __launch_bounds__(kThreads)
    route_of_token_kernel(int64_t T, int K, int C, int64_t E, int64_t slots, int me, int G,
                          Windows ids_of, Windows weights_of, Array<const int32_t> ids,
                          Array<const R> weights, int32_t* place_of_rank, int32_t* place_of_choice,
                          int64_t* sent, int64_t sent_stride, FaultSite fault) {
  __shared__ int visits[kMaxPeers];
  if (threadIdx.x < kMaxPeers) visits[threadIdx.x] = 0;
  __syncthreads();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < slots * K; i += step) {
    const int64_t t = i / K, k = i % K;
    const int32_t expert = t < T ? ids.row(t)[k] : -1;
    const bool goes = expert >= 0 && expert < G * E;
    if (!goes && expert != -1)
      fault.raise(static_cast<double>(k), static_cast<double>(t), static_cast<double>(expert));
    const int to = goes ? static_cast<int>(expert / E) : -1;
    const R weight = goes ? weights.row(t)[k] : R(0);
    if (t < T) place_of_choice[i] = goes ? static_cast<int32_t>(to * slots + t) : -1;
    for (int g = 0; g < G; ++g) {
      reinterpret_cast<int32_t*>(ids_of.of[g])[me * slots * K + i] =
          to == g ? static_cast<int32_t>(expert % E) : -1;
      reinterpret_cast<R*>(weights_of.of[g])[me * slots * K + i] = to == g ? weight : R(0);
    }
  }
  for (int64_t t = first; t < T; t += step) {
    int ranks = 0;
    int64_t last = -1;
    for (int k = 0; k < K; ++k) {
      const int32_t expert = ids.row(t)[k];
      if (expert < 0 || expert >= G * E || expert / E == last || ranks == C) continue;
      last = expert / E;
      place_of_rank[t * C + ranks++] = static_cast<int32_t>(last * slots + t);
      atomicAdd(&visits[last], 1);
    }
    for (; ranks < C; ++ranks) place_of_rank[t * C + ranks] = -1;
  }
  if (first == 0) sent[G * sent_stride] += T;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < G && visits[threadIdx.x] > 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(sent + threadIdx.x * sent_stride),
              static_cast<unsigned long long>(visits[threadIdx.x]));
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

constexpr int kHeldBytes = 112 * 1024;  // of an SM's shared memory, for rows on their way
constexpr int kMostHeld = 32;           // rows: a warp each

// Through the copy engine: the first lane of a warp fetches a row into shared memory and has it
// stored at each of its places. It takes few SMs to fill the links, as no thread waits for a store
// and each row is read once.
//
// Rows that go back to where they came from lie rank by rank: taken in that order, all ranks would
// send to one at a time. So they are taken from G parts of x in turns, this rank's first.
__global__ void __launch_bounds__(kMostHeld* kWarp)
    put_rows_kernel(int64_t rows, int C, uint32_t bytes, int slots, int me, int G, Windows windows,
                    const char* x, const int32_t* place) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char held[];
  __shared__ uint64_t arrived[kMostHeld];
  if (threadIdx.x % kWarp != 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  char* const row = held + static_cast<int64_t>(warp) * bytes;
  uint64_t* const bar = &arrived[warp];
  hadal::cuda::barrier_init(bar, 1);
  hadal::cuda::barrier_init_fence();
  uint32_t parity = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * warps;
  const int64_t part = rows / G, in_turns = part * G;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * warps + warp; i < rows; i += step) {
    const int64_t t = i < in_turns ? (i + me) % G * part + i / G : i;
    bool any = false;
    for (int c = 0; c < C; ++c) any = any || place[t * C + c] >= 0;
    if (!any) continue;
    hadal::cuda::barrier_expect(bar, bytes);
    hadal::cuda::copy_bytes(row, x + t * bytes, bytes, bar);
    hadal::cuda::barrier_wait(bar, parity);
    parity ^= 1;
    for (int c = 0; c < C; ++c) {
      const int p = place[t * C + c];
      if (p < 0 || p >= G * slots) continue;
      hadal::cuda::store_bytes(
          windows.of[p / slots] + (static_cast<int64_t>(me) * slots + p % slots) * bytes, row,
          bytes);
    }
    hadal::cuda::bulk_commit();
    hadal::cuda::bulk_wait_read<0>();
  }
  hadal::cuda::bulk_wait_all();
#endif
}

void put_rows(Context& ctx, const PeerView& view, int64_t offset, int64_t slots, int blocks,
              const Tensor& x, const Tensor& place) {
  const int64_t rows = x.dim(0), bytes = x.num_bytes() / rows;
  const int64_t held = std::min<int64_t>(kMostHeld, kHeldBytes / bytes);
  const int64_t warps = std::min(held, ceil_div(rows, static_cast<int64_t>(blocks)));
  hadal::cuda::allow_shared_bytes<put_rows_kernel, kHeldBytes>();
  launch_in_pairs(ctx, put_rows_kernel,
                  static_cast<int>(std::min<int64_t>(blocks, ceil_div(rows, warps))),
                  static_cast<int>(warps) * kWarp, static_cast<size_t>(warps * bytes), rows,
                  static_cast<int>(place.dim(1)), static_cast<uint32_t>(bytes),
                  static_cast<int>(slots), view.place, view.size, windows_at(view, offset),
                  static_cast<const char*>(x.raw()), place.data<int32_t>());
}

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
                  kPutThreads, 0, rows, C,
                  x.num_bytes() / rows / static_cast<int64_t>(sizeof(Unit)), slots, view.place,
                  view.size, windows_at(view, offset), static_cast<const Unit*>(x.raw()),
                  place.data<int32_t>());
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

__global__ void posts_kernel(const uint64_t* mine, int64_t* posts) {
  *posts = static_cast<int64_t>(mine[kMaxPeers]);
}

// ---- sums --------------------------------------------------------------------------------------

using hadal::cuda::PeerSumArgs;

// A word a thread: an f32, or two bf16, the last one perhaps alone.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ PeerSumArgs sums, int64_t n, T* x) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
  const uint32_t number = hadal::cuda::peer_sum_number(sums);
  const int64_t line = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (line * kPerWord < n) {
    T* const at = x + line * kPerWord;
    const bool is_whole = line * kPerWord + kPerWord <= n;
    const uint32_t word =
        is_whole ? *reinterpret_cast<const uint32_t*>(at) : *reinterpret_cast<const uint16_t*>(at);
    uint32_t words[kMaxSumPeers];
    peer_words(sums, number, line, word, words);
    const uint32_t total = hadal::cuda::peer_total<kPerWord == 1>(words, sums.size);
    if (is_whole)
      *reinterpret_cast<uint32_t*>(at) = total;
    else
      *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(total);
  }
  __syncthreads();
  if (threadIdx.x == 0) peer_sum_is_made(sums, number, static_cast<int>(gridDim.x));
}

}  // namespace

void peer_sum(Context& ctx, const PeerSums& sums, Acc x) {
  const auto blocks = static_cast<unsigned>(ceil_div(peer_sum_lines(x), kThreads));
  const PeerSumArgs args = hadal::cuda::peer_sum_args(&sums);
  if (x.dtype() == DType::kF32)
    sum_kernel<<<blocks, kThreads, 0, stream_of(ctx)>>>(args, x.num_elements(), x.data<float>());
  else
    sum_kernel<<<blocks, kThreads, 0, stream_of(ctx)>>>(args, x.num_elements(),
                                                        static_cast<__nv_bfloat16*>(x.raw()));
  check_launch(ctx, "peer_sum", x);
}

void peer_route(Context& ctx, const PeerView& view, int64_t ids_offset, int64_t weights_offset,
                int64_t slots, PeerSlots order, int64_t experts_of_rank, In ids, In weights,
                Out place_of_rank, Out place_of_choice, Acc sent) {
  const int K = static_cast<int>(ids.dim(1)), C = static_cast<int>(place_of_rank.dim(1));
  const Windows ids_of = windows_at(view, ids_offset),
                weights_of = windows_at(view, weights_offset);
  with_arithmetic({weights.dtype()}, [&]<class R>(R) {
    const Array<const int32_t> choices(ids);
    const Array<const R> factors(weights);
    const FaultSite fault(ctx, kNoRank);
    if (order == PeerSlots::kOfToken)
      route_of_token_kernel<R><<<blocks_for(slots * K, kThreads), kThreads, 0, stream_of(ctx)>>>(
          ids.dim(0), K, C, experts_of_rank, slots, view.place, view.size, ids_of, weights_of,
          choices, factors, place_of_rank.data<int32_t>(), place_of_choice.data<int32_t>(),
          sent.data<int64_t>(), sent.stride(0), fault);
    else
      route_kernel<R><<<static_cast<unsigned>(view.size), kRouteThreads, 0, stream_of(ctx)>>>(
          ids.dim(0), K, C, experts_of_rank, slots, view.place, ids_of, weights_of, choices,
          factors, place_of_rank.data<int32_t>(), place_of_choice.data<int32_t>(),
          sent.data<int64_t>(), sent.stride(0), fault);
  });
  check_launch(ctx, "peer_route", ids);
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
  const bool wide = bytes % 16 == 0 && reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0;
  if (wide && bytes <= kHeldBytes / 2 && has_sm90(ctx))
    put_rows(ctx, view, offset, slots, blocks, x, place);
  else if (wide)
    put(uint4{});
  else if (bytes % 8 == 0)
    put(uint64_t{});
  else if (bytes % 4 == 0)
    put(uint32_t{});
  else
    put(uint8_t{});
  check_launch(ctx, "peer_put", x);
}

// The rank after this one first, so that each has one at a time that sends to it.
void peer_copy(Context& ctx, const PeerView& view, int64_t offset, int64_t slots, int64_t rows,
               int64_t apart, In x) {
  if (x.num_bytes() == 0 || rows == 0) return;
  const int64_t bytes = x.num_bytes() / x.dim(0);
  const Windows windows = windows_at(view, offset);
  for (int i = 1; i < view.size; ++i) {
    const int g = (view.place + i) % view.size;
    device::copy_on_device(
        ctx.device, ctx.stream, static_cast<const char*>(x.raw()) + g * apart * bytes,
        windows.of[g] + view.place * slots * bytes, static_cast<size_t>(rows * bytes));
  }
  check_launch(ctx, "peer_copy", x);
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

void peer_posts(Context& ctx, const PeerView& view, int64_t offset, Out posts) {
  posts_kernel<<<1, 1, 0, stream_of(ctx)>>>(
      reinterpret_cast<const uint64_t*>(windows_at(view, offset).of[view.place]),
      posts.data<int64_t>());
  check_launch(ctx, "peer_posts", posts);
}

}  // namespace hadal::ops::cuda
