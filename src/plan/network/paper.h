// What the ISCA'25 paper (section 5) says of its network, simulated beside it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "plan/network/collective.h"

namespace hadal::plan::network {

// configs/networks/deepep_h800.json: peaks, fitted efficiencies and what was published.
struct ExpertTransport {
  double nic_bandwidth = 0.0, nvlink_bandwidth = 0.0;
  double dispatch_efficiency = 0.0, combine_efficiency = 0.0;
  int64_t tokens_per_gpu = 0;
  double dispatch_bytes = 0.0, combine_bytes = 0.0;  // of a token
  struct Published {
    int64_t gpus;
    double dispatch, combine;  // bytes/s
  };
  std::vector<Published> published;
  std::string source;
};
ExpertTransport read_expert_transport(const std::string& path);

// Figure 7: algorithm bandwidth of dispatch and combine, published and simulated.
struct ExpertRow {
  int64_t gpus;
  const char* direction;
  double published, simulated;
  double mean_remote_nodes;
  double error() const { return simulated / published - 1; }
};
std::vector<ExpertRow> figure7(const ExpertTransport& transport);

// Figures 5 and 6: all-to-all on a multi-plane and a multi-rail fat tree, nodes side by side
// (stride 1) or each on a leaf of its own (stride 32).
struct PlaneRow {
  int64_t gpus, stride;
  double planes, rails;  // bytes/s, PXN on both
  double rails_direct;   // over the spines of the rails instead of NVLink
  double difference() const { return planes / rails - 1; }
};
std::vector<PlaneRow> planes_against_rails();

// One plane of eight lost while an all-to-all runs, and for good.
struct PlaneLoss {
  int64_t gpus;
  double before, after;  // bytes/s
  FailureOutcome during;
  double cost() const { return 1 - after / before; }
};
PlaneLoss plane_loss(int64_t gpus);

// Node-limited routing: nodes other than its own that a token is sent to.
struct NodeLimitRow {
  int64_t max_nodes;  // 0: none
  int64_t most;
  double mean;
};
std::vector<NodeLimitRow> node_limits(int64_t gpus, int64_t tokens_per_gpu);

// Storage read on plane 0 beside an EP dispatch: when each plane ends, without and with it.
struct Congestion {
  std::vector<double> alone, beside;  // seconds, by plane
};
Congestion congested_plane(const ExpertTransport& transport);

// Rings from node to node, each on another leaf, under three routings: bytes/s of the slowest and
// the mean NIC.
struct RoutingRow {
  Routing routing;
  double slowest, mean;
};
std::vector<RoutingRow> ring_routings(int64_t nodes);

}  // namespace hadal::plan::network
