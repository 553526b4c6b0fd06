// Expert placement: replication by the largest load per replica, packing by the lightest bin.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"

namespace hadal::placement {
namespace {

using Loads = std::span<const double>;

void check(Loads loads, const Layout& l) {
  const int64_t E = static_cast<int64_t>(loads.size());
  HADAL_CHECK(E > 0, "there are no expert loads; give one number for each expert");
  for (const double load : loads)
    HADAL_CHECK(std::isfinite(load) && load >= 0, "an expert load is ", load,
                "; allowed: finite numbers from 0");
  HADAL_CHECK(l.num_gpus > 0 && l.num_replicas % l.num_gpus == 0, "num_replicas is ",
              l.num_replicas, "; allowed: multiples of num_gpus = ", l.num_gpus);
  HADAL_CHECK(l.num_replicas >= E, "num_replicas is ", l.num_replicas,
              "; allowed: at least the number of experts, ", E);
  HADAL_CHECK(l.num_nodes > 0 && l.num_gpus % l.num_nodes == 0, "num_nodes is ", l.num_nodes,
              "; allowed: divisors of num_gpus = ", l.num_gpus);
  HADAL_CHECK(l.num_groups > 0 && E % l.num_groups == 0, "num_groups is ", l.num_groups,
              "; allowed: divisors of the number of experts, ", E);
}

// Indices by falling load; equal loads keep their order.
std::vector<int32_t> heaviest_first(Loads loads) {
  std::vector<int32_t> order(loads.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return loads[static_cast<size_t>(a)] > loads[static_cast<size_t>(b)];
  });
  return order;
}

// Where each item goes: bin * (items / bins) + its rank in the bin, every bin equally full.
std::vector<int32_t> pack(Loads items, int64_t num_bins) {
  const int32_t bin_size = static_cast<int32_t>(items.size()) / static_cast<int32_t>(num_bins);
  std::vector<int32_t> place(items.size());
  if (bin_size == 1) {
    std::iota(place.begin(), place.end(), 0);
    return place;
  }
  std::vector<double> weight(static_cast<size_t>(num_bins), 0.0);
  std::vector<int32_t> filled(static_cast<size_t>(num_bins), 0);
  for (const int32_t item : heaviest_first(items)) {
    size_t lightest = weight.size();
    for (size_t bin = 0; bin < weight.size(); ++bin)
      if (filled[bin] < bin_size && (lightest == weight.size() || weight[bin] < weight[lightest]))
        lightest = bin;
    place[static_cast<size_t>(item)] =
        static_cast<int32_t>(lightest) * bin_size + filled[lightest]++;
    weight[lightest] += items[static_cast<size_t>(item)];
  }
  return place;
}

struct Replicas {
  std::vector<int32_t> expert;  // [R]  the first E are 0, 1, ...
  std::vector<int32_t> rank;    // [R]
  std::vector<int32_t> count;   // [E]
};

// Each redundant replica goes to the expert with the largest load per replica.
Replicas replicate(Loads loads, int64_t num_replicas) {
  Replicas r{.expert = std::vector<int32_t>(loads.size()),
             .rank = std::vector<int32_t>(loads.size(), 0),
             .count = std::vector<int32_t>(loads.size(), 1)};
  std::iota(r.expert.begin(), r.expert.end(), 0);
  while (static_cast<int64_t>(r.expert.size()) < num_replicas) {
    size_t worst = 0;
    for (size_t e = 1; e < loads.size(); ++e)
      if (loads[e] / r.count[e] > loads[worst] / r.count[worst]) worst = e;
    r.expert.push_back(static_cast<int32_t>(worst));
    r.rank.push_back(r.count[worst]++);
  }
  return r;
}

// Replicates `experts` (their global ids) and packs them on num_gpus GPUs, from slot `begin` on.
void place_on(std::span<const int32_t> experts, Loads all_loads, int64_t num_gpus, size_t begin,
              size_t num_slots, Placement& out) {
  std::vector<double> loads;
  for (const int32_t e : experts) loads.push_back(all_loads[static_cast<size_t>(e)]);
  const Replicas r = replicate(loads, static_cast<int64_t>(num_slots));
  std::vector<double> per_replica;
  for (const int32_t e : r.expert)
    per_replica.push_back(loads[static_cast<size_t>(e)] / r.count[static_cast<size_t>(e)]);
  const std::vector<int32_t> place = pack(per_replica, num_gpus);
  for (size_t i = 0; i < num_slots; ++i) {
    const size_t slot = begin + static_cast<size_t>(place[i]);
    const int32_t expert = experts[static_cast<size_t>(r.expert[i])];
    out.expert_of_slot[slot] = expert;
    out.replica_of_slot[slot] = r.rank[i];
    ++out.num_replicas_of[static_cast<size_t>(expert)];
  }
}

Placement empty(size_t E, const Layout& l) {
  const size_t R = static_cast<size_t>(l.num_replicas);
  return {.expert_of_slot = std::vector<int32_t>(R),
          .replica_of_slot = std::vector<int32_t>(R),
          .num_replicas_of = std::vector<int32_t>(E, 0),
          .num_gpus = l.num_gpus};
}

}  // namespace

Placement hierarchical(Loads loads, const Layout& l) {
  check(loads, l);
  HADAL_CHECK(l.num_groups % l.num_nodes == 0, "num_nodes is ", l.num_nodes,
              "; allowed for hierarchical placement: divisors of num_groups = ", l.num_groups);
  const size_t num_groups = static_cast<size_t>(l.num_groups);
  const size_t group_size = loads.size() / num_groups;
  const size_t num_nodes = static_cast<size_t>(l.num_nodes), on_node = num_groups / num_nodes;
  HADAL_CHECK(l.num_replicas % l.num_nodes == 0 &&
                  static_cast<size_t>(l.num_replicas / l.num_nodes) >= on_node * group_size,
              "num_replicas is ", l.num_replicas, "; a node has to hold its own ",
              on_node * group_size, " experts");
  std::vector<double> group_load(num_groups, 0.0);
  for (size_t e = 0; e < loads.size(); ++e) group_load[e / group_size] += loads[e];
  // experts_in_order: node by node, the experts of its groups
  std::vector<int32_t> experts_in_order(loads.size());
  const std::vector<int32_t> place = pack(group_load, l.num_nodes);
  for (size_t e = 0; e < loads.size(); ++e)
    experts_in_order[static_cast<size_t>(place[e / group_size]) * group_size + e % group_size] =
        static_cast<int32_t>(e);
  Placement out = empty(loads.size(), l);
  const size_t experts_per_node = loads.size() / num_nodes;
  const size_t slots_per_node = static_cast<size_t>(l.num_replicas) / num_nodes;
  for (size_t node = 0; node < num_nodes; ++node)
    place_on(std::span(experts_in_order).subspan(node * experts_per_node, experts_per_node), loads,
             l.num_gpus / l.num_nodes, node * slots_per_node, slots_per_node, out);
  return out;
}

Placement global(Loads loads, const Layout& l) {
  check(loads, l);
  Placement out = empty(loads.size(), l);
  std::vector<int32_t> experts(loads.size());
  std::iota(experts.begin(), experts.end(), 0);
  place_on(experts, loads, l.num_gpus, 0, static_cast<size_t>(l.num_replicas), out);
  return out;
}

Placement balanced(Loads loads, const Layout& l) {
  check(loads, l);
  return l.num_groups % l.num_nodes == 0 ? hierarchical(loads, l) : global(loads, l);
}

Placement in_order(int64_t num_experts, int64_t num_gpus) {
  HADAL_CHECK(num_gpus > 0 && num_experts > 0 && num_experts % num_gpus == 0, "num_gpus is ",
              num_gpus, "; allowed: divisors of the number of experts, ", num_experts);
  Placement out =
      empty(static_cast<size_t>(num_experts), {.num_replicas = num_experts, .num_gpus = num_gpus});
  std::iota(out.expert_of_slot.begin(), out.expert_of_slot.end(), 0);
  std::fill(out.num_replicas_of.begin(), out.num_replicas_of.end(), 1);
  return out;
}

std::vector<double> gpu_loads(const Placement& p, Loads loads) {
  HADAL_CHECK(loads.size() == p.num_replicas_of.size(), "there are ", loads.size(),
              " loads for a placement of ", p.num_replicas_of.size(), " experts");
  std::vector<double> total(static_cast<size_t>(p.num_gpus), 0.0);
  const size_t per_gpu = static_cast<size_t>(p.slots_per_gpu());
  for (size_t slot = 0; slot < p.expert_of_slot.size(); ++slot) {
    const size_t e = static_cast<size_t>(p.expert_of_slot[slot]);
    total[slot / per_gpu] += loads[e] / p.num_replicas_of[e];
  }
  return total;
}

double imbalance(Loads loads) {
  const double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  if (sum <= 0) return 1.0;
  return *std::max_element(loads.begin(), loads.end()) * static_cast<double>(loads.size()) / sum;
}

}  // namespace hadal::placement
