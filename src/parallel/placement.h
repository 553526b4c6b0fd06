// Expert placement: which experts are replicated, and on which GPU each replica lives (EPLB).
//
//   E logical experts of one layer   R replicas (slots) in all   G GPUs of the expert-parallel
//   group
//
// Slots are numbered GPU by GPU: slot s lives on GPU s / (R / G). Pure functions of the loads
// (tokens routed to each expert, from statistics), so that the server, its tests and the planner
// place alike. Ties go to the lower index. Sources: DeepSeek-V3 report 3.4; the policies' names are
// those of DeepSeek's EPLB.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hadal::placement {

struct Layout {
  int64_t num_replicas = 288;  // R, a multiple of num_gpus, at least E
  int64_t num_groups = 8;      // expert groups of the router; divides E
  int64_t num_nodes = 4;       // divides num_gpus
  int64_t num_gpus = 32;       // G
  int64_t slots_per_gpu() const { return num_replicas / num_gpus; }
};

struct Placement {
  std::vector<int32_t> expert_of_slot;   // [R]
  std::vector<int32_t> replica_of_slot;  // [R]  0, 1, ... among the replicas of its expert
  std::vector<int32_t> num_replicas_of;  // [E]
  int64_t num_gpus = 0;
  int64_t slots_per_gpu() const { return static_cast<int64_t>(expert_of_slot.size()) / num_gpus; }
};

// Groups to nodes, replicas inside each node, replicas to the node's GPUs: traffic of a group stays
// on one node. REQUIRES: num_nodes divides num_groups.
Placement hierarchical(std::span<const double> loads, const Layout& layout);
// Replicas over all GPUs, whatever their group.
Placement global(std::span<const double> loads, const Layout& layout);
// Hierarchical where the nodes divide the groups (prefill), else global (decode).
Placement balanced(std::span<const double> loads, const Layout& layout);
// Experts in order, no redundancy: R = E.
Placement in_order(int64_t num_experts, int64_t num_gpus);

// Load of each GPU when the replicas of an expert share its tokens evenly.         [G]
std::vector<double> gpu_loads(const Placement& placement, std::span<const double> loads);
// max / mean; 1 where nothing is loaded.
double imbalance(std::span<const double> loads);

// Dynamic redundancy (report 3.4.1): each GPU hosts more experts than it runs, and which ones run,
// and how an expert's tokens are split between its running replicas, is chosen per batch.
struct Activation {
  std::vector<uint8_t> active;         // [R]
  std::vector<double> tokens_of_slot;  // [R]  0 where not active
  std::vector<double> tokens_of_gpu;   // [G]
};
// At most active_per_gpu slots run on a GPU and every expert runs somewhere; an Error if no such
// choice exists. A heuristic for the smallest maximum over GPUs: the choice of slots is greedy, the
// split for that choice is optimal to 1e-6.
Activation activate(const Placement& hosted, std::span<const double> loads, int64_t active_per_gpu);

}  // namespace hadal::placement
