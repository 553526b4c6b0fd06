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

// The words of each rank among those of all.
class Words {
 public:
  Words(std::span<const int64_t> bounds, DType dtype) {
    for (const int64_t bound : bounds)
      begin_.push_back(bound * static_cast<int64_t>(dtype_size(dtype)) / 4);
  }
  int64_t begin(int64_t g) const { return begin_[static_cast<size_t>(g)]; }
  int64_t count(int64_t g) const { return begin(g + 1) - begin(g); }

 private:
  std::vector<int64_t> begin_;
};

}  // namespace

void peer_gather(Context&, const PeerSums& sums, std::span<const int64_t> bounds, In x, Out y) {
  const Words words(bounds, y.dtype());
  const int64_t G = sums.view.size, me = sums.view.place;
  const PeerLines lines(sums);
  const auto* const own = static_cast<const uint32_t*>(x.raw());
  for (int64_t g = 0; g < G; ++g)
    for (int64_t i = 0; g != me && i < std::max<int64_t>(1, words.count(me)); ++i)
      lines.put(g, i, i < words.count(me) ? own[i] : 0);
  auto* const all = static_cast<uint32_t*>(y.raw());
  for (int64_t g = 0; g < G; ++g)
    for (int64_t i = 0; i < std::max<int64_t>(1, words.count(g)); ++i) {
      uint32_t word = g == me && i < words.count(me) ? own[i] : 0;
      if (g != me && !lines.get(g, i, &word)) return;
      if (i < words.count(g)) all[words.begin(g) + i] = word;
    }
}

void peer_sum_scatter(Context&, const PeerSums& sums, std::span<const int64_t> bounds, In x,
                      Out y) {
  const Words words(bounds, x.dtype());
  const int64_t G = sums.view.size, me = sums.view.place;
  const PeerLines lines(sums);
  const auto* const terms = static_cast<const uint32_t*>(x.raw());
  for (int64_t g = 0; g < G; ++g)
    for (int64_t i = 0; g != me && i < std::max<int64_t>(1, words.count(g)); ++i)
      lines.put(g, i, i < words.count(g) ? terms[words.begin(g) + i] : 0);
  auto* const out = static_cast<uint32_t*>(y.raw());
  for (int64_t i = 0; i < std::max<int64_t>(1, words.count(me)); ++i) {
    WordSum sum(x.dtype());
    for (int64_t g = 0; g < G; ++g) {
      uint32_t word = i < words.count(me) ? terms[words.begin(me) + i] : 0;
      if (g != me && !lines.get(g, i, &word)) return;
      sum.add(word);
    }
    if (i < words.count(me)) out[i] = sum.word();
  }
}

}  // namespace hadal::ops::cpu
