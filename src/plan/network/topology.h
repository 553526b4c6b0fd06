// Sizes and costs of network topologies built from one kind of switch: the ISCA'25 paper's Table 3.
//
//   k ports of a switch
//
//   fat_tree2     k^2/2 endpoints, 3k/2 switches          multi_plane   `planes` of those, apart
//   fat_tree3     k^3/4 endpoints, 5k^2/4 switches        multi_rail    as fat_tree2, rails on
//   leaves slim_fly      2q^2 switches of network radix (3q-d)/2, q = 4w+d the largest that k ports
//   allow,
//                 half as many endpoints on each, rounded up
//   dragonfly     balanced: p = h = floor((k+1)/4) endpoints and global links of a switch, groups
//   of
//                 a = 2p switches, `groups` of them (a*h + 1 at most)
//
// "Links" joins switches only, as in the paper; each endpoint has one more to its switch.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hadal::plan::network {

struct Topology {
  std::string name;  // as printed: "MPFT"
  std::string kind;  // one of the above
  int64_t switch_ports = 64;
  int64_t planes = 1;
  int64_t groups = 0;  // of a dragonfly; 0: as many as its global links reach
};

struct TopologySize {
  int64_t endpoints = 0, switches = 0, links = 0;
};

// Dollars of one piece. The paper prints no unit prices: see `source`.
struct UnitPrices {
  double switch_dollars = 0.0;
  double link_dollars = 0.0;      // cable and both transceivers between two switches
  double endpoint_dollars = 0.0;  // cable and transceivers between an endpoint and its switch
  std::string source;
};

// The largest network of this kind. Throws an Error for a kind or a number that cannot be.
TopologySize size_of(const Topology& topology);
double cost_dollars(const TopologySize& size, const UnitPrices& prices);

// q of the largest Slim Fly on switches of k ports.
int64_t slim_fly_q(int64_t switch_ports);

// What `hadal plan network` prints: configs/networks/*.json.
struct TopologyTable {
  UnitPrices prices;
  std::vector<Topology> rows;
};
TopologyTable read_topologies(const std::string& path);

}  // namespace hadal::plan::network
