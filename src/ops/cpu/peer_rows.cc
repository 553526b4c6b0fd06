// Rows through windows on the CPU: threads or processes that share memory.
//
//   G ranks
// SPDX-License-Identifier: Apache-2.0
#include "ops/peer_rows.h"

#include <algorithm>
#include <vector>

#include "ops/cpu/peer_lines.h"

namespace hadal::ops::cpu {
namespace {

// Where each rank's words begin, and their end.
std::vector<int64_t> words_of(std::span<const int64_t> bounds, DType dtype) {
  std::vector<int64_t> words;
  for (const int64_t bound : bounds)
    words.push_back(bound * static_cast<int64_t>(dtype_size(dtype)) / 4);
  return words;
}

}  // namespace

void peer_gather(Context&, const PeerSums& sums, std::span<const int64_t> bounds, In x, Out y) {
  const std::vector<int64_t> begin = words_of(bounds, y.dtype());
  const auto count = [&](int64_t g) {
    return begin[static_cast<size_t>(g) + 1] - begin[static_cast<size_t>(g)];
  };
  const int64_t G = sums.view.size, me = sums.view.place;
  const PeerLines lines(sums);
  const auto* const own = static_cast<const uint32_t*>(x.raw());
  for (int64_t g = 0; g < G; ++g)
    for (int64_t i = 0; g != me && i < std::max<int64_t>(1, count(me)); ++i)
      lines.put(g, i, i < count(me) ? own[i] : 0);
  auto* const all = static_cast<uint32_t*>(y.raw());
  for (int64_t g = 0; g < G; ++g)
    for (int64_t i = 0; i < std::max<int64_t>(1, count(g)); ++i) {
      uint32_t word = g == me && i < count(me) ? own[i] : 0;
      if (g != me && !lines.get(g, i, &word)) return;
      if (i < count(g)) all[begin[static_cast<size_t>(g)] + i] = word;
    }
}

void peer_sum_scatter(Context&, const PeerSums& sums, std::span<const int64_t> bounds, In x,
                      Out y) {
  const std::vector<int64_t> begin = words_of(bounds, x.dtype());
  const auto count = [&](int64_t g) {
    return begin[static_cast<size_t>(g) + 1] - begin[static_cast<size_t>(g)];
  };
  const int64_t G = sums.view.size, me = sums.view.place;
  const PeerLines lines(sums);
  const auto* const terms = static_cast<const uint32_t*>(x.raw());
  for (int64_t g = 0; g < G; ++g)
    for (int64_t i = 0; g != me && i < std::max<int64_t>(1, count(g)); ++i)
      lines.put(g, i, i < count(g) ? terms[begin[static_cast<size_t>(g)] + i] : 0);
  auto* const out = static_cast<uint32_t*>(y.raw());
  for (int64_t i = 0; i < std::max<int64_t>(1, count(me)); ++i) {
    WordSum sum(x.dtype());
    for (int64_t g = 0; g < G; ++g) {
      uint32_t word = i < count(me) ? terms[begin[static_cast<size_t>(me)] + i] : 0;
      if (g != me && !lines.get(g, i, &word)) return;
      sum.add(word);
    }
    if (i < count(me)) out[i] = sum.word();
  }
}

}  // namespace hadal::ops::cpu
