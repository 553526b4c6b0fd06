// Fabric: switches, NICs and GPUs of a cluster as links and paths to simulate.
//
//   N nodes of G GPUs, each GPU with one NIC; NIC i of every node is on plane (or rail) i
//
// Inside a node every GPU has a link into and one out of an NVLink switch that is never full.
// Switches form one graph (planes are parts of it that do not touch). A path between two NICs
// follows shortest ways between their switches, whatever the topology:
//
//   kAdaptive   every byte spread evenly over the next hops that lie on a shortest way
//   kEcmp       one way, picked hop by hop by a hash of the flow
//   kStatic     one way, picked hop by hop by the destination's number: no two destinations of a
//               leaf share an uplink while it has enough of them
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "plan/network/paths.h"

namespace hadal::plan::network {

enum class Routing : uint8_t { kAdaptive, kEcmp, kStatic };
Routing parse_routing(const std::string& name, const char* flag);
const char* routing_name(Routing routing);

// Seconds of a 64-byte message from CPU to CPU (ISCA'25 paper, Table 5).
struct Latency {
  double same_leaf = 2.8e-6, cross_leaf = 3.7e-6, nvlink = 3.33e-6;
};

struct FabricSpec {
  std::string kind =
      "multi_plane";  // multi_plane, multi_rail, fat_tree2, fat_tree3, slim_fly, dragonfly
  int64_t num_nodes = 256;
  int64_t gpus_per_node = 8;
  int64_t switch_ports = 64;
  double nic_bandwidth = 50e9;      // bytes/s and direction, of each network link too
  double nvlink_bandwidth = 160e9;  // bytes/s and direction of a GPU
  Latency latency = {};
};

class Fabric {
 public:
  // Throws an Error that names what does not fit.
  explicit Fabric(const FabricSpec& spec);

  const FabricSpec& spec() const { return spec_; }
  int64_t num_gpus() const { return spec_.num_nodes * spec_.gpus_per_node; }
  uint32_t gpu(int64_t node, int64_t index) const {
    return static_cast<uint32_t>(node * spec_.gpus_per_node + index);
  }
  int64_t node_of(uint32_t gpu) const { return gpu / spec_.gpus_per_node; }
  int64_t index_of(uint32_t gpu) const { return gpu % spec_.gpus_per_node; }

  Paths& paths() { return paths_; }
  const Paths& paths() const { return paths_; }
  uint32_t nvlink_out(uint32_t gpu) const { return nvlink_out_[gpu]; }
  uint32_t nvlink_in(uint32_t gpu) const { return nvlink_in_[gpu]; }
  uint32_t nic_out(uint32_t gpu) const { return nic_out_[gpu]; }
  uint32_t nic_in(uint32_t gpu) const { return nic_in_[gpu]; }

  size_t num_switches() const { return next_.size(); }
  uint32_t switch_of(uint32_t gpu) const { return switch_of_[gpu]; }
  struct SwitchLink {
    uint32_t from, to, link;
    double bytes_per_second;
  };
  // Both directions of every cable between switches.
  const std::vector<SwitchLink>& switch_links() const { return switch_links_; }
  int plane_of_switch(uint32_t s) const { return plane_[s]; }
  const std::string& switch_name(uint32_t s) const { return names_[s]; }

  // What fails carries nothing and is avoided by paths made afterwards.
  void fail_link(uint32_t link);   // one direction
  void fail_nic(uint32_t gpu);     // both directions
  void fail_switch(uint32_t s);    // all its links, and the NICs on it
  void fail_plane(int64_t plane);  // all its switches
  bool nic_works(uint32_t gpu) const { return !failed_[nic_out_[gpu]]; }

  // NIC to NIC. No way: false, and the flow is left alone.
  bool route_network(uint32_t from, uint32_t to, Routing routing, uint64_t hash, Flow& flow);
  // GPU to GPU inside a node; a GPU's copies to itself use its links too if `counts_self`.
  void route_nvlink(uint32_t from, uint32_t to, Flow& flow) const;
  // Latency of the way between two NICs, by the number of switches on it.
  double network_latency(uint32_t from, uint32_t to);

 private:
  uint32_t add_switch(int plane, std::string name);
  void connect(uint32_t a, uint32_t b, int64_t cables);
  void build_fat_tree2(int64_t num_planes, bool is_one_fabric);
  void build_fat_tree3();
  void build_slim_fly();
  void build_dragonfly();
  void attach(uint32_t gpu, uint32_t to_switch);
  const std::vector<uint32_t>& distances_to(uint32_t target);
  uint32_t between_switches(uint32_t from, uint32_t to, Routing routing, uint64_t hash,
                            uint32_t destination);

  FabricSpec spec_;
  Paths paths_;
  std::vector<uint32_t> nvlink_out_, nvlink_in_, nic_out_, nic_in_, switch_of_;  // [GPUs]
  struct Next {
    uint32_t to, link;
  };
  std::vector<std::vector<Next>> next_;  // [switches]  one entry a cable
  std::vector<int> plane_;               // [switches]
  std::vector<std::string> names_;       // [switches]
  std::vector<SwitchLink> switch_links_;
  std::vector<uint8_t> failed_;  // [links]
  std::unordered_map<uint32_t, std::vector<uint32_t>> distances_;
  std::unordered_map<uint64_t, uint32_t> adaptive_;   // from << 32 | to -> piece
  std::map<std::vector<uint32_t>, uint32_t> single_;  // links of one way -> piece
};

}  // namespace hadal::plan::network
