// hadal plan network: sizes and costs of topologies, and collectives simulated on one of them.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "cli/plan.h"
#include "core/check.h"
#include "io/atomic.h"
#include "plan/cluster.h"
#include "plan/network/network_report.h"

namespace hadal::cli {
namespace {

namespace net = plan::network;

struct Options {
  std::string topologies = "configs/networks/topologies.json";
  std::string transport = "configs/networks/deepep_h800.json";
  std::string cluster = "configs/clusters/h800_2048.json";
  std::string topology, routing = "adaptive", relay = "pxn", fail, html;
  net::CollectiveSpec spec = {.traffic = ""};
  int64_t nodes = 0;
  double efficiency = 0.0, fail_at = 0.0, reroute = 1e-3;
  bool is_paper = false, json = false;
};

// The cluster's network; --topology and --nodes change it.
net::FabricSpec fabric_spec(const Options& o) {
  const plan::Cluster c = plan::read_cluster(o.cluster);
  HADAL_CHECK(c.scale_out.nics_per_node > 0, o.cluster,
              ": there is no scale_out network to simulate; choose a cluster "
              "of several nodes");
  HADAL_CHECK(c.scale_out.nics_per_node == c.devices_per_node, o.cluster, ": nics_per_node is ",
              c.scale_out.nics_per_node, "; hadal plan network simulates one NIC for each of the ",
              c.devices_per_node, " devices of a node");
  HADAL_CHECK(o.efficiency >= 0 && o.efficiency <= 1, "--efficiency is ", o.efficiency,
              "; allowed: 0 (the cluster's effective bandwidths) to 1");
  const bool is_scaled = o.efficiency > 0;
  return {.kind = o.topology.empty() ? c.topology.kind : o.topology,
          .num_nodes = o.nodes > 0 ? o.nodes : c.num_nodes,
          .gpus_per_node = c.devices_per_node,
          .switch_ports = c.topology.switch_ports,
          .nic_bandwidth =
              is_scaled ? c.scale_out.bandwidth * o.efficiency : c.scale_out.effective_bandwidth,
          .nvlink_bandwidth = c.scale_up.bandwidth * (is_scaled ? o.efficiency : 1.0),
          .latency = {.same_leaf = c.scale_out.latency_same_leaf,
                      .cross_leaf = c.scale_out.latency_cross_leaf,
                      .nvlink = c.scale_up.latency}};
}

void print_topologies(const Options& o) {
  const net::TopologyTable table = net::read_topologies(o.topologies);
  if (o.json) {
    fmt::print("{}", io::to_text(net::topologies_json(table)));
    return;
  }
  for (const auto& row : net::topologies_cells(table)) {
    fmt::print("{:<22}", row[0]);
    for (size_t i = 1; i < row.size(); ++i) fmt::print("{:>12}", row[i]);
    fmt::print("\n");
  }
  fmt::print(
      "\nunit prices: ${:g} a switch, ${:g} a link between switches, "
      "${:g} an endpoint\n{}\n",
      table.prices.switch_dollars, table.prices.link_dollars, table.prices.endpoint_dollars,
      table.prices.source);
}

void print_collective(const Options& o) {
  net::CollectiveSpec spec = o.spec;
  spec.routing = net::parse_routing(o.routing, "--routing");
  HADAL_CHECK(o.relay == "pxn" || o.relay == "direct", "--relay is ", o.relay,
              "; allowed: pxn, direct");
  spec.relay = o.relay == "pxn" ? net::Relay::kPxn : net::Relay::kDirect;
  if (!o.fail.empty()) spec.failure = net::parse_failure(o.fail, "--fail");
  spec.failure.at = o.fail_at;
  spec.failure.reroute = o.reroute;
  HADAL_CHECK(o.fail_at >= 0 && o.reroute >= 0, "--fail-at and --reroute are ", o.fail_at, " and ",
              o.reroute, " seconds; allowed: from 0");
  const net::FabricSpec shape = fabric_spec(o);
  net::Fabric fabric(shape);
  const auto begin = std::chrono::steady_clock::now();
  const net::CollectiveResult r = net::run_collective(fabric, spec);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  if (!o.html.empty()) io::write_file_atomic(o.html, net::collective_page(fabric, spec, r));
  if (o.json) {
    fmt::print("{}", io::to_text(net::collective_json(fabric, spec, r)));
    return;
  }
  fmt::print("{} of {} GPUs on {}, {} routing, {:g} GB/s a NIC, {:g} GB/s NVLink\n", spec.traffic,
             spec.num_gpus, shape.kind, o.routing, shape.nic_bandwidth / 1e9,
             shape.nvlink_bandwidth / 1e9);
  for (const auto& row : net::collective_cells(spec, r))
    fmt::print("{:<34}{:>14}\n", row[0], row[1]);
  fmt::print("{} flows in {} classes, {} events, {:.2f} s\n", r.num_flows, r.num_classes,
             r.num_events, took.count());
  if (!o.html.empty()) fmt::print("report: {}\n", o.html);
}

void print_paper(const Options& o) {
  const net::PaperNetwork paper = net::simulate_paper(net::read_expert_transport(o.transport));
  if (!o.html.empty())
    io::write_file_atomic(o.html, net::paper_page(net::read_topologies(o.topologies), paper));
  if (o.json) {
    fmt::print("{}", io::to_text(net::paper_json(paper)));
    return;
  }
  for (const net::PaperTable& table : net::paper_tables(paper)) {
    fmt::print("{}\n", table.title);
    for (const auto& row : table.rows) {
      fmt::print("  {:<22}", row[0]);
      for (size_t i = 1; i < row.size(); ++i) fmt::print("{:>14}", row[i]);
      fmt::print("\n");
    }
    fmt::print("\n");
  }
  fmt::print("{}\n", paper.transport.source);
  if (!o.html.empty()) fmt::print("report: {}\n", o.html);
}

void run(const Options& o) {
  HADAL_CHECK(!o.is_paper || o.spec.traffic.empty(), "give --paper or --traffic, not both");
  if (o.is_paper) return print_paper(o);
  if (!o.spec.traffic.empty()) return print_collective(o);
  HADAL_CHECK(o.html.empty() && o.fail.empty(),
              "--html and --fail go with --paper or --traffic; the table alone "
              "has no page");
  print_topologies(o);
}

}  // namespace

void add_plan_network_command(CLI::App& plan) {
  auto o = std::make_shared<Options>();
  auto* c = plan.add_subcommand(
      "network", "topologies with sizes and costs; collectives simulated flow by flow");
  c->add_option("--topologies", o->topologies, "rows and unit prices")->capture_default_str();
  c->add_option("--traffic", o->spec.traffic,
                "all-to-all, dispatch, combine, all-reduce, rings or kv");
  c->add_option("--cluster", o->cluster, "cluster file")->capture_default_str();
  c->add_option("--topology", o->topology, "instead of the cluster's");
  c->add_option("--nodes", o->nodes, "instead of the cluster's");
  c->add_option("--gpus", o->spec.num_gpus, "of the job")->capture_default_str();
  c->add_option("--stride", o->spec.stride, "nodes from one node of the job to the next")
      ->capture_default_str();
  c->add_option("--ep", o->spec.ep, "GPUs of an expert-parallel group")->capture_default_str();
  c->add_option("--tokens", o->spec.tokens, "tokens of a GPU")->capture_default_str();
  c->add_option("--bytes", o->spec.bytes,
                "of a pair, a token, a GPU or a node: see docs/network.md")
      ->capture_default_str();
  c->add_option("--max-nodes", o->spec.experts.max_nodes, "nodes of a token; 0: no limit")
      ->capture_default_str();
  c->add_option("--seed", o->spec.experts.seed, "of the drawn routing")->capture_default_str();
  c->add_option("--routing", o->routing, "adaptive, ecmp or static")->capture_default_str();
  c->add_option("--relay", o->relay, "all-to-all: pxn (over NVLink) or direct")
      ->capture_default_str();
  c->add_option("--efficiency", o->efficiency,
                "of peak bandwidths; 0: the cluster's effective ones")
      ->capture_default_str();
  c->add_option("--storage-bytes", o->spec.storage_bytes, "read by each node beside, on plane 0");
  c->add_option("--fail", o->fail, "nic:N, link:N, switch:N or plane:N");
  c->add_option("--fail-at", o->fail_at, "seconds")->capture_default_str();
  c->add_option("--reroute", o->reroute, "seconds until traffic takes other ways")
      ->capture_default_str();
  c->add_flag("--paper", o->is_paper, "the ISCA'25 paper's measurements beside the simulation");
  c->add_option("--transport", o->transport, "efficiencies and published values of --paper")
      ->capture_default_str();
  c->add_option("--html", o->html, "write a report page");
  c->add_flag("--json", o->json, "print JSON");
  c->footer(
      "Example: hadal plan network --traffic dispatch --gpus 2048 --ep "
      "64 --bytes 7392");
  c->callback([o] { run(*o); });
}

}  // namespace hadal::cli
