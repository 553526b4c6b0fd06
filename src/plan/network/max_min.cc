// Progressive filling with a heap of the links by the rate at which they are full.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/max_min.h"

#include <algorithm>
#include <limits>
#include <queue>

namespace hadal::plan::network {

void Incidence::index_links() {
  link_begin.assign(capacity.size() + 1, 0);
  for (const Use& use : of_flow) ++link_begin[use.other + 1];
  for (size_t l = 0; l < capacity.size(); ++l) link_begin[l + 1] += link_begin[l];
  of_link.resize(of_flow.size());
  std::vector<size_t> next(link_begin.begin(), link_begin.end() - 1);
  for (size_t f = 0; f < num_flows(); ++f)
    for (const Use& use : links_of(f))
      of_link[next[use.other]++] = {static_cast<uint32_t>(f), use.amount};
}

MaxMin::MaxMin(const Incidence& incidence)
    : incidence_(incidence),
      left_(incidence.num_links()),
      growing_(incidence.num_links(), 0.0),
      num_growing_(incidence.num_links(), 0),
      grows_(incidence.num_flows(), 0) {}

void MaxMin::solve(std::span<const uint32_t> active, std::vector<double>& rates) {
  std::vector<uint32_t> links;
  for (const uint32_t f : active) {
    grows_[f] = 1;
    rates[f] = std::numeric_limits<double>::infinity();
    for (const auto& use : incidence_.links_of(f)) {
      if (num_growing_[use.other]++ == 0) {
        links.push_back(use.other);
        left_[use.other] = incidence_.capacity[use.other];
        growing_[use.other] = 0.0;
      }
      growing_[use.other] += use.amount;
    }
  }
  using Full = std::pair<double, uint32_t>;  // rate at which the link is full, link
  std::priority_queue<Full, std::vector<Full>, std::greater<>> next;
  const auto level = [&](uint32_t l) { return std::max(0.0, left_[l]) / growing_[l]; };
  for (const uint32_t l : links) next.push({level(l), l});
  double filled = 0.0;
  while (!next.empty()) {
    const auto [rate, link] = next.top();
    next.pop();
    if (num_growing_[link] == 0) continue;
    if (const double now = level(link); now > rate) {  // an old entry: levels only rise
      next.push({now, link});
      continue;
    }
    filled = std::max(filled, rate);
    for (const auto& use : incidence_.flows_of(link)) {
      if (!grows_[use.other]) continue;
      grows_[use.other] = 0;
      rates[use.other] = filled;
      for (const auto& [l, amount] : incidence_.links_of(use.other)) {
        left_[l] -= amount * filled;
        growing_[l] -= amount;
        --num_growing_[l];
      }
    }
  }
  for (const uint32_t f : active) grows_[f] = 0;
}

}  // namespace hadal::plan::network
