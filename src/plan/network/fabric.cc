// Fabric: routes and failures. The graphs of switches are built in fabric_build.cc.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/fabric.h"

#include <algorithm>
#include <limits>

#include "core/check.h"

namespace hadal::plan::network {
namespace {

constexpr uint32_t kFar = std::numeric_limits<uint32_t>::max();

uint64_t spread(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x7FB5D329728EA185u;
  x = (x ^ (x >> 27)) * 0x81DADEF4BC2DD44Du;
  return x ^ (x >> 33);
}

}  // namespace

Routing parse_routing(const std::string& name, const char* flag) {
  for (const Routing r : {Routing::kAdaptive, Routing::kEcmp, Routing::kStatic})
    if (name == routing_name(r)) return r;
  HADAL_FAIL(flag, " is ", name, "; allowed: adaptive, ecmp, static");
}

const char* routing_name(Routing routing) {
  switch (routing) {
    case Routing::kAdaptive:
      return "adaptive";
    case Routing::kEcmp:
      return "ecmp";
    case Routing::kStatic:
      return "static";
  }
  HADAL_UNREACHABLE("routing");
}

void Fabric::fail_link(uint32_t link) {
  failed_[link] = 1;
  paths_.set_capacity(link, 0.0);
  distances_.clear();
  adaptive_.clear();
}

void Fabric::fail_nic(uint32_t gpu) {
  fail_link(nic_out_[gpu]);
  fail_link(nic_in_[gpu]);
}

void Fabric::fail_switch(uint32_t s) {
  for (const SwitchLink& l : switch_links_)
    if (l.from == s || l.to == s) fail_link(l.link);
  for (uint32_t gpu = 0; gpu < switch_of_.size(); ++gpu)
    if (switch_of_[gpu] == s) fail_nic(gpu);
}

void Fabric::fail_plane(int64_t plane) {
  HADAL_CHECK(plane >= 0 && std::find(plane_.begin(), plane_.end(), plane) != plane_.end(),
              "there is no plane ", plane, " in this network");
  for (uint32_t s = 0; s < plane_.size(); ++s)
    if (plane_[s] == plane) fail_switch(s);
}

// Switches between a switch and the target, by breadth-first search over cables that work.
const std::vector<uint32_t>& Fabric::distances_to(uint32_t target) {
  auto& distance = distances_[target];
  if (!distance.empty()) return distance;
  distance.assign(next_.size(), kFar);
  distance[target] = 0;
  std::vector<uint32_t> queue = {target};
  for (size_t i = 0; i < queue.size(); ++i)
    for (const Next& next : next_[queue[i]]) {
      // NOTE: searched from the target, so the cable's other direction is what would be used; both
      // directions of a cable are neighbours in number.
      if (failed_[next.link ^ 1u] || distance[next.to] != kFar) continue;
      distance[next.to] = distance[queue[i]] + 1;
      queue.push_back(next.to);
    }
  return distance;
}

// The piece from one switch to another, kNoPiece if there is no way. REQUIRES: from != to.
uint32_t Fabric::between_switches(uint32_t from, uint32_t to, Routing routing, uint64_t hash,
                                  uint32_t destination) {
  const std::vector<uint32_t>& distance = distances_to(to);
  if (distance[from] == kFar) return kNoPiece;
  const auto next_hops = [&](uint32_t s) {
    std::vector<Next> hops;
    for (const Next& next : next_[s])
      if (!failed_[next.link] && distance[next.to] + 1 == distance[s]) hops.push_back(next);
    return hops;
  };
  if (routing != Routing::kAdaptive) {
    std::vector<uint32_t> links;
    for (uint32_t at = from; at != to;) {
      const std::vector<Next> hops = next_hops(at);
      const uint64_t pick = routing == Routing::kEcmp ? spread(hash ^ spread(at + 1)) : destination;
      const Next& next = hops[pick % hops.size()];
      links.push_back(next.link);
      at = next.to;
    }
    const auto [known, is_new] = single_.try_emplace(links, 0);
    if (is_new) {
      std::vector<Hop> hops;
      for (const uint32_t link : links) hops.push_back({link, 1.0});
      known->second = paths_.add_piece(hops);
    }
    return known->second;
  }
  const auto [known, is_new] = adaptive_.try_emplace(uint64_t{from} << 32 | to, 0);
  if (!is_new) return known->second;
  std::vector<Hop> all;
  std::map<uint32_t, double> here = {{from, 1.0}}, after;  // switch -> share of the bytes
  while (!here.contains(to)) {
    for (const auto& [s, share] : here) {
      const std::vector<Next> hops = next_hops(s);
      const double each = share / static_cast<double>(hops.size());
      for (const Next& next : hops) all.push_back({next.link, each}), after[next.to] += each;
    }
    here.swap(after);
    after.clear();
  }
  return known->second = paths_.add_piece(all);
}

bool Fabric::route_network(uint32_t from, uint32_t to, Routing routing, uint64_t hash, Flow& flow) {
  if (!nic_works(from) || !nic_works(to)) return false;
  const uint32_t a = switch_of_[from], b = switch_of_[to];
  uint32_t middle = kNoPiece;
  if (a != b) {
    middle = between_switches(a, b, routing, hash, to);
    if (middle == kNoPiece) return false;
  }
  const uint32_t last = paths_.piece_of(nic_in_[to]);
  flow.pieces = {paths_.piece_of(nic_out_[from]), a == b ? last : middle, a == b ? kNoPiece : last,
                 kNoPiece};
  return true;
}

void Fabric::route_nvlink(uint32_t from, uint32_t to, Flow& flow) const {
  flow.pieces = {paths_.piece_of(nvlink_out_[from]), paths_.piece_of(nvlink_in_[to]), kNoPiece,
                 kNoPiece};
}

double Fabric::network_latency(uint32_t from, uint32_t to) {
  const uint32_t hops = distances_to(switch_of_[to])[switch_of_[from]];
  const Latency& l = spec_.latency;
  return l.same_leaf + (l.cross_leaf - l.same_leaf) / 2 * hops;
}

}  // namespace hadal::plan::network
