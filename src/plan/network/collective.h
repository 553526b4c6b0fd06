// One collective of a cluster, simulated: what `hadal plan network --traffic` asks for.
//
//   all-to-all   every GPU sends `bytes` to every other GPU
//   dispatch     every GPU sends `tokens` routed tokens of `bytes` each, in EP groups of `ep` GPUs
//   combine      the way back
//   all-reduce   `bytes` on every GPU
//   rings        a reduce-scatter or all-gather of `bytes` per plane, from node to node
//   kv           every node of the first half sends `bytes` of latent cache to one of the second
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "plan/network/failure.h"

namespace hadal::plan::network {

struct CollectiveSpec {
  std::string traffic = "all-to-all";
  int64_t num_gpus = 128;
  int64_t stride = 1;  // nodes from one node of the job to the next
  int64_t ep = 64;
  int64_t tokens = 4096;
  double bytes = 1e6;
  ExpertRouting experts = {};
  Routing routing = Routing::kAdaptive;
  Relay relay = Relay::kPxn;
  Failure failure = {};
  // Background: bytes read by every node of the job from one storage node each, on plane 0.
  double storage_bytes = 0.0;
};

struct CollectiveResult {
  double seconds = 0.0;
  double bytes_per_gpu = 0.0;  // counted as the field counts them: see algorithm_bandwidth
  // All-to-all and rings: bytes that a GPU sends to others, over the time. Dispatch and combine:
  // bytes of a token times the nodes it visits, its own included, as DeepEP counts.
  double algorithm_bandwidth = 0.0;
  double network_bytes_per_gpu = 0.0;  // that cross the network
  double mean_remote_nodes = 0.0;      // of a token; dispatch and combine only
  int64_t most_remote_nodes = 0;
  size_t num_flows = 0, num_classes = 0, num_events = 0;
  std::vector<double> plane_seconds;  // when the last network flow of each plane ends
  std::optional<FailureOutcome> failure;
  std::vector<double> link_bytes;  // [links of the fabric]  in all
};

// Throws an Error that names the option. `fabric` keeps a failure that is simulated.
CollectiveResult run_collective(Fabric& fabric, const CollectiveSpec& spec);

}  // namespace hadal::plan::network
