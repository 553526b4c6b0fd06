// Cells and JSON of hadal plan network.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/network_report.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

namespace hadal::plan::network {
namespace {

// 16384 -> "16,384"
std::string grouped(int64_t n) {
  std::string s = std::to_string(n);
  for (int64_t i = static_cast<int64_t>(s.size()) - 3; i > 0; i -= 3)
    s.insert(static_cast<size_t>(i), 1, ',');
  return s;
}

std::string gb(double bytes_per_second) { return fmt::format("{:.2f}", bytes_per_second / 1e9); }
std::string percent(double x) { return fmt::format("{:+.1f}%", 100 * x); }
std::string ms(double seconds) { return fmt::format("{:.4f}", seconds * 1e3); }

PaperTable experts_table(const PaperNetwork& paper) {
  PaperTable t{
      "dispatch and combine on the multi-plane network, 4,096 tokens a GPU (Figure 7), GB/s",
      {{"", "GPUs", "published", "simulated", "error", "nodes away"}}};
  for (const ExpertRow& r : paper.experts)
    t.rows.push_back({r.direction, std::to_string(r.gpus), gb(r.published), gb(r.simulated),
                      percent(r.error()), fmt::format("{:.3f}", r.mean_remote_nodes)});
  return t;
}

PaperTable planes_table(const PaperNetwork& paper) {
  PaperTable t{"all-to-all on planes and on rails (Figures 5 and 6), algorithm bandwidth in GB/s",
               {{"nodes", "GPUs", "planes", "rails", "difference", "rails direct"}}};
  for (const PlaneRow& r : paper.planes)
    t.rows.push_back({r.stride == 1 ? "side by side" : "a leaf each", std::to_string(r.gpus),
                      gb(r.planes), gb(r.rails), fmt::format("{:+.2f}%", 100 * r.difference()),
                      gb(r.rails_direct)});
  return t;
}

PaperTable loss_table(const PaperNetwork& paper) {
  const PlaneLoss& l = paper.loss;
  return {fmt::format("all-to-all of {} GPUs when one plane of eight is lost", l.gpus),
          {{"", ""},
           {"GB/s before", gb(l.before)},
           {"GB/s after", gb(l.after)},
           {"cost", fmt::format("{:.1f}%", 100 * l.cost())},
           {"flows running", std::to_string(l.during.num_flows)},
           {"that stood still", std::to_string(l.during.num_stopped)},
           {"of other planes", std::to_string(l.during.num_others_stopped)}}};
}

PaperTable limits_table(const PaperNetwork& paper) {
  PaperTable t{"nodes other than its own that a token goes to, EP64 over 8 nodes, 8 of 256 experts",
               {{"node limit", "most", "mean"}}};
  for (const NodeLimitRow& r : paper.limits)
    t.rows.push_back({r.max_nodes == 0 ? "none" : std::to_string(r.max_nodes),
                      std::to_string(r.most), fmt::format("{:.3f}", r.mean)});
  return t;
}

PaperTable congestion_table(const PaperNetwork& paper) {
  PaperTable t{"EP64 dispatch: ms until each plane is done, alone and with storage read on plane 0",
               {{"plane", "alone", "beside"}}};
  for (size_t p = 0; p < paper.congestion.alone.size(); ++p)
    t.rows.push_back(
        {std::to_string(p), ms(paper.congestion.alone[p]), ms(paper.congestion.beside[p])});
  return t;
}

PaperTable rings_table(const PaperNetwork& paper) {
  PaperTable t{"rings over 16 nodes through the spines of a two-layer fat tree, GB/s a NIC",
               {{"routing", "slowest", "mean"}}};
  for (const RoutingRow& r : paper.rings)
    t.rows.push_back({routing_name(r.routing), gb(r.slowest), gb(r.mean)});
  return t;
}

}  // namespace

Cells topologies_cells(const TopologyTable& table) {
  Cells rows = {{""},      {"endpoints"}, {"switches"},
                {"links"}, {"cost, M$"},  {"cost per endpoint, k$"}};
  for (const Topology& t : table.rows) {
    const TopologySize size = size_of(t);
    const double cost = cost_dollars(size, table.prices);
    const std::string cells[] = {
        t.name,
        grouped(size.endpoints),
        grouped(size.switches),
        grouped(size.links),
        fmt::format("{:.1f}", cost / 1e6),
        fmt::format("{:.2f}", cost / 1e3 / static_cast<double>(size.endpoints))};
    for (size_t i = 0; i < rows.size(); ++i) rows[i].push_back(cells[i]);
  }
  return rows;
}

io::Json topologies_json(const TopologyTable& table) {
  io::Json rows = io::Json::array();
  for (const Topology& t : table.rows) {
    const TopologySize size = size_of(t);
    rows.push_back({{"name", t.name},
                    {"kind", t.kind},
                    {"switch_ports", t.switch_ports},
                    {"endpoints", size.endpoints},
                    {"switches", size.switches},
                    {"links", size.links},
                    {"cost_dollars", cost_dollars(size, table.prices)}});
  }
  return {{"topologies", rows},
          {"prices",
           {{"switch_dollars", table.prices.switch_dollars},
            {"link_dollars", table.prices.link_dollars},
            {"endpoint_dollars", table.prices.endpoint_dollars},
            {"source", table.prices.source}}}};
}

Cells collective_cells(const CollectiveSpec& spec, const CollectiveResult& r) {
  Cells rows = {{"time, ms", ms(r.seconds)},
                {"algorithm bandwidth, GB/s", gb(r.algorithm_bandwidth)}};
  if (r.num_flows > 0)
    rows.push_back(
        {"MB over the network, per GPU", fmt::format("{:.3f}", r.network_bytes_per_gpu / 1e6)});
  if (spec.traffic == "dispatch" || spec.traffic == "combine") {
    rows.push_back({"nodes away, mean of a token", fmt::format("{:.3f}", r.mean_remote_nodes)});
    rows.push_back({"nodes away, most of any token", std::to_string(r.most_remote_nodes)});
  }
  if (r.failure) {
    rows.push_back({"time had nothing failed, ms", ms(r.failure->end_without)});
    rows.push_back({"flows running then", std::to_string(r.failure->num_flows)});
    rows.push_back({"stood still until re-routed", std::to_string(r.failure->num_stopped)});
    rows.push_back({"of them not on what failed", std::to_string(r.failure->num_others_stopped)});
    rows.push_back(
        {"MB that took another way", fmt::format("{:.3f}", r.failure->bytes_moved / 1e6)});
  }
  return rows;
}

io::Json collective_json(const Fabric& fabric, const CollectiveSpec& spec,
                         const CollectiveResult& r) {
  const FabricSpec& shape = fabric.spec();
  io::Json json = {{"traffic", spec.traffic},
                   {"gpus", spec.num_gpus},
                   {"topology", shape.kind},
                   {"nodes", shape.num_nodes},
                   {"routing", routing_name(spec.routing)},
                   {"nic_bandwidth", shape.nic_bandwidth},
                   {"nvlink_bandwidth", shape.nvlink_bandwidth},
                   {"seconds", r.seconds},
                   {"algorithm_bandwidth", r.algorithm_bandwidth},
                   {"network_bytes_per_gpu", r.network_bytes_per_gpu},
                   {"mean_remote_nodes", r.mean_remote_nodes},
                   {"most_remote_nodes", r.most_remote_nodes},
                   {"plane_seconds", r.plane_seconds},
                   {"flows", r.num_flows},
                   {"classes", r.num_classes},
                   {"events", r.num_events}};
  if (r.failure)
    json["failure"] = {{"seconds_without", r.failure->end_without},
                       {"flows", r.failure->num_flows},
                       {"stopped", r.failure->num_stopped},
                       {"others_stopped", r.failure->num_others_stopped},
                       {"bytes_moved", r.failure->bytes_moved}};
  return json;
}

PaperNetwork simulate_paper(const ExpertTransport& transport) {
  return {.transport = transport,
          .experts = figure7(transport),
          .planes = planes_against_rails(),
          .loss = plane_loss(128),
          .limits = node_limits(64, 512),
          .congestion = congested_plane(transport),
          .rings = ring_routings(16)};
}

std::vector<PaperTable> paper_tables(const PaperNetwork& paper) {
  return {experts_table(paper), planes_table(paper),     loss_table(paper),
          limits_table(paper),  congestion_table(paper), rings_table(paper)};
}

io::Json paper_json(const PaperNetwork& paper) {
  io::Json experts = io::Json::array(), planes = experts, limits = experts, rings = experts;
  for (const ExpertRow& r : paper.experts)
    experts.push_back({{"direction", r.direction},
                       {"gpus", r.gpus},
                       {"published", r.published},
                       {"simulated", r.simulated},
                       {"error", r.error()}});
  for (const PlaneRow& r : paper.planes)
    planes.push_back({{"gpus", r.gpus},
                      {"stride", r.stride},
                      {"planes", r.planes},
                      {"rails", r.rails},
                      {"rails_direct", r.rails_direct}});
  for (const NodeLimitRow& r : paper.limits)
    limits.push_back({{"max_nodes", r.max_nodes}, {"most", r.most}, {"mean", r.mean}});
  for (const RoutingRow& r : paper.rings)
    rings.push_back(
        {{"routing", routing_name(r.routing)}, {"slowest", r.slowest}, {"mean", r.mean}});
  return {{"experts", experts},
          {"planes_against_rails", planes},
          {"plane_loss",
           {{"gpus", paper.loss.gpus},
            {"before", paper.loss.before},
            {"after", paper.loss.after},
            {"cost", paper.loss.cost()},
            {"stopped", paper.loss.during.num_stopped},
            {"others_stopped", paper.loss.during.num_others_stopped}}},
          {"node_limits", limits},
          {"congestion", {{"alone", paper.congestion.alone}, {"beside", paper.congestion.beside}}},
          {"rings", rings},
          {"fitted",
           {{"dispatch_efficiency", paper.transport.dispatch_efficiency},
            {"combine_efficiency", paper.transport.combine_efficiency},
            {"source", paper.transport.source}}}};
}

}  // namespace hadal::plan::network
