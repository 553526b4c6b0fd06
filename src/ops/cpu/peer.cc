// Transfers through windows on the CPU: threads or processes that share memory.
//
//   G ranks   N places
// SPDX-License-Identifier: Apache-2.0
#include "ops/peer.h"

#include <atomic>
#include <cstring>
#include <thread>

namespace hadal::ops::cpu {
namespace {

std::byte* part(const PeerView& view, int64_t rank, int64_t offset) {
  return static_cast<std::byte*>(view.window[static_cast<size_t>(rank)]) + offset;
}
uint64_t* marks(const PeerView& view, int64_t rank, int64_t offset) {
  return reinterpret_cast<uint64_t*>(part(view, rank, offset));
}

}  // namespace

void peer_places(Context&, int64_t slots, In counts, Acc copy_of_rank, Acc copy_of_choice,
                 Acc sent) {
  const int64_t G = counts.dim(0), columns = counts.dim(1);
  const auto move = [&](const Tensor& copies) {
    for (int64_t i = 0; i < copies.num_elements(); ++i) {
      int32_t& copy = copies.data<int32_t>()[i];
      if (copy < 0) continue;
      int64_t g = 0, first = 0;
      while (g + 1 < G && copy >= first + counts.data<int64_t>()[g * columns])
        first += counts.data<int64_t>()[g++ * columns];
      copy = static_cast<int32_t>(g * slots + copy - first);
    }
  };
  move(copy_of_rank);
  move(copy_of_choice);
  for (int64_t g = 0; g < G; ++g)
    sent.data<int64_t>()[g * sent.stride(0)] += counts.data<int64_t>()[g * columns];
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
      if (stop != nullptr &&
          std::atomic_ref<int>(*const_cast<int*>(stop)).load(std::memory_order_relaxed) != 0)
        return;
      std::this_thread::yield();
    }
}

}  // namespace hadal::ops::cpu
