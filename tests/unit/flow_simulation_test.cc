// The flow simulator: against a plain one without merging, and on networks with known answers.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "plan/network/classes.h"
#include "plan/network/fabric.h"
#include "plan/network/simulate.h"
#include "tests/unit/expect_error.h"
#include "tests/unit/random_flows.h"

namespace hadal::plan::network {
namespace {

// Links of a flow and the share of its bytes on each.
std::vector<Hop> hops_of(const Paths& paths, const Flow& flow) {
  std::vector<Hop> all;
  for (const uint32_t p : flow.pieces)
    if (p != kNoPiece) all.insert(all.end(), paths.hops(p).begin(), paths.hops(p).end());
  return all;
}

// Max-min rates one bottleneck at a time, and events one at a time: the slow twin.
std::vector<double> plain_ends(const Paths& paths, const std::vector<Flow>& flows) {
  const size_t n = flows.size();
  std::vector<double> left(n), end(n, -1.0);
  for (size_t f = 0; f < n; ++f) left[f] = flows[f].bytes;
  double now = 0.0;
  while (true) {
    std::vector<double> rate(n, -1.0);
    const auto is_active = [&](size_t f) { return end[f] < 0 && flows[f].start <= now + 1e-15; };
    while (true) {
      std::vector<double> room(paths.num_links()), use(paths.num_links(), 0.0);
      for (uint32_t l = 0; l < paths.num_links(); ++l) room[l] = paths.capacity(l);
      for (size_t f = 0; f < n; ++f)
        for (const Hop& hop : hops_of(paths, flows[f]))
          if (is_active(f)) {
            if (rate[f] >= 0)
              room[hop.link] -= rate[f] * hop.share;
            else
              use[hop.link] += hop.share;
          }
      double lowest = 1e300;
      for (size_t l = 0; l < room.size(); ++l)
        if (use[l] > 1e-9) lowest = std::min(lowest, std::max(0.0, room[l]) / use[l]);
      if (lowest == 1e300) break;
      for (size_t l = 0; l < room.size(); ++l) {
        if (use[l] <= 1e-9 || std::max(0.0, room[l]) / use[l] > lowest * (1 + 1e-12)) continue;
        for (size_t f = 0; f < n; ++f)
          if (is_active(f) && rate[f] < 0)
            for (const Hop& hop : hops_of(paths, flows[f]))
              if (hop.link == l) rate[f] = lowest;
      }
    }
    double next = 1e300;
    for (size_t f = 0; f < n; ++f) {
      if (end[f] >= 0) continue;
      next = std::min(next, is_active(f) ? now + left[f] / rate[f] : flows[f].start);
    }
    if (next == 1e300) return end;
    for (size_t f = 0; f < n; ++f) {
      if (!is_active(f)) continue;
      left[f] -= rate[f] * (next - now);
      if (left[f] <= 1e-9 * flows[f].bytes) end[f] = next;
    }
    now = next;
  }
}

void expect_like_plain(const Paths& paths, const std::vector<Flow>& flows) {
  const Outcome outcome = simulate(paths, flows);
  const std::vector<double> plain = plain_ends(paths, flows);
  for (size_t f = 0; f < flows.size(); ++f)
    EXPECT_NEAR(outcome.end_of(f), plain[f], 1e-6 * plain[f]) << "flow " << f;
}

TEST(Simulate, AgreesWithThePlainOneOnRandomNetworks) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const testing::RandomFlows random(seed, 3 + static_cast<int>(seed % 9),
                                      2 + static_cast<int>(seed % 17));
    expect_like_plain(random.paths, random.flows);
  }
}

// Every topology and routing, with sizes and starts that repeat, so that classes are found.
TEST(Simulate, AgreesWithThePlainOneOnFabrics) {
  for (const char* kind :
       {"multi_plane", "multi_rail", "fat_tree2", "fat_tree3", "slim_fly", "dragonfly"})
    for (const Routing routing : {Routing::kAdaptive, Routing::kEcmp, Routing::kStatic}) {
      Fabric fabric({.kind = kind, .num_nodes = 12, .gpus_per_node = 2, .switch_ports = 12});
      const bool is_apart = std::string(kind) == "multi_plane";
      std::vector<Flow> flows;
      const Rng rng(7, 0);
      for (uint64_t i = 0; i < 30; ++i) {
        const auto a = static_cast<uint32_t>(rng.u64(2 * i) % 24);
        auto b = static_cast<uint32_t>(rng.u64(2 * i + 1) % 24);
        if (is_apart) b = b / 2 * 2 + a % 2;
        if (a == b) continue;
        Flow flow{.bytes = 1e6 * static_cast<double>(1 + i % 3), .start = i % 2 == 0 ? 0.0 : 1e-5};
        ASSERT_TRUE(fabric.route_network(a, b, routing, i, flow)) << kind;
        flows.push_back(flow);
      }
      expect_like_plain(fabric.paths(), flows);
    }
}

TEST(Simulate, MergesASymmetricAllToAll) {
  Fabric fabric({.kind = "fat_tree2", .num_nodes = 16});
  std::vector<Flow> flows;
  for (uint32_t a = 0; a < 128; ++a)
    for (uint32_t b = 0; b < 128; ++b) {
      if (a == b) continue;
      Flow flow{.bytes = 1e6};
      ASSERT_TRUE(fabric.route_network(a, b, Routing::kAdaptive, 0, flow));
      flows.push_back(flow);
    }
  const Outcome outcome = simulate(fabric.paths(), flows);
  EXPECT_LE(outcome.end.size(), 2u);  // within and between leaves
  EXPECT_NEAR(outcome.last_end(), 127 * 1e6 / 50e9, 1e-9);
}

TEST(Simulate, LeavesOutOnlyLinksThatNeverHoldAFlowBack) {
  Fabric fabric({.kind = "fat_tree2", .num_nodes = 16});
  std::vector<Flow> flows;
  for (uint32_t a = 0; a < 32; ++a) {
    Flow flow{.bytes = 1e6};
    ASSERT_TRUE(fabric.route_network(a, a + 32, Routing::kAdaptive, 0, flow));
    flows.push_back(flow);
  }
  const std::vector<uint8_t> left_out = never_full(fabric.paths(), flows);
  for (const auto& l : fabric.switch_links())
    EXPECT_EQ(left_out[l.link], fabric.switch_of(0) == l.from || fabric.switch_of(32) == l.to);
  EXPECT_EQ(left_out[fabric.nic_out(0)], 0);
  // With half the cables gone the uplinks are too small, and stay.
  for (size_t i = 0; i < fabric.switch_links().size(); i += 4)
    fabric.fail_link(fabric.switch_links()[i].link);
  for (Flow& flow : flows) flow = {};
  for (uint32_t a = 0; a < 32; ++a) {
    flows[a].bytes = 1e6;
    ASSERT_TRUE(fabric.route_network(a, a + 32, Routing::kAdaptive, 0, flows[a]));
  }
  EXPECT_NEAR(simulate(fabric.paths(), flows).last_end(), 2 * 1e6 / 50e9, 1e-9);
}

TEST(Simulate, StopsAtAMomentAndKnowsWhatIsLeft) {
  Paths paths;
  const uint32_t link = paths.add_link(100.0);
  Flow one{.bytes = 1000.0};
  one.pieces[0] = paths.piece_of(link);
  Flow two = one;
  two.start = 4.0;
  const std::vector<Flow> flows = {one, two};
  const Outcome half = simulate(paths, flows, 6.0);
  EXPECT_DOUBLE_EQ(half.left_of(0), 500.0);  // 4 s alone, 2 s shared
  EXPECT_DOUBLE_EQ(half.left_of(1), 900.0);
  const Outcome whole = simulate(paths, flows);
  EXPECT_DOUBLE_EQ(whole.end_of(0), 16.0);
  EXPECT_DOUBLE_EQ(whole.end_of(1), 20.0);
  paths.set_capacity(link, 0.0);
  EXPECT_TRUE(std::isinf(simulate(paths, flows).last_end()));
  const std::vector<Flow> wrong = {Flow{.bytes = -1.0}};
  EXPECT_ERROR(simulate(paths, wrong), "a flow has -1 bytes from 0 s; allowed: from 0");
}

}  // namespace
}  // namespace hadal::plan::network
