// Max-min fair rates: every flow as fast as it can be without slowing a slower one.
//
// Progressive filling: all rates grow together; where a link is full, the flows on it stop growing.
// A flow may use less than its rate on a link (sprayed) or more (it stands for several flows).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hadal::plan::network {

// Which flow uses which link, both ways, in compressed rows.
struct Incidence {
  struct Use {
    uint32_t other;  // link of a flow's row, flow of a link's row
    double amount;   // bytes on the link for each byte of the flow's rate
  };
  std::vector<double> capacity;    // [links]
  std::vector<size_t> flow_begin;  // [flows + 1]
  std::vector<Use> of_flow;        // links, flow by flow
  std::vector<size_t> link_begin;  // [links + 1]
  std::vector<Use> of_link;        // flows, link by link

  size_t num_flows() const { return flow_begin.size() - 1; }
  size_t num_links() const { return capacity.size(); }
  std::span<const Use> links_of(size_t flow) const {
    return std::span(of_flow).subspan(flow_begin[flow], flow_begin[flow + 1] - flow_begin[flow]);
  }
  std::span<const Use> flows_of(size_t link) const {
    return std::span(of_link).subspan(link_begin[link], link_begin[link + 1] - link_begin[link]);
  }
  // Fills of_link from of_flow and capacity.
  void index_links();
};

// Rates of the flows of `active`, which are the only ones that send; others keep their value in
// `rates`. A flow that uses no link gets an infinite rate.
class MaxMin {
 public:
  explicit MaxMin(const Incidence& incidence);
  void solve(std::span<const uint32_t> active, std::vector<double>& rates);

 private:
  const Incidence& incidence_;
  std::vector<double> left_, growing_;  // [links]  capacity left, use by flows that still grow
  std::vector<uint32_t> num_growing_;   // [links]
  std::vector<uint8_t> grows_;          // [flows]
};

}  // namespace hadal::plan::network
