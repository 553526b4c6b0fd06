// Sizes and costs of network topologies.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/topology.h"

#include <map>

#include "core/check.h"
#include "io/json.h"

namespace hadal::plan::network {
namespace {

constexpr int64_t kMaxPorts = 1024;

struct SlimFly {
  int64_t switches, radix, endpoints_per_switch;
};

// q = 4w + d with d in {-1, 0, 1}: two copies of a q x q grid.
SlimFly slim_fly(int64_t q) {
  const int64_t d = q % 4 == 3 ? -1 : q % 4;
  const int64_t radix = (3 * q - d) / 2;
  return {.switches = 2 * q * q, .radix = radix, .endpoints_per_switch = (radix + 1) / 2};
}

TopologySize fat_tree2(const Topology& t) {
  const int64_t k = t.switch_ports;
  return {.endpoints = k * k / 2, .switches = 3 * k / 2, .links = k * k / 2};
}

TopologySize multi_plane(const Topology& t) {
  const TopologySize plane = fat_tree2(t);
  return {.endpoints = t.planes * plane.endpoints,
          .switches = t.planes * plane.switches,
          .links = t.planes * plane.links};
}

TopologySize fat_tree3(const Topology& t) {
  const int64_t k = t.switch_ports, endpoints = k * k * k / 4;
  return {.endpoints = endpoints, .switches = 5 * k * k / 4, .links = 2 * endpoints};
}

TopologySize slim_fly_size(const Topology& t) {
  const SlimFly s = slim_fly(slim_fly_q(t.switch_ports));
  return {.endpoints = s.switches * s.endpoints_per_switch,
          .switches = s.switches,
          .links = s.switches * s.radix / 2};
}

TopologySize dragonfly(const Topology& t) {
  const int64_t h = (t.switch_ports + 1) / 4, a = 2 * h;
  const int64_t most = a * h + 1, groups = t.groups == 0 ? most : t.groups;
  HADAL_CHECK(groups >= 2 && groups <= most, t.name, ": groups is ", groups, "; allowed: 2 to ",
              most, " with ", t.switch_ports, " ports");
  return {.endpoints = h * a * groups,
          .switches = a * groups,
          .links = groups * (a * (a - 1) / 2 + a * h / 2)};
}

using SizeOf = TopologySize (*)(const Topology&);
const std::map<std::string, SizeOf>& kinds() {
  static const std::map<std::string, SizeOf> all = {
      {"fat_tree2", fat_tree2}, {"multi_rail", fat_tree2},   {"multi_plane", multi_plane},
      {"fat_tree3", fat_tree3}, {"slim_fly", slim_fly_size}, {"dragonfly", dragonfly}};
  return all;
}

}  // namespace

int64_t slim_fly_q(int64_t switch_ports) {
  int64_t best = 0;
  for (int64_t q = 3; q <= switch_ports; ++q) {
    if (q % 4 == 2) continue;
    const SlimFly s = slim_fly(q);
    if (s.radix + s.endpoints_per_switch <= switch_ports) best = q;
  }
  return best;
}

TopologySize size_of(const Topology& t) {
  const auto found = kinds().find(t.kind);
  if (found == kinds().end()) {
    std::string known;
    for (const auto& [kind, unused] : kinds()) known += (known.empty() ? "" : ", ") + kind;
    HADAL_FAIL(t.name, ": there is no topology ", t.kind, "; known: ", known);
  }
  HADAL_CHECK(t.switch_ports >= 8 && t.switch_ports <= kMaxPorts && t.switch_ports % 2 == 0, t.name,
              ": switch_ports is ", t.switch_ports, "; allowed: even numbers from 8 to ",
              kMaxPorts);
  HADAL_CHECK(t.planes >= 1 && t.planes <= 64, t.name, ": planes is ", t.planes,
              "; allowed: 1 to 64");
  return found->second(t);
}

double cost_dollars(const TopologySize& size, const UnitPrices& prices) {
  return static_cast<double>(size.switches) * prices.switch_dollars +
         static_cast<double>(size.links) * prices.link_dollars +
         static_cast<double>(size.endpoints) * prices.endpoint_dollars;
}

TopologyTable read_topologies(const std::string& path) {
  const io::JsonObject root = io::JsonObject::read(path);
  const io::JsonObject prices = root.object("prices");
  TopologyTable table;
  table.prices = {.switch_dollars = prices.number("switch_dollars"),
                  .link_dollars = prices.number("link_dollars"),
                  .endpoint_dollars = prices.number("endpoint_dollars"),
                  .source = prices.string("source")};
  for (const double price :
       {table.prices.switch_dollars, table.prices.link_dollars, table.prices.endpoint_dollars})
    HADAL_CHECK(price >= 0, path, ": a price is ", price, "; allowed: dollars from 0");
  prices.check_no_unknown();
  for (const io::JsonObject& row : root.objects("topologies")) {
    table.rows.push_back({.name = row.string("name"),
                          .kind = row.string("kind"),
                          .switch_ports = row.integer("switch_ports"),
                          .planes = row.integer("planes", 1),
                          .groups = row.integer("groups", 0)});
    row.check_no_unknown();
    size_of(table.rows.back());
  }
  HADAL_CHECK(!table.rows.empty(), path, ": topologies is empty; list at least one");
  root.check_no_unknown();
  return table;
}

}  // namespace hadal::plan::network
