// Traffic: the flows of collectives over a fabric, with relays around what has failed.
//
// A transfer between nodes uses the plane of the GPU it is for (all-to-all, as NCCL does with PXN)
// or of the GPU it comes from (dispatch and combine, as DeepEP does), with NVLink legs inside both
// nodes as needed. Where that plane does not join the two nodes any more, the bytes are spread
// evenly over the planes that do. Legs of one transfer run at the same time, as chunks are passed
// on at once (DeepSeek-V3 report 3.2.2), so a collective ends when its slowest leg does.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

#include "plan/network/expert_traffic.h"
#include "plan/network/fabric.h"
#include "plan/network/simulate.h"

namespace hadal::plan::network {

// Bytes between GPUs, added up before they become flows.
class Traffic {
 public:
  Traffic(Fabric& fabric, Routing routing) : fabric_(fabric), routing_(routing) {}

  // NVLink of one node. Copies of a GPU to itself count as traffic: the kernels that forward pass
  // them through the same buffers.
  void add_nvlink(uint32_t from, uint32_t to, double bytes);
  // NIC to NIC, no relay.
  void add_network(uint32_t from, uint32_t to, double bytes);
  // Calls send(plane, part of bytes) for `plane`, or evenly for all planes that join the two nodes
  // where that one does not. Throws an Error if none does.
  void over_planes(int64_t from_node, int64_t to_node, int64_t plane, double bytes,
                   const std::function<void(int64_t, double)>& send);

  // Latency is added to the start of each flow. Network flows come first, in a fixed order.
  std::vector<Flow> flows(double start = 0.0);
  // Ends of each flow of flows(): GPUs.
  struct Ends {
    uint32_t from, to;
    bool is_network;
  };
  const std::vector<Ends>& ends() const { return ends_; }
  // Bytes sent by the NIC that sends most.
  double most_nic_bytes();
  double network_bytes();

 private:
  const std::vector<int64_t>& planes_between(int64_t a, int64_t b);
  struct Entry {
    uint64_t ends;  // from << 32 | to
    double bytes;
  };
  static void add_up(std::vector<Entry>& entries);

  Fabric& fabric_;
  Routing routing_;
  std::vector<Entry> network_, nvlink_;
  std::unordered_map<uint64_t, std::vector<int64_t>> planes_;
  std::vector<Ends> ends_;
};

enum class Relay : uint8_t { kPxn, kDirect };  // over NVLink to the destination's plane, or not

// Every GPU of the nodes sends bytes_per_pair to every other one.
void add_all_to_all(Traffic& traffic, const Fabric& fabric, std::span<const int64_t> nodes,
                    double bytes_per_pair, Relay relay);
// One EP group on `nodes`, in order. Combine is dispatch with every arrow turned.
enum class Direction : uint8_t { kDispatch, kCombine };
void add_experts(Traffic& traffic, const Fabric& fabric, std::span<const int64_t> nodes,
                 const ExpertTraffic& counts, double token_bytes, Direction direction);
// A ring over each plane: what a reduce-scatter or all-gather of `bytes` per GPU and plane sends.
void add_rings(Traffic& traffic, const Fabric& fabric, std::span<const int64_t> nodes,
               double bytes);

// Seconds of an all-reduce of `bytes` per GPU: reduce-scatter in the node, rings over the planes,
// all-gather in the node.
double all_reduce_seconds(Fabric& fabric, std::span<const int64_t> nodes, double bytes,
                          Routing routing);

}  // namespace hadal::plan::network
