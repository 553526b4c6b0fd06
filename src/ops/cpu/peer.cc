// Transfers through windows on the CPU: threads or processes that share memory.
//
//   G ranks   N places
// SPDX-License-Identifier: Apache-2.0
#include "ops/peer.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "ops/cpu/peer_lines.h"

namespace hadal::ops::cpu {
namespace {

std::byte* part(const PeerView& view, int64_t rank, int64_t offset) {
  return static_cast<std::byte*>(view.window[static_cast<size_t>(rank)]) + offset;
}
uint64_t* marks(const PeerView& view, int64_t rank, int64_t offset) {
  return reinterpret_cast<uint64_t*>(part(view, rank, offset));
}

bool is_stopped(const int* stop) {
  return stop != nullptr &&
         std::atomic_ref<int>(*const_cast<int*>(stop)).load(std::memory_order_relaxed) != 0;
}

template <class R>
void route(const PeerView& view, int64_t ids_offset, int64_t weights_offset, int64_t slots,
           PeerSlots order, int64_t E, const Tensor& ids, const Tensor& weights,
           const Tensor& place_of_rank, const Tensor& place_of_choice, const Tensor& sent) {
  const int64_t T = ids.dim(0), K = ids.dim(1), G = view.size, C = place_of_rank.dim(1);
  std::vector<int64_t> used(static_cast<size_t>(G));  // slots of this rank
  const auto ids_at = [&](int64_t g, int64_t slot) {
    return reinterpret_cast<int32_t*>(part(view, g, ids_offset)) + (view.place * slots + slot) * K;
  };
  const auto weights_at = [&](int64_t g, int64_t slot) {
    return reinterpret_cast<R*>(part(view, g, weights_offset)) + (view.place * slots + slot) * K;
  };
  const auto empty = [&](int64_t g, int64_t slot) {
    std::fill_n(ids_at(g, slot), K, -1);
    std::fill_n(weights_at(g, slot), K, R(0));
  };
  for (int64_t g = 0; g < G; ++g)
    for (int64_t slot = 0; slot < slots; ++slot) empty(g, slot);
  for (int64_t t = 0; t < T; ++t) {
    const int32_t* const choice = ids.data<int32_t>() + t * ids.stride(0);
    const R* const weight = weights.data<R>() + t * weights.stride(0);
    int32_t* const of_rank = place_of_rank.data<int32_t>() + t * C;
    int32_t* const of_choice = place_of_choice.data<int32_t>() + t * K;
    std::fill_n(of_rank, C, -1);
    std::fill_n(of_choice, K, -1);
    int64_t ranks = 0, last = -1, slot = -1;
    for (int64_t k = 0; k < K; ++k) {
      if (choice[k] == -1) continue;
      const int64_t g = choice[k] / E;
      HADAL_CHECK(choice[k] >= 0 && g < G, "choice ", k, " of token ", t, " is expert ", choice[k],
                  ", which no rank has");
      if (g != last) {
        const int64_t next = used[static_cast<size_t>(g)]++;
        slot = order == PeerSlots::kNext ? next : t;
        of_rank[ranks++] = static_cast<int32_t>(g * slots + slot);
        last = g;
      }
      of_choice[k] = static_cast<int32_t>(g * slots + slot);
      ids_at(g, slot)[k] = static_cast<int32_t>(choice[k] % E);
      weights_at(g, slot)[k] = weight[k];
    }
  }
  for (int64_t g = 0; g < G; ++g)
    sent.data<int64_t>()[g * sent.stride(0)] += used[static_cast<size_t>(g)];
  sent.data<int64_t>()[G * sent.stride(0)] += T;
}

}  // namespace

void peer_route(Context&, const PeerView& view, int64_t ids_offset, int64_t weights_offset,
                int64_t slots, PeerSlots order, int64_t experts_of_rank, In ids, In weights,
                Out place_of_rank, Out place_of_choice, Acc sent) {
  const auto run = weights.dtype() == DType::kF64 ? route<double> : route<float>;
  run(view, ids_offset, weights_offset, slots, order, experts_of_rank, ids, weights, place_of_rank,
      place_of_choice, sent);
}

void peer_arrivals(Context&, In ids, Out place) {
  const int64_t N = ids.dim(0), K = ids.dim(1);
  for (int64_t n = 0; n < N; ++n) {
    bool any = false;
    for (int64_t k = 0; k < K; ++k) any = any || ids.data<int32_t>()[n * K + k] >= 0;
    place.data<int32_t>()[n] = any ? static_cast<int32_t>(n) : -1;
  }
}

void peer_put(Context&, const PeerView& view, int64_t offset, int64_t slots, int, In x, In place) {
  const int64_t T = x.dim(0), C = place.dim(1);
  if (x.num_bytes() == 0) return;
  const int64_t bytes = x.num_bytes() / T;
  for (int64_t t = 0; t < T; ++t)
    for (int64_t c = 0; c < C; ++c) {
      const int64_t p = place.data<int32_t>()[t * C + c];
      if (p == -1) continue;
      HADAL_CHECK(p >= 0 && p < view.size * slots, "place ", c, " of row ", t, " is ", p,
                  ", but there are ", view.size * slots);
      std::memcpy(part(view, p / slots, offset) + (view.place * slots + p % slots) * bytes,
                  static_cast<const std::byte*>(x.raw()) + t * bytes, static_cast<size_t>(bytes));
    }
}

void peer_copy(Context&, const PeerView& view, int64_t offset, int64_t slots, int64_t rows,
               int64_t apart, In x) {
  if (x.num_bytes() == 0) return;
  const int64_t bytes = x.num_bytes() / x.dim(0);
  for (int64_t g = 0; g < view.size; ++g)
    if (g != view.place)
      std::memcpy(part(view, g, offset) + view.place * slots * bytes,
                  static_cast<const std::byte*>(x.raw()) + g * apart * bytes,
                  static_cast<size_t>(rows * bytes));
}

void peer_post(Context&, const PeerView& view, int64_t offset) {
  uint64_t& posts = marks(view, view.place, offset)[kMaxPeers];
  ++posts;
  for (int64_t g = 0; g < view.size; ++g)
    std::atomic_ref<uint64_t>(marks(view, g, offset)[view.place])
        .store(posts, std::memory_order_release);
}

void peer_await(Context&, const PeerView& view, int64_t offset, const int* stop) {
  uint64_t* const mine = marks(view, view.place, offset);
  for (int64_t g = 0; g < view.size; ++g)
    while (std::atomic_ref<uint64_t>(mine[g]).load(std::memory_order_acquire) < mine[kMaxPeers]) {
      if (is_stopped(stop)) return;
      std::this_thread::yield();
    }
}

void peer_posts(Context&, const PeerView& view, int64_t offset, Out posts) {
  posts.data<int64_t>()[0] = static_cast<int64_t>(marks(view, view.place, offset)[kMaxPeers]);
}

void peer_sum(Context&, const PeerSums& sums, Acc x) {
  const int64_t words = peer_sum_lines(x), G = sums.view.size, me = sums.view.place;
  const PeerLines lines(sums);
  const int64_t bytes = x.num_bytes();
  auto* const data = static_cast<char*>(x.raw());
  const auto word_bytes = [&](int64_t i) {
    return static_cast<size_t>(std::min<int64_t>(4, bytes - 4 * i));
  };
  const auto own = [&](int64_t i) {
    uint32_t word = 0;
    std::memcpy(&word, data + 4 * i, word_bytes(i));
    return word;
  };
  for (int64_t g = 0; g < G; ++g)
    for (int64_t i = 0; g != me && i < words; ++i) lines.put(g, i, own(i));
  for (int64_t i = 0; i < words; ++i) {
    WordSum sum(x.dtype());
    for (int64_t g = 0; g < G; ++g) {
      uint32_t word = own(i);
      if (g != me && !lines.get(g, i, &word)) return;
      sum.add(word);
    }
    const uint32_t word = sum.word();
    std::memcpy(data + 4 * i, &word, word_bytes(i));
  }
}

}  // namespace hadal::ops::cpu
