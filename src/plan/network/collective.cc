// One collective of a cluster, simulated.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/collective.h"

#include <algorithm>
#include <span>

#include "core/check.h"

namespace hadal::plan::network {
namespace {

std::vector<int64_t> nodes_of(const Fabric& fabric, const CollectiveSpec& spec) {
  const int64_t G = fabric.spec().gpus_per_node;
  HADAL_CHECK(spec.num_gpus >= 1 && spec.num_gpus % G == 0, "--gpus is ", spec.num_gpus,
              "; allowed: multiples of the ", G, " GPUs of a node");
  HADAL_CHECK(spec.stride >= 1, "--stride is ", spec.stride, "; allowed: from 1");
  const int64_t n = spec.num_gpus / G, last = (n - 1) * spec.stride;
  const int64_t storage = spec.storage_bytes > 0 ? n : 0;
  HADAL_CHECK(last + storage < fabric.spec().num_nodes, "--gpus ", spec.num_gpus,
              " takes nodes 0 to ", last + storage, " of ", fabric.spec().num_nodes,
              (storage > 0 ? ", storage nodes included" : ""), "; take fewer or a larger cluster");
  std::vector<int64_t> nodes;
  for (int64_t i = 0; i < n; ++i) nodes.push_back(i * spec.stride);
  return nodes;
}

// The EP groups of the job one after another; routing is drawn anew for each.
void add_groups(Traffic& traffic, const Fabric& fabric, std::span<const int64_t> nodes,
                const CollectiveSpec& spec, CollectiveResult& result) {
  const int64_t G = fabric.spec().gpus_per_node;
  HADAL_CHECK(spec.ep >= G && spec.ep % G == 0 && spec.num_gpus % spec.ep == 0, "--ep is ", spec.ep,
              "; allowed: multiples of the ", G, " GPUs of a node that divide --gpus ",
              spec.num_gpus);
  const int64_t num_groups = spec.num_gpus / spec.ep;
  const size_t group_nodes = static_cast<size_t>(spec.ep / G);
  const Direction direction =
      spec.traffic == "dispatch" ? Direction::kDispatch : Direction::kCombine;
  ExpertRouting experts = spec.experts;
  for (int64_t g = 0; g < num_groups; ++g, ++experts.seed) {
    const ExpertTraffic drawn = draw_traffic(experts, spec.ep, G, spec.tokens);
    add_experts(traffic, fabric, nodes.subspan(static_cast<size_t>(g) * group_nodes, group_nodes),
                drawn, spec.bytes, direction);
    const double share = 1.0 / static_cast<double>(num_groups);
    result.bytes_per_gpu +=
        share * drawn.mean_nodes * static_cast<double>(spec.tokens) * spec.bytes;
    result.mean_remote_nodes += share * drawn.mean_remote_nodes;
    result.most_remote_nodes = std::max(result.most_remote_nodes, drawn.most_remote_nodes);
  }
}

void add_kv(Traffic& traffic, const Fabric& fabric, std::span<const int64_t> nodes, double bytes) {
  HADAL_CHECK(nodes.size() % 2 == 0,
              "--traffic kv needs an even number of nodes, half to send and ",
              "half to receive; there are ", nodes.size());
  const size_t half = nodes.size() / 2;
  const int64_t G = fabric.spec().gpus_per_node;
  for (size_t i = 0; i < half; ++i)
    for (int64_t p = 0; p < G; ++p)
      traffic.over_planes(nodes[i], nodes[half + i], p, bytes / static_cast<double>(G),
                          [&](int64_t plane, double part) {
                            const uint32_t near = fabric.gpu(nodes[i], plane);
                            const uint32_t far = fabric.gpu(nodes[half + i], plane);
                            traffic.add_network(near, far, part);
                            if (plane == p) return;
                            traffic.add_nvlink(fabric.gpu(nodes[i], p), near, part);
                            traffic.add_nvlink(far, fabric.gpu(nodes[half + i], p), part);
                          });
}

void add_traffic(Traffic& traffic, const Fabric& fabric, std::span<const int64_t> nodes,
                 const CollectiveSpec& spec, CollectiveResult& result) {
  if (spec.traffic == "all-to-all") {
    add_all_to_all(traffic, fabric, nodes, spec.bytes, spec.relay);
    result.bytes_per_gpu = spec.bytes * static_cast<double>(spec.num_gpus - 1);
  } else if (spec.traffic == "dispatch" || spec.traffic == "combine") {
    add_groups(traffic, fabric, nodes, spec, result);
  } else if (spec.traffic == "rings") {
    add_rings(traffic, fabric, nodes, spec.bytes);
    result.bytes_per_gpu = spec.bytes;
  } else if (spec.traffic == "kv") {
    add_kv(traffic, fabric, nodes, spec.bytes);
    result.bytes_per_gpu = spec.bytes / static_cast<double>(fabric.spec().gpus_per_node);
  } else {
    HADAL_FAIL("--traffic is ", spec.traffic,
               "; allowed: all-to-all, dispatch, combine, all-reduce, rings, kv");
  }
}

// Storage nodes follow the job's last node; each feeds one node through its NIC on plane 0.
std::vector<Flow> storage_flows(Fabric& fabric, std::span<const int64_t> nodes,
                                const CollectiveSpec& spec) {
  Traffic storage(fabric, spec.routing);
  for (size_t i = 0; spec.storage_bytes > 0 && i < nodes.size(); ++i)
    storage.add_network(fabric.gpu(nodes.back() + 1 + static_cast<int64_t>(i), 0),
                        fabric.gpu(nodes[i], 0), spec.storage_bytes);
  return storage.flows();
}

}  // namespace

CollectiveResult run_collective(Fabric& fabric, const CollectiveSpec& spec) {
  HADAL_CHECK(spec.bytes > 0, "--bytes is ", spec.bytes, "; allowed: more than 0");
  HADAL_CHECK(spec.storage_bytes >= 0, "--storage-bytes is ", spec.storage_bytes,
              "; allowed: from 0");
  CollectiveResult result;
  const std::vector<int64_t> nodes = nodes_of(fabric, spec);
  if (spec.traffic == "all-reduce") {
    HADAL_CHECK(spec.failure.kind == Failure::Kind::kNone && spec.storage_bytes == 0,
                "--fail and --storage-bytes go with every traffic but all-reduce; try rings");
    result.bytes_per_gpu = spec.bytes;
    result.seconds = all_reduce_seconds(fabric, nodes, spec.bytes, spec.routing);
    result.algorithm_bandwidth = spec.bytes / result.seconds;
    return result;
  }
  Traffic traffic(fabric, spec.routing);
  add_traffic(traffic, fabric, nodes, spec, result);
  std::vector<Flow> flows = traffic.flows();
  const size_t num_own = flows.size();
  const std::vector<Flow> storage = storage_flows(fabric, nodes, spec);
  flows.insert(flows.end(), storage.begin(), storage.end());
  const Outcome outcome = simulate(fabric.paths(), flows);
  result.num_flows = flows.size();
  result.num_classes = outcome.end.size();
  result.num_events = outcome.num_events;
  result.plane_seconds.assign(static_cast<size_t>(fabric.spec().gpus_per_node), 0.0);
  for (size_t f = 0; f < num_own; ++f) {
    result.seconds = std::max(result.seconds, outcome.end_of(f));
    const Traffic::Ends& ends = traffic.ends()[f];
    if (!ends.is_network) continue;
    double& plane = result.plane_seconds[static_cast<size_t>(fabric.index_of(ends.to))];
    plane = std::max(plane, outcome.end_of(f));
  }
  result.network_bytes_per_gpu = traffic.network_bytes() / static_cast<double>(spec.num_gpus);
  result.link_bytes.assign(fabric.paths().num_links(), 0.0);
  std::vector<double> through(fabric.paths().num_pieces(), 0.0);
  for (const Flow& flow : flows)
    for (const uint32_t p : flow.pieces)
      if (p != kNoPiece) through[p] += flow.bytes;
  for (uint32_t p = 0; p < through.size(); ++p)
    for (const Hop& hop : fabric.paths().hops(p))
      result.link_bytes[hop.link] += through[p] * hop.share;
  if (spec.failure.kind != Failure::Kind::kNone) {
    HADAL_CHECK(spec.storage_bytes == 0, "--fail and --storage-bytes do not go together");
    result.failure = simulate_failure(fabric, traffic, spec.routing, spec.failure);
    result.seconds = result.failure->end;
  }
  result.algorithm_bandwidth = result.bytes_per_gpu / result.seconds;
  return result;
}

}  // namespace hadal::plan::network
