// Topologies, collectives and failures: the ISCA'25 paper's tables and known answers.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <numeric>
#include <set>

#include "plan/network/network_report.h"
#include "tests/unit/expect_error.h"

namespace hadal::plan::network {
namespace {

constexpr const char* kTopologies = "configs/networks/topologies.json";
constexpr const char* kTransport = "configs/networks/deepep_h800.json";

// Table 3: sizes exact, costs within 2% from one set of unit prices.
TEST(Topology, ReproducesThePapersTable) {
  struct Row {
    const char* name;
    int64_t endpoints, switches, links;
    double cost_millions;
  };
  const Row paper[] = {{"FT2", 2048, 96, 2048, 9},
                       {"MPFT", 16384, 768, 16384, 72},
                       {"FT3", 65536, 5120, 131072, 491},
                       {"Slim Fly", 32928, 1568, 32928, 146},
                       {"Dragonfly", 261632, 16352, 384272, 1522}};
  const TopologyTable table = read_topologies(kTopologies);
  ASSERT_EQ(table.rows.size(), std::size(paper));
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const TopologySize size = size_of(table.rows[i]);
    EXPECT_EQ(table.rows[i].name, paper[i].name);
    EXPECT_EQ(size.endpoints, paper[i].endpoints);
    EXPECT_EQ(size.switches, paper[i].switches);
    EXPECT_EQ(size.links, paper[i].links);
    EXPECT_NEAR(cost_dollars(size, table.prices) / 1e6 / paper[i].cost_millions, 1.0, 0.02);
  }
}

TEST(Topology, RefusesWhatCannotBeBuilt) {
  EXPECT_ERROR(
      size_of({.name = "T", .kind = "torus"}),
      "T: there is no topology torus; known: dragonfly, fat_tree2, fat_tree3, multi_plane, "
      "multi_rail, slim_fly");
  EXPECT_ERROR(size_of({.name = "T", .kind = "fat_tree2", .switch_ports = 63}),
               "T: switch_ports is 63; allowed: even numbers from 8 to 1024");
  EXPECT_ERROR(size_of({.name = "T", .kind = "dragonfly", .groups = 514}),
               "T: groups is 514; allowed: 2 to 513 with 64 ports");
  EXPECT_ERROR(Fabric({.kind = "fat_tree2", .num_nodes = 257}),
               "fat_tree2 of 64-port switches holds 2048 endpoints in 64 leaves; 257 nodes of 8 "
               "GPUs need 65 leaves: take fewer nodes or larger switches");
}

// The graphs that are simulated are those that the formulas count.
TEST(Fabric, HasTheSwitchesAndCablesOfItsTopology) {
  struct Row {
    const char* kind;
    int64_t nodes, gpus, ports;
  };
  for (const Row& r : {Row{"fat_tree2", 4, 8, 8}, Row{"multi_rail", 4, 8, 8},
                       Row{"multi_plane", 32, 8, 8}, Row{"fat_tree3", 16, 8, 8}}) {
    const TopologySize size =
        size_of({.name = r.kind, .kind = r.kind, .switch_ports = r.ports, .planes = r.gpus});
    const Fabric fabric(
        {.kind = r.kind, .num_nodes = r.nodes, .gpus_per_node = r.gpus, .switch_ports = r.ports});
    EXPECT_EQ(fabric.num_gpus(), size.endpoints) << r.kind;
    EXPECT_EQ(static_cast<int64_t>(fabric.num_switches()), size.switches) << r.kind;
    EXPECT_EQ(static_cast<int64_t>(fabric.switch_links().size()), 2 * size.links) << r.kind;
  }
}

// Every switch of a Slim Fly reaches every other over at most one more, and all have one radix.
TEST(Fabric, SlimFlyHasDiameterTwo) {
  for (const auto& [nodes, q] : {std::pair<int64_t, size_t>{20, 5}, {60, 7}}) {
    const Fabric fabric({.kind = "slim_fly", .num_nodes = nodes, .gpus_per_node = 8});
    ASSERT_EQ(fabric.num_switches(), 2 * q * q);
    std::vector<std::set<uint32_t>> next(2 * q * q);
    for (const auto& l : fabric.switch_links()) next[l.from].insert(l.to);
    for (uint32_t a = 0; a < next.size(); ++a) {
      EXPECT_EQ(next[a].size(), (3 * q - (q % 4 == 1 ? 1 : -1)) / 2);
      std::set<uint32_t> reached = next[a];
      reached.insert(a);
      for (const uint32_t b : next[a]) reached.insert(next[b].begin(), next[b].end());
      EXPECT_EQ(reached.size(), next.size()) << "from " << a;
    }
  }
}

TEST(Fabric, HasThePapersLatencies) {
  Fabric fabric({});
  EXPECT_DOUBLE_EQ(fabric.network_latency(fabric.gpu(0, 0), fabric.gpu(1, 0)), 2.8e-6);
  EXPECT_DOUBLE_EQ(fabric.network_latency(fabric.gpu(0, 0), fabric.gpu(40, 0)), 3.7e-6);
}

// All paths of adaptive routing together carry each flow once, whatever the topology.
TEST(Fabric, SpraysEachFlowExactlyOnce) {
  for (const char* kind : {"fat_tree2", "fat_tree3", "slim_fly", "dragonfly"}) {
    Fabric fabric({.kind = kind, .num_nodes = 30, .gpus_per_node = 2, .switch_ports = 16});
    for (uint32_t to = 1; to < 60; to += 7) {
      Flow flow;
      ASSERT_TRUE(fabric.route_network(0, to, Routing::kAdaptive, 0, flow));
      if (flow.pieces[2] == kNoPiece) continue;
      std::vector<double> into(fabric.num_switches(), 0.0);
      into[fabric.switch_of(0)] = 1.0;
      for (const Hop& hop : fabric.paths().hops(flow.pieces[1]))
        for (const auto& l : fabric.switch_links())
          if (l.link == hop.link) into[l.to] += hop.share, into[l.from] -= hop.share;
      for (uint32_t s = 0; s < into.size(); ++s)
        EXPECT_NEAR(into[s], s == fabric.switch_of(to) ? 1.0 : 0.0, 1e-12) << kind;
    }
  }
}

TEST(Paper, DispatchAndCombineAreWithinTenPercent) {
  ExpertTransport transport = read_expert_transport(kTransport);
  transport.tokens_per_gpu = 1024;  // of 4,096: enough for the shares, a quarter of the time
  const std::vector<ExpertRow> rows = figure7(transport);
  ASSERT_EQ(rows.size(), 8u);
  for (const ExpertRow& r : rows)
    EXPECT_LT(std::abs(r.error()), 0.10) << r.direction << " of " << r.gpus;
}

TEST(Paper, PlanesAndRailsAreWithinOneAndAHalfPercent) {
  const std::vector<PlaneRow> rows = planes_against_rails();
  ASSERT_GE(rows.size(), 6u);
  for (const PlaneRow& r : rows) EXPECT_LT(std::abs(r.difference()), 0.015) << r.gpus;
}

TEST(Paper, ALostPlaneCostsAnEighthAndStopsNothingElse) {
  const PlaneLoss loss = plane_loss(128);
  EXPECT_GT(loss.cost(), 0.10);
  EXPECT_LT(loss.cost(), 0.15);
  EXPECT_EQ(loss.during.num_stopped, 16u * 15u);  // the flows of that plane
  EXPECT_EQ(loss.during.num_others_stopped, 0u);
  EXPECT_GT(loss.during.end, loss.during.end_without);
  EXPECT_TRUE(std::isfinite(loss.during.end));
}

TEST(Paper, ATokenCrossesTheNetworkAtMostMTimes) {
  for (const NodeLimitRow& r : node_limits(64, 128)) {
    EXPECT_LE(r.most, r.max_nodes == 0 ? 7 : r.max_nodes);
    if (r.max_nodes > 0) {
      EXPECT_LE(r.mean, static_cast<double>(r.max_nodes));
    }
  }
}

TEST(Paper, ACongestedPlaneDoesNotSlowTheOthers) {
  ExpertTransport transport = read_expert_transport(kTransport);
  transport.tokens_per_gpu = 1024;
  const Congestion c = congested_plane(transport);
  EXPECT_GT(c.beside[0], 1.05 * c.alone[0]);
  for (size_t p = 1; p < c.alone.size(); ++p) EXPECT_DOUBLE_EQ(c.beside[p], c.alone[p]);
}

TEST(Paper, EcmpCollidesWhereOtherRoutingsDoNot) {
  const std::vector<RoutingRow> rows = ring_routings(16);
  EXPECT_LT(rows[0].slowest, 0.5 * rows[1].slowest);
  EXPECT_NEAR(rows[1].slowest / 40e9, 1.0, 0.01);
  EXPECT_NEAR(rows[2].slowest / 40e9, 1.0, 0.01);
}

// What a token needs of both kinds of link: 3.2 experts of a node are free (report 3.2.2).
TEST(Paper, ThreePointTwoExpertsOfANodeAreFree) {
  const NodeCost at = node_cost(3.2, 4, 7168, 50e9, 160e9);
  EXPECT_DOUBLE_EQ(at.network_seconds, at.nvlink_seconds);
  EXPECT_EQ(std::lround(at.experts), 13);
  EXPECT_EQ(node_cost(2, 4, 7168, 50e9, 160e9).seconds(), at.seconds());
  EXPECT_GT(node_cost(4, 4, 7168, 50e9, 160e9).seconds(), at.seconds());
}

// Drawn tokens all arrive: what experts get is what tokens send.
TEST(ExpertTraffic, CountsEveryExpertOfEveryToken) {
  std::vector<double> popularity(64);
  for (size_t e = 0; e < 64; ++e) popularity[e] = 1.0 / static_cast<double>(e + 1);
  const ExpertTraffic t = draw_traffic({.num_experts = 64, .popularity = popularity}, 32, 8, 100);
  EXPECT_EQ(std::accumulate(t.expert.begin(), t.expert.end(), int64_t{0}), 32 * 100 * 8);
  EXPECT_GT(t.expert[0], 3 * t.expert[40]);
  EXPECT_EQ(std::accumulate(t.to_node.begin(), t.to_node.end(), int64_t{0}),
            std::llround(t.mean_nodes * 3200));
  EXPECT_ERROR(draw_traffic({}, 48, 8, 1),
               "the number of experts is 256; allowed with 48 GPUs: multiples of 48");
  EXPECT_ERROR(
      draw_traffic({}, 12, 8, 1),
      "an expert-parallel group of 12 GPUs is not whole nodes of 8; choose a multiple of 8");
}

TEST(Collective, MovesTheSameBytesBothWays) {
  for (const int64_t lost : {-1, 3}) {
    double network[2], nvlink[2];
    for (const bool is_dispatch : {true, false}) {
      Fabric fabric({.num_nodes = 8});
      if (lost >= 0) fabric.fail_plane(lost);
      const CollectiveSpec spec{.traffic = is_dispatch ? "dispatch" : "combine",
                                .num_gpus = 64,
                                .tokens = 64,
                                .bytes = 1000};
      const CollectiveResult r = run_collective(fabric, spec);
      network[is_dispatch] = r.network_bytes_per_gpu;
      nvlink[is_dispatch] = 0.0;
      for (uint32_t g = 0; g < 64; ++g) nvlink[is_dispatch] += r.link_bytes[fabric.nvlink_out(g)];
    }
    EXPECT_NEAR(network[0], network[1], 1e-6 * network[0]);
    EXPECT_NEAR(nvlink[0], nvlink[1], 1e-6 * nvlink[0]);
  }
}

// Each kind of failure: everything still ends, only what crossed it stood still.
TEST(Failure, IsRoutedAround) {
  for (const char* what : {"nic:0", "link:0", "switch:0", "plane:1"}) {
    for (const Routing routing : {Routing::kAdaptive, Routing::kStatic}) {
      Fabric fabric({.num_nodes = 16, .switch_ports = 16});
      CollectiveSpec spec{.num_gpus = 128, .routing = routing};
      spec.failure = parse_failure(what, "--fail");
      spec.failure.at = 1e-3;
      spec.failure.reroute = 1e-3;
      const CollectiveResult r = run_collective(fabric, spec);
      ASSERT_TRUE(r.failure.has_value());
      EXPECT_TRUE(std::isfinite(r.seconds)) << what;
      EXPECT_GT(r.failure->bytes_moved, 0.0) << what;
      EXPECT_EQ(r.failure->num_others_stopped, 0u) << what;
      EXPECT_GE(r.failure->end, r.failure->end_without * (1 - 1e-9)) << what;
      if (std::string(what) != "link:0") {
        EXPECT_GT(r.failure->num_stopped, 0u) << what;
        EXPECT_GT(r.failure->end, r.failure->end_without * 1.01) << what;
      }
    }
  }
}

TEST(Failure, RefusesWhatIsNotThere) {
  EXPECT_ERROR(parse_failure("rack:1", "--fail"),
               "--fail is rack:1; allowed: nic:N, link:N, switch:N or plane:N, like plane:0");
  EXPECT_ERROR(parse_failure("nic:x", "--fail"),
               "--fail is nic:x; allowed: nic:N, link:N, switch:N or plane:N, like plane:0");
  Fabric fabric({.num_nodes = 4});
  EXPECT_ERROR(apply(fabric, parse_failure("nic:32", "--fail")),
               "there is no NIC 32 to fail; this network has 32");
  EXPECT_ERROR(apply(fabric, parse_failure("link:0", "--fail")),
               "there is no cable between switches 0 to fail; this network has 0");
  EXPECT_ERROR(apply(fabric, parse_failure("plane:8", "--fail")),
               "there is no plane 8 in this network");
  for (int64_t p = 0; p < 8; ++p) fabric.fail_plane(p);
  EXPECT_ERROR(run_collective(fabric, {.num_gpus = 16}),
               "no plane joins nodes 0 and 1 any more; repair one");
}

// A node's latent cache goes over its eight NICs at once; where a plane is lost, over seven.
TEST(Collective, SendsCachesOverAllPlanes) {
  const CollectiveSpec spec{.traffic = "kv", .num_gpus = 32, .bytes = 8e9};
  for (const bool is_whole : {true, false}) {
    Fabric fabric({.num_nodes = 4, .nic_bandwidth = 40e9});
    if (!is_whole) fabric.fail_plane(2);
    const CollectiveResult r = run_collective(fabric, spec);
    const double planes = is_whole ? 8 : 7;
    EXPECT_NEAR(r.seconds, 8e9 / planes / 40e9 + 2.8e-6, 1e-9);
    EXPECT_DOUBLE_EQ(r.network_bytes_per_gpu * 32, 2 * 8e9);
    for (size_t p = 0; p < 8; ++p)
      EXPECT_EQ(r.plane_seconds[p] == 0.0, !is_whole && p == 2) << "plane " << p;
  }
  // Sources do not share links, so one transfer takes as long as two; a receiver of both would not.
  Fabric two({.num_nodes = 2, .nic_bandwidth = 40e9});
  EXPECT_NEAR(run_collective(two, {.traffic = "kv", .num_gpus = 16, .bytes = 8e9}).seconds,
              8e9 / 8 / 40e9 + 2.8e-6, 1e-9);
  Fabric three({.num_nodes = 3});
  EXPECT_ERROR(
      run_collective(three, {.traffic = "kv", .num_gpus = 24, .bytes = 1e9}),
      "--traffic kv needs an even number of nodes, half to send and half to receive; there "
      "are 3");
}

TEST(Collective, KnowsTheTimeOfAnAllReduce) {
  Fabric fabric({.num_nodes = 4});
  const std::vector<int64_t> nodes = {0, 1, 2, 3};
  const double bytes = 8e9;
  const double inside = 2 * (bytes * 7 / 8 / 160e9 + 7 * 3.33e-6);
  const double between = 2 * 3.0 / 4 * bytes / 8 / 50e9 + 6 * 2.8e-6;
  EXPECT_NEAR(all_reduce_seconds(fabric, nodes, bytes, Routing::kAdaptive), inside + between, 1e-9);
}

}  // namespace
}  // namespace hadal::plan::network
