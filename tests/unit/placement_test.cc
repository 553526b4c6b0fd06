// Expert placement: the public example of EPLB, invariants on random loads, dynamic redundancy
// against every choice of a small case.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/placement.h"

#include <algorithm>
#include <numeric>

#include "core/rng.h"
#include "tests/unit/expect_error.h"

namespace hadal::placement {
namespace {

// Zipf-like loads in random order.
std::vector<double> random_loads(size_t E, uint64_t seed) {
  const Rng rng(seed, stream_id("placement.loads"));
  std::vector<double> loads(E);
  for (size_t e = 0; e < E; ++e) loads[e] = 1.0 / (0.02 + rng.uniform(e));
  return loads;
}

void expect_valid(const Placement& p, size_t E) {
  std::vector<int32_t> seen(E, 0);
  for (size_t s = 0; s < p.expert_of_slot.size(); ++s) {
    const auto e = static_cast<size_t>(p.expert_of_slot[s]);
    ASSERT_LT(e, E);
    EXPECT_LT(p.replica_of_slot[s], p.num_replicas_of[e]);
    ++seen[e];
  }
  EXPECT_EQ(seen, p.num_replicas_of);
  EXPECT_GE(*std::min_element(seen.begin(), seen.end()), 1);
}

// Both layers of the example in EPLB's README: 12 experts, 4 redundant, 4 groups, 2 nodes, 8 GPUs.
TEST(Placement, ReproducesThePublicExample) {
  const Layout layout{.num_replicas = 16, .num_groups = 4, .num_nodes = 2, .num_gpus = 8};
  const std::vector<double> first = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
  const std::vector<double> second = {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};
  EXPECT_EQ(balanced(first, layout).expert_of_slot,
            (std::vector<int32_t>{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  EXPECT_EQ(balanced(second, layout).expert_of_slot,
            (std::vector<int32_t>{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}));
}

TEST(Placement, KeepsGroupsOnOneNodeWhenHierarchical) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<double> loads = random_loads(256, seed);
    const Placement p = hierarchical(loads, {});
    expect_valid(p, 256);
    std::vector<int64_t> node_of_group(8, -1);
    for (size_t s = 0; s < p.expert_of_slot.size(); ++s) {
      auto& node = node_of_group[static_cast<size_t>(p.expert_of_slot[s] / 32)];
      const auto here = static_cast<int64_t>(s) / 72;
      if (node < 0) node = here;
      EXPECT_EQ(node, here);
    }
  }
}

TEST(Placement, BalancesBetterWithRedundancyThanWithout) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<double> loads = random_loads(256, seed);
    const double plain = imbalance(gpu_loads(in_order(256, 32), loads));
    const double by_node = imbalance(gpu_loads(hierarchical(loads, {}), loads));
    const double anywhere = imbalance(gpu_loads(global(loads, {}), loads));
    EXPECT_LT(by_node, plain);
    EXPECT_LE(anywhere, by_node * 1.001);
    EXPECT_LT(anywhere, 1.1);
  }
}

TEST(Placement, IsGlobalWhereNodesDoNotDivideTheGroups) {
  const std::vector<double> loads = random_loads(256, 1);
  const Layout decode{.num_replicas = 288, .num_groups = 8, .num_nodes = 18, .num_gpus = 144};
  EXPECT_EQ(balanced(loads, decode).expert_of_slot, global(loads, decode).expert_of_slot);
  expect_valid(balanced(loads, decode), 256);
}

TEST(Activation, KeepsEveryTokenAndEveryLimit) {
  const Layout layout{.num_replicas = 512, .num_groups = 8, .num_nodes = 4, .num_gpus = 32};
  const Placement hosted = global(random_loads(256, 3), layout);
  for (uint64_t seed = 10; seed < 15; ++seed) {
    const std::vector<double> loads = random_loads(256, seed);
    const Activation a = activate(hosted, loads, 9);
    std::vector<double> of_expert(256, 0.0), of_gpu(32, 0.0);
    std::vector<int> running(32, 0);
    for (size_t s = 0; s < 512; ++s) {
      if (!a.active[s]) {
        EXPECT_EQ(a.tokens_of_slot[s], 0.0);
      }
      of_expert[static_cast<size_t>(hosted.expert_of_slot[s])] += a.tokens_of_slot[s];
      of_gpu[s / 16] += a.tokens_of_slot[s];
      running[s / 16] += a.active[s];
    }
    for (size_t e = 0; e < 256; ++e) EXPECT_NEAR(of_expert[e], loads[e], 1e-9 * loads[e]);
    for (size_t g = 0; g < 32; ++g) EXPECT_NEAR(of_gpu[g], a.tokens_of_gpu[g], 1e-6 * of_gpu[g]);
    EXPECT_LE(*std::max_element(running.begin(), running.end()), 9);
  }
}

// Loads that the placement was not made for: choosing per batch beats sharing evenly.
TEST(Activation, FollowsABatchThatStatisticsDidNotForesee) {
  const std::vector<double> forecast = random_loads(256, 3);
  const Placement nine = global(forecast, {});
  const Placement sixteen =
      global(forecast, {.num_replicas = 512, .num_groups = 8, .num_nodes = 4, .num_gpus = 32});
  double fixed = 0, dynamic = 0;
  for (uint64_t seed = 20; seed < 24; ++seed) {
    std::vector<double> loads = forecast;
    const Rng rng(seed, 0);
    for (size_t e = 0; e < loads.size(); ++e) loads[e] *= 0.5 + rng.uniform(e);
    fixed += imbalance(gpu_loads(nine, loads)) / 4;
    dynamic += imbalance(activate(sixteen, loads, 9).tokens_of_gpu) / 4;
  }
  EXPECT_LT(dynamic, 1.16);
  EXPECT_GT(fixed, 1.26);
}

// The smallest maximum over every choice of running slots, each split by levelling.
double best_maximum(const Placement& hosted, const std::vector<double>& loads, int64_t active) {
  const size_t R = hosted.expert_of_slot.size();
  double best = 1e30;
  for (uint32_t mask = 0; mask < (1u << R); ++mask) {
    std::vector<int> running(static_cast<size_t>(hosted.num_gpus), 0);
    bool allowed = true;
    for (size_t s = 0; s < R; ++s)
      if (mask >> s & 1 && ++running[s / static_cast<size_t>(hosted.slots_per_gpu())] > active)
        allowed = false;
    if (!allowed) continue;
    // Halve the distance to the level again and again: independent of the production code.
    std::vector<double> tokens(R, 0.0), gpu(static_cast<size_t>(hosted.num_gpus), 0.0);
    for (size_t e = 0; e < loads.size() && allowed; ++e) {
      std::vector<size_t> mine;
      for (size_t s = 0; s < R; ++s)
        if ((mask >> s & 1) && hosted.expert_of_slot[s] == static_cast<int32_t>(e))
          mine.push_back(s);
      allowed = !mine.empty();
      for (const size_t s : mine) {
        tokens[s] = loads[e] / static_cast<double>(mine.size());
        gpu[s / static_cast<size_t>(hosted.slots_per_gpu())] += tokens[s];
      }
    }
    if (!allowed) continue;
    for (int sweep = 0; sweep < 300; ++sweep)
      for (size_t a = 0; a < R; ++a)
        for (size_t b = 0; b < R; ++b) {
          if (!(mask >> a & 1) || !(mask >> b & 1)) continue;
          if (hosted.expert_of_slot[a] != hosted.expert_of_slot[b]) continue;
          double& ga = gpu[a / static_cast<size_t>(hosted.slots_per_gpu())];
          double& gb = gpu[b / static_cast<size_t>(hosted.slots_per_gpu())];
          const double move = std::min(tokens[a], (ga - gb) / 2);
          if (&ga == &gb || move <= 0) continue;
          tokens[a] -= move, tokens[b] += move, ga -= move, gb += move;
        }
    best = std::min(best, *std::max_element(gpu.begin(), gpu.end()));
  }
  return best;
}

TEST(Activation, IsNearTheBestChoiceOfSmallCases) {
  const Layout layout{.num_replicas = 12, .num_groups = 1, .num_nodes = 1, .num_gpus = 4};
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const Placement hosted = global(random_loads(6, seed), layout);
    const std::vector<double> loads = random_loads(6, seed + 100);
    const Activation a = activate(hosted, loads, 2);
    const double found = *std::max_element(a.tokens_of_gpu.begin(), a.tokens_of_gpu.end());
    const double best = best_maximum(hosted, loads, 2);
    EXPECT_GE(found, best * (1 - 1e-4));
    EXPECT_LE(found, best * 1.25);
  }
}

TEST(Placement, RefusesWhatCannotBePlaced) {
  const std::vector<double> loads(12, 1.0);
  EXPECT_ERROR(
      balanced(loads, {.num_replicas = 15, .num_groups = 4, .num_nodes = 2, .num_gpus = 8}),
      "num_replicas is 15; allowed: multiples of num_gpus = 8");
  EXPECT_ERROR(balanced(loads, {.num_replicas = 8, .num_groups = 4, .num_nodes = 2, .num_gpus = 8}),
               "num_replicas is 8; allowed: at least the number of experts, 12");
  EXPECT_ERROR(
      balanced(loads, {.num_replicas = 16, .num_groups = 5, .num_nodes = 2, .num_gpus = 8}),
      "num_groups is 5; allowed: divisors of the number of experts, 12");
  EXPECT_ERROR(
      balanced(loads, {.num_replicas = 16, .num_groups = 4, .num_nodes = 3, .num_gpus = 8}),
      "num_nodes is 3; allowed: divisors of num_gpus = 8");
  EXPECT_ERROR(
      hierarchical(loads, {.num_replicas = 16, .num_groups = 1, .num_nodes = 2, .num_gpus = 8}),
      "num_nodes is 2; allowed for hierarchical placement: divisors of num_groups = 1");
  EXPECT_ERROR(in_order(12, 8), "num_gpus is 8; allowed: divisors of the number of experts, 12");
  EXPECT_ERROR(activate(in_order(12, 4), loads, 4),
               "active_per_gpu is 4; allowed: 1 to 3 hosted on a GPU");
  EXPECT_ERROR(activate(in_order(12, 4), loads, 2),
               "no choice of 2 experts a GPU runs every expert: expert 2 finds no room; host more "
               "replicas or run more of them");
}

}  // namespace
}  // namespace hadal::placement
