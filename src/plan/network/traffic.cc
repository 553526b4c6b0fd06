// Flows of collectives.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/traffic.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace hadal::plan::network {
namespace {

uint64_t key(uint32_t from, uint32_t to) { return uint64_t{from} << 32 | to; }

}  // namespace

void Traffic::add_nvlink(uint32_t from, uint32_t to, double bytes) {
  if (bytes > 0) nvlink_.push_back({key(from, to), bytes});
}

void Traffic::add_network(uint32_t from, uint32_t to, double bytes) {
  if (bytes > 0) network_.push_back({key(from, to), bytes});
}

// Sorts by ends and merges equal ones.
void Traffic::add_up(std::vector<Entry>& entries) {
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.ends < b.ends; });
  size_t kept = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (kept > 0 && entries[kept - 1].ends == entries[i].ends)
      entries[kept - 1].bytes += entries[i].bytes;
    else
      entries[kept++] = entries[i];
  }
  entries.resize(kept);
}

const std::vector<int64_t>& Traffic::planes_between(int64_t a, int64_t b) {
  const auto [known, is_new] =
      planes_.try_emplace(key(static_cast<uint32_t>(a), static_cast<uint32_t>(b)));
  if (!is_new) return known->second;
  Flow unused;
  for (int64_t p = 0; p < fabric_.spec().gpus_per_node; ++p)
    if (fabric_.route_network(fabric_.gpu(a, p), fabric_.gpu(b, p), Routing::kAdaptive, 0, unused))
      known->second.push_back(p);
  return known->second;
}

void Traffic::over_planes(int64_t from_node, int64_t to_node, int64_t plane, double bytes,
                          const std::function<void(int64_t, double)>& send) {
  const std::vector<int64_t>& usable = planes_between(from_node, to_node);
  HADAL_CHECK(!usable.empty(), "no plane joins nodes ", from_node, " and ", to_node,
              " any more; repair one");
  if (std::find(usable.begin(), usable.end(), plane) != usable.end()) return send(plane, bytes);
  for (const int64_t p : usable) send(p, bytes / static_cast<double>(usable.size()));
}

std::vector<Flow> Traffic::flows(double start) {
  std::vector<Flow> flows;
  add_up(network_);
  add_up(nvlink_);
  flows.reserve(network_.size() + nvlink_.size());
  ends_.reserve(flows.capacity());
  ends_.clear();
  for (const auto& [ends, bytes] : network_) {
    const uint32_t from = static_cast<uint32_t>(ends >> 32), to = static_cast<uint32_t>(ends);
    Flow flow{.bytes = bytes, .start = start + fabric_.network_latency(from, to)};
    HADAL_CHECK(fabric_.route_network(from, to, routing_, ends, flow), "no way leads from NIC ",
                from, " to NIC ", to, "; planes do not touch: relay over NVLink");
    flows.push_back(flow);
    ends_.push_back({from, to, true});
  }
  for (const auto& [ends, bytes] : nvlink_) {
    const uint32_t from = static_cast<uint32_t>(ends >> 32), to = static_cast<uint32_t>(ends);
    Flow flow{.bytes = bytes, .start = start + fabric_.spec().latency.nvlink};
    fabric_.route_nvlink(from, to, flow);
    flows.push_back(flow);
    ends_.push_back({from, to, false});
  }
  return flows;
}

double Traffic::most_nic_bytes() {
  std::unordered_map<uint32_t, double> sent;
  double most = 0.0;
  for (const auto& [ends, bytes] : network_)
    most = std::max(most, sent[static_cast<uint32_t>(ends >> 32)] += bytes);
  return most;
}

double Traffic::network_bytes() {
  double sum = 0.0;
  for (const auto& [ends, bytes] : network_) sum += bytes;
  return sum;
}

void add_all_to_all(Traffic& traffic, const Fabric& fabric, std::span<const int64_t> nodes,
                    double bytes_per_pair, Relay relay) {
  const int64_t G = fabric.spec().gpus_per_node;
  std::vector<double> relayed(static_cast<size_t>(G));  // bytes to each plane from one GPU of a
  for (const int64_t a : nodes) {
    std::fill(relayed.begin(), relayed.end(), bytes_per_pair);  // those to the node's own GPUs
    for (const int64_t b : nodes) {
      if (a == b) continue;
      for (int64_t d = 0; d < G; ++d) {
        const uint32_t to = fabric.gpu(b, d);
        if (relay == Relay::kDirect) {
          for (int64_t s = 0; s < G; ++s) traffic.add_network(fabric.gpu(a, s), to, bytes_per_pair);
          continue;
        }
        traffic.over_planes(a, b, d, bytes_per_pair, [&](int64_t p, double bytes) {
          const double of_node = bytes * static_cast<double>(G);
          relayed[static_cast<size_t>(p)] += bytes;
          traffic.add_network(fabric.gpu(a, p), fabric.gpu(b, p), of_node);
          if (p != d) traffic.add_nvlink(fabric.gpu(b, p), to, of_node);
        });
      }
    }
    for (int64_t s = 0; s < G; ++s)
      for (int64_t d = 0; d < G; ++d)
        if (s != d)
          traffic.add_nvlink(fabric.gpu(a, s), fabric.gpu(a, d), relayed[static_cast<size_t>(d)]);
  }
}

void add_experts(Traffic& traffic, const Fabric& fabric, std::span<const int64_t> nodes,
                 const ExpertTraffic& counts, double token_bytes, Direction direction) {
  const int64_t G = fabric.spec().gpus_per_node;
  HADAL_CHECK(static_cast<int64_t>(nodes.size()) == counts.num_nodes() && counts.gpus_per_node == G,
              "routing of ", counts.num_nodes(), " nodes of ", counts.gpus_per_node,
              " GPUs was drawn for ", nodes.size(), " nodes of ", G);
  const auto global = [&](int64_t gpu) {
    return fabric.gpu(nodes[static_cast<size_t>(gpu / G)], gpu % G);
  };
  const auto nvlink = [&](uint32_t from, uint32_t to, double bytes) {
    direction == Direction::kDispatch ? traffic.add_nvlink(from, to, bytes)
                                      : traffic.add_nvlink(to, from, bytes);
  };
  for (int64_t s = 0; s < counts.num_gpus; ++s)
    for (int64_t n = 0; n < counts.num_nodes(); ++n) {
      const double sent = static_cast<double>(counts.node_tokens(s, n));
      // What lands on a relay is passed to the node's GPUs in proportion to what each is to get.
      const auto pass_on = [&](uint32_t relay, double bytes) {
        for (int64_t g = n * G; g < (n + 1) * G; ++g)
          nvlink(relay, global(g), bytes / sent * static_cast<double>(counts.gpu_tokens(s, g)));
      };
      if (sent == 0) continue;
      const uint32_t from = global(s);
      if (n == s / G) {
        pass_on(from, sent * token_bytes);
        continue;
      }
      const int64_t home = fabric.node_of(from), there = nodes[static_cast<size_t>(n)];
      const auto send = [&](int64_t p, double bytes) {
        const uint32_t near = fabric.gpu(home, p), far = fabric.gpu(there, p);
        if (near != from) nvlink(from, near, bytes);
        direction == Direction::kDispatch ? traffic.add_network(near, far, bytes)
                                          : traffic.add_network(far, near, bytes);
        pass_on(far, bytes);
      };
      traffic.over_planes(home, there, fabric.index_of(from), sent * token_bytes, send);
    }
}

void add_rings(Traffic& traffic, const Fabric& fabric, std::span<const int64_t> nodes,
               double bytes) {
  for (size_t i = 0; i < nodes.size(); ++i)
    for (int64_t p = 0; nodes.size() > 1 && p < fabric.spec().gpus_per_node; ++p)
      traffic.add_network(fabric.gpu(nodes[i], p), fabric.gpu(nodes[(i + 1) % nodes.size()], p),
                          bytes);
}

double all_reduce_seconds(Fabric& fabric, std::span<const int64_t> nodes, double bytes,
                          Routing routing) {
  const double G = static_cast<double>(fabric.spec().gpus_per_node);
  const double N = static_cast<double>(nodes.size());
  const double inside =
      bytes * (G - 1) / G / fabric.spec().nvlink_bandwidth + (G - 1) * fabric.spec().latency.nvlink;
  if (nodes.size() < 2) return 2 * inside;
  Traffic rings(fabric, routing);
  add_rings(rings, fabric, nodes, 2 * (N - 1) / N * bytes / G);
  const std::vector<Flow> flows = rings.flows();
  // Each of the 2 (N - 1) steps waits for one message; flows() has counted the first.
  double latency = 0.0;
  for (const Flow& flow : flows) latency = std::max(latency, flow.start);
  return 2 * inside + simulate(fabric.paths(), flows).last_end() + (2 * (N - 1) - 1) * latency;
}

}  // namespace hadal::plan::network
