// The ISCA'25 paper's network measurements, simulated.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/paper.h"

#include <algorithm>

#include "core/check.h"
#include "io/json.h"

namespace hadal::plan::network {
namespace {

// NCCL's all-to-all runs at what large messages reach (ISCA'25, 4.1), DeepEP's kernels at their
// own.
constexpr double kEffectiveNic = 40e9;
constexpr double kPairBytes = 1e6;

FabricSpec cluster(const char* kind, double nic_bandwidth) {
  return {.kind = kind, .num_nodes = 256, .nic_bandwidth = nic_bandwidth};
}

double all_to_all(const char* kind, int64_t gpus, int64_t stride, Relay relay) {
  Fabric fabric(cluster(kind, kEffectiveNic));
  return run_collective(fabric,
                        {.num_gpus = gpus, .stride = stride, .bytes = kPairBytes, .relay = relay})
      .algorithm_bandwidth;
}

}  // namespace

ExpertTransport read_expert_transport(const std::string& path) {
  const io::JsonObject root = io::JsonObject::read(path);
  ExpertTransport t{.nic_bandwidth = root.number("nic_bandwidth"),
                    .nvlink_bandwidth = root.number("nvlink_bandwidth"),
                    .dispatch_efficiency = root.number("dispatch_efficiency"),
                    .combine_efficiency = root.number("combine_efficiency"),
                    .tokens_per_gpu = root.integer("tokens_per_gpu"),
                    .dispatch_bytes = root.number("dispatch_bytes_per_token"),
                    .combine_bytes = root.number("combine_bytes_per_token"),
                    .published = {},
                    .source = root.string("source")};
  for (const io::JsonObject& row : root.objects("published")) {
    t.published.push_back({row.integer("gpus"), row.number("dispatch"), row.number("combine")});
    row.check_no_unknown();
  }
  root.check_no_unknown();
  for (const double e : {t.dispatch_efficiency, t.combine_efficiency})
    HADAL_CHECK(e > 0 && e <= 1, path, ": an efficiency is ", e, "; allowed: above 0 to 1");
  return t;
}

std::vector<ExpertRow> figure7(const ExpertTransport& t) {
  std::vector<ExpertRow> rows;
  for (const bool is_dispatch : {true, false})
    for (const ExpertTransport::Published& p : t.published) {
      const double efficiency = is_dispatch ? t.dispatch_efficiency : t.combine_efficiency;
      FabricSpec spec = cluster("multi_plane", t.nic_bandwidth * efficiency);
      spec.nvlink_bandwidth = t.nvlink_bandwidth * efficiency;
      Fabric fabric(spec);
      // The benchmark ranks a node by its best score and keeps at most four.
      const CollectiveResult r =
          run_collective(fabric, {.traffic = is_dispatch ? "dispatch" : "combine",
                                  .num_gpus = p.gpus,
                                  .ep = p.gpus,
                                  .tokens = t.tokens_per_gpu,
                                  .bytes = is_dispatch ? t.dispatch_bytes : t.combine_bytes,
                                  .experts = {.group_top = 1}});
      rows.push_back({p.gpus, is_dispatch ? "dispatch" : "combine",
                      is_dispatch ? p.dispatch : p.combine, r.algorithm_bandwidth,
                      r.mean_remote_nodes});
    }
  return rows;
}

std::vector<PlaneRow> planes_against_rails() {
  std::vector<PlaneRow> rows;
  for (const int64_t stride : {1, 32})
    for (const int64_t gpus : {32, 64, 96, 128}) {
      if (stride * (gpus / 8 - 1) >= 256) continue;
      rows.push_back({gpus, stride, all_to_all("multi_plane", gpus, stride, Relay::kPxn),
                      all_to_all("multi_rail", gpus, stride, Relay::kPxn),
                      all_to_all("multi_rail", gpus, stride, Relay::kDirect)});
    }
  return rows;
}

PlaneLoss plane_loss(int64_t gpus) {
  const CollectiveSpec spec{.num_gpus = gpus, .bytes = kPairBytes};
  PlaneLoss loss{.gpus = gpus, .before = 0, .after = 0, .during = {}};
  Fabric whole(cluster("multi_plane", kEffectiveNic));
  const CollectiveResult before = run_collective(whole, spec);
  loss.before = before.algorithm_bandwidth;
  CollectiveSpec with_failure = spec;
  with_failure.failure = {.kind = Failure::Kind::kPlane,
                          .index = 0,
                          .at = before.seconds / 2,
                          .reroute = before.seconds / 4};
  loss.during = *run_collective(whole, with_failure).failure;
  loss.after = run_collective(whole, spec).algorithm_bandwidth;  // the plane stays lost
  return loss;
}

std::vector<NodeLimitRow> node_limits(int64_t gpus, int64_t tokens_per_gpu) {
  std::vector<NodeLimitRow> rows;
  for (const int64_t limit : {1, 2, 3, 4, 0}) {
    const ExpertTraffic t = draw_traffic({.max_nodes = limit}, gpus, 8, tokens_per_gpu);
    rows.push_back({limit, t.most_remote_nodes, t.mean_remote_nodes});
  }
  return rows;
}

Congestion congested_plane(const ExpertTransport& t) {
  Congestion result;
  CollectiveSpec spec{.traffic = "dispatch",
                      .num_gpus = 64,
                      .ep = 64,
                      .tokens = t.tokens_per_gpu,
                      .bytes = t.dispatch_bytes};
  for (const bool is_beside : {false, true}) {
    FabricSpec shape = cluster("multi_plane", t.nic_bandwidth * t.dispatch_efficiency);
    shape.nvlink_bandwidth = t.nvlink_bandwidth * t.dispatch_efficiency;
    Fabric fabric(shape);
    spec.storage_bytes = is_beside ? 100e6 : 0.0;
    (is_beside ? result.beside : result.alone) = run_collective(fabric, spec).plane_seconds;
  }
  return result;
}

std::vector<RoutingRow> ring_routings(int64_t nodes) {
  std::vector<RoutingRow> rows;
  for (const Routing routing : {Routing::kEcmp, Routing::kAdaptive, Routing::kStatic}) {
    Fabric fabric(cluster("fat_tree2", kEffectiveNic));
    Traffic traffic(fabric, routing);
    // Every node sends to the node a leaf further on: all rings cross the spines.
    const int64_t hop = fabric.spec().switch_ports / 2 / fabric.spec().gpus_per_node;
    for (int64_t n = 0; n < nodes; ++n)
      for (int64_t p = 0; p < fabric.spec().gpus_per_node; ++p)
        traffic.add_network(fabric.gpu(n, p), fabric.gpu((n + hop) % nodes, p), 1e8);
    const std::vector<Flow> flows = traffic.flows();
    const Outcome outcome = simulate(fabric.paths(), flows);
    double sum = 0.0;
    for (size_t f = 0; f < flows.size(); ++f) sum += flows[f].bytes / outcome.end_of(f);
    rows.push_back({routing, 1e8 / outcome.last_end(), sum / static_cast<double>(flows.size())});
  }
  return rows;
}

}  // namespace hadal::plan::network
