// Who sends how many tokens to whom when routed tokens are dispatched: counts of one EP group.
//
//   S GPUs of the group   M nodes a token may go to   K experts of a token
//
// Routing is drawn: every expert's score for a token is random, the M nodes with the best sums of
// their `group_top` highest scores are kept, and the K best experts of those are chosen
// (DeepSeek-V3 report 2.1.2). A token goes once over the network to each of its nodes, to the GPU
// with its own index there, and from there over NVLink to each GPU that has one of its experts.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hadal::plan::network {

struct ExpertRouting {
  int64_t num_experts = 256;
  int64_t top_k = 8;
  int64_t max_nodes = 4;  // M; 0: no limit
  int64_t group_top = 2;  // scores that rank a node: K/M in the report, 1 in DeepEP's benchmark
  // Relative popularity of experts; empty: all alike. A score is u^(1/popularity), u uniform, whose
  // largest falls to an expert in proportion to its popularity.
  std::vector<double> popularity = {};
  uint64_t seed = 0;
};

struct ExpertTraffic {
  int64_t num_gpus = 0, gpus_per_node = 0, tokens_per_gpu = 0;
  std::vector<int64_t> to_node;    // [S, nodes]  tokens of a GPU with an expert on the node
  std::vector<int64_t> to_gpu;     // [S, S]      tokens of a GPU with an expert on the other
  std::vector<int64_t> expert;     // [experts]   tokens of each expert, over all GPUs
  int64_t most_remote_nodes = 0;   // of any token: nodes other than its own
  double mean_remote_nodes = 0.0;  // copies that cross the network, per token
  double mean_nodes = 0.0;         // its own node counted
  double mean_gpus = 0.0;

  int64_t num_nodes() const { return num_gpus / gpus_per_node; }
  int64_t node_tokens(int64_t gpu, int64_t node) const {
    return to_node[static_cast<size_t>(gpu * num_nodes() + node)];
  }
  int64_t gpu_tokens(int64_t from, int64_t to) const {
    return to_gpu[static_cast<size_t>(from * num_gpus + to)];
  }
};

// Experts lie in order over the GPUs. Throws an Error where they do not divide.
ExpertTraffic draw_traffic(const ExpertRouting& routing, int64_t num_gpus, int64_t gpus_per_node,
                           int64_t tokens_per_gpu);

// What a token costs if its experts per node were `experts_per_node`: the network carries it once
// a node, NVLink once an expert (report 3.2.2).
struct NodeCost {
  double experts_per_node, experts;        // in all M nodes
  double network_seconds, nvlink_seconds;  // per token and GPU
  double seconds() const {
    return network_seconds > nvlink_seconds ? network_seconds : nvlink_seconds;
  }
};
NodeCost node_cost(double experts_per_node, int64_t max_nodes, double token_bytes,
                   double nic_bandwidth, double nvlink_bandwidth);

}  // namespace hadal::plan::network
