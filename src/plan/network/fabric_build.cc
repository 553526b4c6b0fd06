// The graphs of switches: fat trees of two and three layers, Slim Fly, dragonfly.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include "core/check.h"
#include "plan/network/fabric.h"

namespace hadal::plan::network {
namespace {

int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_prime(int64_t n) {
  for (int64_t d = 2; d * d <= n; ++d)
    if (n % d == 0) return false;
  return n >= 2;
}

// The smallest generator of the multiplicative group of integers modulo the prime q.
int64_t primitive_root(int64_t q) {
  for (int64_t g = 2;; ++g) {
    std::set<int64_t> seen;
    for (int64_t i = 0, x = 1; i < q - 1; ++i, x = x * g % q) seen.insert(x);
    if (static_cast<int64_t>(seen.size()) == q - 1) return g;
  }
}

// Differences that join switches of one column, in the first and the second half of a Slim Fly
// (McKay, Miller and Siran's graphs; q a prime, 4w + 1 or 4w - 1).
std::pair<std::set<int64_t>, std::set<int64_t>> slim_fly_differences(int64_t q) {
  const int64_t root = primitive_root(q);
  std::vector<int64_t> power(static_cast<size_t>(q - 1));
  for (int64_t i = 0, x = 1; i < q - 1; ++i, x = x * root % q) power[static_cast<size_t>(i)] = x;
  std::pair<std::set<int64_t>, std::set<int64_t>> result;
  if (q % 4 == 1) {
    for (size_t i = 0; i < power.size(); ++i)
      (i % 2 == 0 ? result.first : result.second).insert(power[i]);
    return result;
  }
  const int64_t w = (q + 1) / 4;
  result.second.insert(1);  // the root's power 4w - 2
  for (int64_t i = 0; i < q - 1; ++i) {
    const bool early = i < 2 * w - 1;
    if (early == (i % 2 == 0)) result.first.insert(power[static_cast<size_t>(i)]);
    if (i < 2 * w ? i % 2 == 1 : i % 2 == 0) result.second.insert(power[static_cast<size_t>(i)]);
  }
  return result;
}

}  // namespace

Fabric::Fabric(const FabricSpec& spec) : spec_(spec) {
  HADAL_CHECK(spec.num_nodes >= 1 && spec.num_nodes <= 65536, "nodes is ", spec.num_nodes,
              "; allowed: 1 to 65536");
  HADAL_CHECK(spec.gpus_per_node >= 1 && spec.gpus_per_node <= 128, "gpus_per_node is ",
              spec.gpus_per_node, "; allowed: 1 to 128");
  HADAL_CHECK(spec.switch_ports >= 8 && spec.switch_ports % 2 == 0 && spec.switch_ports <= 1024,
              "switch_ports is ", spec.switch_ports, "; allowed: even numbers from 8 to 1024");
  HADAL_CHECK(spec.nic_bandwidth > 0 && spec.nvlink_bandwidth > 0,
              "bandwidths of NIC and NVLink are ", spec.nic_bandwidth, " and ",
              spec.nvlink_bandwidth, " bytes/s; allowed: more than 0");
  const size_t n = static_cast<size_t>(num_gpus());
  for (size_t i = 0; i < n; ++i) {
    nvlink_out_.push_back(paths_.add_link(spec.nvlink_bandwidth));
    nvlink_in_.push_back(paths_.add_link(spec.nvlink_bandwidth));
    nic_out_.push_back(paths_.add_link(spec.nic_bandwidth));
    nic_in_.push_back(paths_.add_link(spec.nic_bandwidth));
  }
  switch_of_.assign(n, 0);
  if (spec.kind == "multi_plane")
    build_fat_tree2(spec.gpus_per_node, false);
  else if (spec.kind == "multi_rail")
    build_fat_tree2(spec.gpus_per_node, true);
  else if (spec.kind == "fat_tree2")
    build_fat_tree2(1, true);
  else if (spec.kind == "fat_tree3")
    build_fat_tree3();
  else if (spec.kind == "slim_fly")
    build_slim_fly();
  else if (spec.kind == "dragonfly")
    build_dragonfly();
  else
    HADAL_FAIL("there is no topology ", spec.kind, " to simulate; known: dragonfly, fat_tree2, ",
               "fat_tree3, multi_plane, multi_rail, slim_fly");
  failed_.assign(paths_.num_links(), 0);
}

uint32_t Fabric::add_switch(int plane, std::string name) {
  next_.emplace_back();
  plane_.push_back(plane);
  names_.push_back(std::move(name));
  return static_cast<uint32_t>(next_.size() - 1);
}

// NOTE: the two directions of a cable get links 2n and 2n + 1 (distances_to relies on it): links of
// GPUs and NICs come in fours before them.
void Fabric::connect(uint32_t a, uint32_t b, int64_t cables) {
  for (int64_t i = 0; i < cables; ++i)
    for (const auto& [from, to] : {std::pair{a, b}, std::pair{b, a}}) {
      const uint32_t link = paths_.add_link(spec_.nic_bandwidth);
      next_[from].push_back({to, link});
      switch_links_.push_back({from, to, link, spec_.nic_bandwidth});
    }
}

void Fabric::attach(uint32_t gpu, uint32_t to_switch) { switch_of_[gpu] = to_switch; }

// `parts` planes, or rails of one fabric that share the spines; 1: nodes side by side on leaves.
void Fabric::build_fat_tree2(int64_t parts, bool is_one_fabric) {
  const int64_t down = spec_.switch_ports / 2, endpoints = num_gpus() / parts;
  const int64_t leaves_of_part = up(endpoints, down);
  const int64_t num_fabrics = is_one_fabric ? 1 : parts;
  const int64_t leaves = is_one_fabric ? leaves_of_part * parts : leaves_of_part;
  HADAL_CHECK(leaves <= spec_.switch_ports, spec_.kind, " of ", spec_.switch_ports,
              "-port switches holds ", spec_.switch_ports * down, " endpoints in ",
              spec_.switch_ports, " leaves; ", spec_.num_nodes, " nodes of ", spec_.gpus_per_node,
              " GPUs need ", leaves, " leaves: take fewer nodes or larger switches");
  const int64_t spines = leaves == 1 ? 0 : up(leaves * down, spec_.switch_ports);
  for (int64_t f = 0; f < num_fabrics; ++f) {
    const int plane = static_cast<int>(f);
    std::vector<uint32_t> leaf, spine;
    for (int64_t l = 0; l < leaves; ++l) leaf.push_back(add_switch(plane, concat("leaf ", l)));
    for (int64_t s = 0; s < spines; ++s) spine.push_back(add_switch(plane, concat("spine ", s)));
    for (int64_t l = 0; l < leaves; ++l)
      for (int64_t s = 0; s < spines; ++s)
        connect(leaf[static_cast<size_t>(l)], spine[static_cast<size_t>(s)],
                down / spines + ((l + s) % spines < down % spines ? 1 : 0));
    for (int64_t node = 0; node < spec_.num_nodes; ++node)
      for (int64_t i = 0; i < spec_.gpus_per_node; ++i) {
        if (parts == 1)
          attach(gpu(node, i), leaf[static_cast<size_t>(gpu(node, i) / down)]);
        else if (is_one_fabric)
          attach(gpu(node, i), leaf[static_cast<size_t>(i * leaves_of_part + node / down)]);
        else if (i == f)
          attach(gpu(node, i), leaf[static_cast<size_t>(node / down)]);
      }
  }
}

// Pods of k/2 leaves and k/2 middle switches; middle switch j of every pod reaches cores j*k/2 on.
void Fabric::build_fat_tree3() {
  const int64_t half = spec_.switch_ports / 2, pods = up(num_gpus(), half * half);
  HADAL_CHECK(pods <= spec_.switch_ports, "fat_tree3 of ", spec_.switch_ports,
              "-port switches holds ", spec_.switch_ports * half * half, " endpoints; there are ",
              num_gpus(), ": take fewer nodes or larger switches");
  std::vector<uint32_t> core;
  for (int64_t c = 0; c < (pods > 1 ? half * half : 0); ++c)
    core.push_back(add_switch(0, concat("core ", c)));
  for (int64_t p = 0; p < pods; ++p) {
    std::vector<uint32_t> leaf, middle;
    for (int64_t i = 0; i < half; ++i) leaf.push_back(add_switch(0, concat("leaf ", p, ".", i)));
    for (int64_t i = 0; i < half; ++i)
      middle.push_back(add_switch(0, concat("middle ", p, ".", i)));
    for (const uint32_t l : leaf)
      for (const uint32_t m : middle) connect(l, m, 1);
    for (size_t c = 0; c < core.size(); ++c)
      connect(middle[c / static_cast<size_t>(half)], core[c], 1);
    for (int64_t e = 0; e < half * half && p * half * half + e < num_gpus(); ++e)
      attach(static_cast<uint32_t>(p * half * half + e), leaf[static_cast<size_t>(e / half)]);
  }
}

// The smallest Slim Fly on a prime q that holds all endpoints.
void Fabric::build_slim_fly() {
  int64_t q = 5;
  const auto radix = [](int64_t p) { return (3 * p - (p % 4 == 1 ? 1 : -1)) / 2; };
  const auto each = [&](int64_t p) { return (radix(p) + 1) / 2; };
  while (!is_prime(q) || 2 * q * q * each(q) < num_gpus()) ++q;
  HADAL_CHECK(radix(q) + each(q) <= spec_.switch_ports, "slim_fly: ", num_gpus(),
              " endpoints need ", radix(q) + each(q), " ports of a switch, there are ",
              spec_.switch_ports, ": take fewer nodes or larger switches");
  const auto [first, second] = slim_fly_differences(q);
  const auto at = [&](int64_t half, int64_t column, int64_t row) {
    return static_cast<uint32_t>((half * q + column) * q + row);
  };
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t column = 0; column < q; ++column)
      for (int64_t row = 0; row < q; ++row) add_switch(0, concat(half, ".", column, ".", row));
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t column = 0; column < q; ++column)
      for (int64_t a = 0; a < q; ++a)
        for (int64_t b = 0; b < a; ++b)
          if ((half == 0 ? first : second).contains(a - b))
            connect(at(half, column, a), at(half, column, b), 1);
  for (int64_t x = 0; x < q; ++x)
    for (int64_t m = 0; m < q; ++m)
      for (int64_t c = 0; c < q; ++c) connect(at(0, x, (m * x + c) % q), at(1, m, c), 1);
  for (int64_t e = 0; e < num_gpus(); ++e)
    attach(static_cast<uint32_t>(e), static_cast<uint32_t>(e / each(q)));
}

// Balanced (p = h, a = 2h); the global links of a group are spread evenly over the other groups.
void Fabric::build_dragonfly() {
  const int64_t h = (spec_.switch_ports + 1) / 4, a = 2 * h, groups = up(num_gpus(), h * a);
  HADAL_CHECK(groups <= a * h + 1, "dragonfly of ", spec_.switch_ports, "-port switches holds ",
              h * a * (a * h + 1), " endpoints; there are ", num_gpus(),
              ": take fewer nodes or larger switches");
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t s = 0; s < a; ++s) add_switch(0, concat("group ", g, ".", s));
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t s = 0; s < a; ++s)
      for (int64_t t = 0; t < s; ++t)
        connect(static_cast<uint32_t>(g * a + s), static_cast<uint32_t>(g * a + t), 1);
  const int64_t trunk = groups > 1 ? a * h / (groups - 1) : 0;
  for (int64_t i = 0; i < groups; ++i)
    for (int64_t j = i + 1; j < groups; ++j)
      for (int64_t cable = 0; cable < trunk; ++cable) {
        const int64_t port_i = cable * (groups - 1) + j - 1, port_j = cable * (groups - 1) + i;
        connect(static_cast<uint32_t>(i * a + port_i / h),
                static_cast<uint32_t>(j * a + port_j / h), 1);
      }
  for (int64_t e = 0; e < num_gpus(); ++e)
    attach(static_cast<uint32_t>(e), static_cast<uint32_t>(e / h));
}

}  // namespace hadal::plan::network
