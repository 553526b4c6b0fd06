// The flow simulator against SimGrid's plain max-min model, on random graphs.
//
// All graphs are parts of one SimGrid platform that share no link: SimGrid has one engine a
// process.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <deque>
#include <simgrid/s4u.hpp>

#include "core/check.h"
#include "plan/network/simulate.h"
#include "tests/unit/random_flows.h"

namespace hadal::plan::network {
namespace {

namespace sg4 = simgrid::s4u;
constexpr int kNumGraphs = 80;

TEST(Simulate, EndsFlowsWhenSimGridDoes) {
  int argc = 1;
  char name[] = "simgrid_test";
  char* argv[] = {name, nullptr};
  sg4::Engine engine(&argc, argv);
  // Max-min alone: no TCP window, no slow start, no headers, no acknowledgements on the way back.
  for (const char* setting :
       {"network/model:CM02", "network/TCP-gamma:0", "network/crosstraffic:0", "network/weight-S:0",
        "network/latency-factor:1", "network/bandwidth-factor:1"})
    engine.set_config(setting);
  auto* zone = sg4::create_full_zone("graphs");
  std::deque<testing::RandomFlows> graphs;
  std::vector<std::vector<double>> ends;
  for (int g = 0; g < kNumGraphs; ++g) {
    graphs.emplace_back(static_cast<uint64_t>(g), 3 + g % 12, 2 + g % 23);
    ends.emplace_back(graphs.back().flows.size(), 0.0);
  }
  struct Endpoints {
    sg4::Host *from, *to;
    double* end;
    const Flow* flow;
  };
  std::vector<Endpoints> all;
  for (int g = 0; g < kNumGraphs; ++g) {
    const testing::RandomFlows& graph = graphs[static_cast<size_t>(g)];
    const std::string prefix = concat("g", g);
    std::vector<const sg4::Link*> links;
    for (uint32_t l = 0; l < graph.paths.num_links(); ++l)
      links.push_back(zone->create_link(concat(prefix, "l", l), graph.paths.capacity(l))
                          ->set_latency(0)
                          ->seal());
    for (size_t f = 0; f < graph.flows.size(); ++f) {
      const std::string id = concat(prefix, "f", f);
      auto* from = zone->create_host(id + "a", 1e9)->seal();
      auto* to = zone->create_host(id + "b", 1e9)->seal();
      std::vector<sg4::LinkInRoute> route;
      for (const uint32_t l : graph.links_of[f]) route.emplace_back(links[l]);
      zone->add_route(from->get_netpoint(), to->get_netpoint(), nullptr, nullptr, route, false);
      all.push_back({from, to, &ends[static_cast<size_t>(g)][f], &graph.flows[f]});
    }
  }
  zone->seal();
  for (const Endpoints& e : all)
    sg4::Actor::create("sender", e.from, [e] {
      sg4::this_actor::sleep_until(e.flow->start);
      sg4::Comm::sendto(e.from, e.to, static_cast<uint64_t>(e.flow->bytes));
      *e.end = sg4::Engine::get_clock();
    });
  engine.run();
  double worst = 0.0;
  for (int g = 0; g < kNumGraphs; ++g) {
    const testing::RandomFlows& graph = graphs[static_cast<size_t>(g)];
    const Outcome ours = simulate(graph.paths, graph.flows);
    for (size_t f = 0; f < graph.flows.size(); ++f) {
      const double theirs = ends[static_cast<size_t>(g)][f];
      ASSERT_GT(theirs, 0.0);
      const double error = std::abs(ours.end_of(f) / theirs - 1);
      EXPECT_LT(error, 0.01) << "graph " << g << " flow " << f << ": " << ours.end_of(f)
                             << " against " << theirs;
      worst = std::max(worst, error);
    }
  }
  RecordProperty("worst_relative_difference", std::to_string(worst));
  std::printf("%d graphs, %zu flows: largest relative difference %.2g\n", kNumGraphs, all.size(),
              worst);
}

}  // namespace
}  // namespace hadal::plan::network
