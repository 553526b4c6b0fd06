// Sums over the ranks inside a kernel (ops/peer.h, PeerSums).
//
// A thread has one line at a time: it stores its word for all other ranks, then waits for theirs.
// So no block waits for another one of its kernel, but for those of the same index of other ranks,
// which come to run as this one did.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "ops/peer.h"

namespace hadal::cuda {

struct PeerSumArgs {
  // The head of each window: the number of the last sum, and blocks of this one that are done.
  uint32_t* head[ops::kMaxSumPeers];
  int me, size;   // size 0: there is nobody else
  int64_t lines;  // of a rank, in each half
  const volatile int* stop;
};

inline PeerSumArgs peer_sum_args(const ops::PeerSums* sums) {
  PeerSumArgs args{};
  if (sums == nullptr) return args;
  args.me = sums->view.place;
  args.size = sums->view.size;
  args.lines = sums->lines;
  args.stop = sums->stop;
  for (int g = 0; g < args.size; ++g)
    args.head[g] = static_cast<uint32_t*>(sums->view.window[static_cast<size_t>(g)]);
  return args;
}

// Of the sum that this kernel makes. Never 0, which lines are at first.
__device__ inline uint32_t peer_sum_number(const PeerSumArgs& args) {
  const uint32_t last = *reinterpret_cast<volatile uint32_t*>(args.head[args.me]);
  return last == 0xffffffffu ? 2 : last + 1;
}
// For one thread, when all of the grid have asked for the number.
__device__ inline void peer_sum_is_made(const PeerSumArgs& args, uint32_t number) {
  args.head[args.me][0] = number;
}
// The same without a barrier of the grid: for one thread of each block, when its own have asked.
__device__ inline void peer_sum_is_made(const PeerSumArgs& args, uint32_t number, int blocks) {
  uint32_t* const head = args.head[args.me];
  if (atomicAdd(head + 1, 1u) != static_cast<uint32_t>(blocks) - 1) return;
  head[1] = 0;
  head[0] = number;
}

__device__ __forceinline__ uint64_t* peer_sum_line(const PeerSumArgs& args, uint32_t number,
                                                   int window, int from, int64_t line) {
  auto* const lines =
      reinterpret_cast<uint64_t*>(reinterpret_cast<char*>(args.head[window]) + ops::kPeerSumsHead);
  return lines + ((number & 1) * args.size + from) * args.lines + line;
}

// A line with the number of its sum above its word.
__device__ __forceinline__ uint64_t peer_line_of(uint32_t number, uint32_t word) {
  return static_cast<uint64_t>(number) << 32 | word;
}
// The same line for rank g.
__device__ __forceinline__ void put_peer_line(const PeerSumArgs& args, uint32_t number, int g,
                                              int64_t line, uint64_t value) {
  asm volatile(
      "st.relaxed.sys.global.u64 [%0], %1;" ::"l"(peer_sum_line(args, number, g, args.me, line)),
      "l"(value)
      : "memory");
}
// What rank g's line is by now.
__device__ __forceinline__ uint64_t look_at_peer_line(const PeerSumArgs& args, uint32_t number,
                                                      int g, int64_t line) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];"
               : "=l"(value)
               : "l"(peer_sum_line(args, number, args.me, g, line))
               : "memory");
  return value;
}
// Its word, once it is there. got: look_at_peer_line(); looks: of this thread, 0 at first.
__device__ __forceinline__ uint32_t await_peer_line(const PeerSumArgs& args, uint32_t number, int g,
                                                    int64_t line, uint64_t got, int& looks) {
  // How often a line is looked at before the host's flag, which lies across PCIe: a read of it by
  // each thread of a grid takes longer than the sum.
  constexpr int kLooks = 2000, kLooksBetween = 32;
  while (got >> 32 != number) {
    if (++looks > kLooks) {
      // One of the warp's threads that still wait; then the next one.
      const bool asks =
          __ffs(static_cast<int>(__activemask())) - 1 == static_cast<int>(threadIdx.x % 32);
      if (looks % kLooksBetween == 0 && asks && args.stop != nullptr && *args.stop != 0) break;
      __nanosleep(200);
    }
    got = look_at_peer_line(args, number, g, line);
  }
  return static_cast<uint32_t>(got);
}

// words[g] = the word of each rank g.
__device__ __forceinline__ void peer_words(const PeerSumArgs& args, uint32_t number, int64_t line,
                                           uint32_t word, uint32_t (&words)[ops::kMaxSumPeers]) {
  const uint64_t mine = peer_line_of(number, word);
#pragma unroll
  for (int g = 0; g < ops::kMaxSumPeers; ++g)
    if (g < args.size && g != args.me) put_peer_line(args, number, g, line, mine);
  uint64_t got[ops::kMaxSumPeers];
#pragma unroll
  for (int g = 0; g < ops::kMaxSumPeers; ++g)
    got[g] = g < args.size && g != args.me ? look_at_peer_line(args, number, g, line) : mine;
  int looks = 0;
#pragma unroll
  for (int g = 0; g < ops::kMaxSumPeers; ++g)
    words[g] = await_peer_line(args, number, g, line, got[g], looks);
}

// The words' sum in rank order: one f32, or two bf16 that are added in f32 and rounded once.
template <bool is_f32>
__device__ __forceinline__ uint32_t peer_total(const uint32_t (&words)[ops::kMaxSumPeers],
                                               int size) {
  if constexpr (is_f32) {
    float total = __uint_as_float(words[0]);
#pragma unroll
    for (int g = 1; g < ops::kMaxSumPeers; ++g)
      if (g < size) total += __uint_as_float(words[g]);
    return __float_as_uint(total);
  } else {
    uint32_t out = 0;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const auto term = [&](int g) { return __uint_as_float(words[g] >> 16 * j << 16); };
      float total = term(0);
#pragma unroll
      for (int g = 1; g < ops::kMaxSumPeers; ++g)
        if (g < size) total += term(g);
      out |= static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16(total))) << 16 * j;
    }
    return out;
  }
}

// The sum of the ranks' terms, in rank order.
__device__ __noinline__ inline float peer_sum_of(const PeerSumArgs& args, uint32_t number,
                                                 int64_t line, float term) {
  uint32_t words[ops::kMaxSumPeers];
  peer_words(args, number, line, __float_as_uint(term), words);
  return __uint_as_float(peer_total<true>(words, args.size));
}

}  // namespace hadal::cuda
