// Report pages of hadal plan network: tables, a sketch of the network, links by load.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "plan/html.h"
#include "plan/network/network_report.h"

namespace hadal::plan::network {
namespace {

constexpr double kCell = 16.0;

// 0 (nothing) to 7 (the most loaded): classes of the style sheet are
// categories, so opacity tells the load instead.
std::string heat(double x, double y, double load, std::string_view title) {
  return fmt::format(
      R"(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="mem4" opacity="{:.3f}"><title>{}</title></rect>)",
      x, y, kCell - 2, kCell - 2, 0.06 + 0.94 * load, escape_xml(title));
}

// Rows: switches of one kind ("leaf") by plane; columns: the switches they lead
// to. Each cell is the busiest cable between the two.
struct HeatMap {
  std::vector<uint32_t> from, to;
  std::map<std::pair<uint32_t, uint32_t>, double> bytes;
  double most = 0.0;
};

HeatMap heat_map(const Fabric& fabric, const CollectiveResult& r, int plane) {
  HeatMap map;
  for (const Fabric::SwitchLink& l : fabric.switch_links()) {
    if (fabric.plane_of_switch(l.from) != plane) continue;
    double& cell = map.bytes[{l.from, l.to}];
    cell = std::max(cell, r.link_bytes[l.link]);
    map.most = std::max(map.most, cell);
  }
  for (const auto& [pair, unused] : map.bytes) {
    if (map.from.empty() || map.from.back() != pair.first) map.from.push_back(pair.first);
    if (std::find(map.to.begin(), map.to.end(), pair.second) == map.to.end())
      map.to.push_back(pair.second);
  }
  std::sort(map.to.begin(), map.to.end());
  return map;
}

Svg draw_heat_map(const Fabric& fabric, const HeatMap& map) {
  const double left = 90, top = 24;
  Svg svg(std::max(420.0, left + kCell * static_cast<double>(map.to.size()) + 10),
          top + kCell * static_cast<double>(map.from.size()) + 10);
  svg.text(left, 14, "to: switches in order; a cell is the busiest cable", "start", "dim");
  for (size_t row = 0; row < map.from.size(); ++row) {
    const double y = top + kCell * static_cast<double>(row);
    svg.text(left - 6, y + 11, fabric.switch_name(map.from[row]), "end", "small");
    for (size_t column = 0; column < map.to.size(); ++column) {
      const auto found = map.bytes.find({map.from[row], map.to[column]});
      if (found == map.bytes.end()) continue;
      svg.raw(heat(left + kCell * static_cast<double>(column), y,
                   map.most > 0 ? found->second / map.most : 0.0,
                   fmt::format("{} to {}: {:.3f} MB", fabric.switch_name(map.from[row]),
                               fabric.switch_name(map.to[column]), found->second / 1e6)));
    }
  }
  return svg;
}

// One plane of a two-layer fat tree: spines above, leaves below, a stroke for
// each pair.
Svg draw_plane(const Fabric& fabric, const HeatMap& map) {
  std::vector<uint32_t> leaves, spines;
  for (const uint32_t s : map.from)
    (fabric.switch_name(s).starts_with("spine") ? spines : leaves).push_back(s);
  const double width =
      std::max(420.0, 34.0 * static_cast<double>(std::max(leaves.size(), spines.size())));
  Svg svg(width, 170);
  std::map<uint32_t, std::pair<double, double>> at;
  const auto lay = [&](const std::vector<uint32_t>& row, double y) {
    for (size_t i = 0; i < row.size(); ++i)
      at[row[i]] = {width * (static_cast<double>(i) + 0.5) / static_cast<double>(row.size()), y};
  };
  lay(spines, 36);
  lay(leaves, 128);
  for (const auto& [pair, bytes] : map.bytes) {
    if (pair.first > pair.second) continue;
    const auto& a = at[pair.first];
    const auto& b = at[pair.second];
    svg.line(a.first, a.second, b.first, b.second, "grid");
  }
  for (const auto& [s, place] : at) {
    const bool is_spine = fabric.switch_name(s).starts_with("spine");
    svg.rect(place.first - 12, place.second - 8, 24, 16, is_spine ? "comm" : "f",
             fabric.switch_name(s));
    svg.text(place.first, place.second + (is_spine ? -14 : 24), fabric.switch_name(s), "middle",
             "small");
  }
  return svg;
}

// Published and simulated bars side by side.
Svg draw_experts(const std::vector<ExpertRow>& rows) {
  const double left = 44, bottom = 210, top = 20, group = 62;
  double most = 0.0;
  for (const ExpertRow& r : rows) most = std::max({most, r.published, r.simulated});
  Svg svg(left + group * static_cast<double>(rows.size()) + 10, 250);
  const auto y = [&](double v) { return bottom - (bottom - top) * v / most; };
  for (double tick = 0; tick <= most; tick += 20e9) {
    svg.line(left, y(tick), svg.width() - 6, y(tick), "grid");
    svg.text(left - 6, y(tick) + 4, fmt::format("{:g}", tick / 1e9), "end", "dim");
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    const double x = left + group * static_cast<double>(i) + 8;
    const auto bar = [&](double offset, double value, const char* cls, const char* what) {
      svg.rect(x + offset, y(value), 20, bottom - y(value), cls,
               fmt::format("{} GPUs, {}: {:.2f} GB/s", rows[i].gpus, what, value / 1e9));
    };
    bar(0, rows[i].published, "gap", "published");
    bar(22, rows[i].simulated, "w", "simulated");
    svg.text(x + 21, bottom + 15, std::to_string(rows[i].gpus), "middle");
    if (i == 0 || rows[i].direction != rows[i - 1].direction)
      svg.text(x, bottom + 33, rows[i].direction, "start", "dim");
  }
  svg.text(left, 12, "GB/s; grey: published, blue: simulated", "start", "dim");
  return svg;
}

}  // namespace

std::string collective_page(const Fabric& fabric, const CollectiveSpec& spec,
                            const CollectiveResult& r) {
  const FabricSpec& shape = fabric.spec();
  Html html(fmt::format("{} of {} GPUs on {}", spec.traffic, spec.num_gpus, shape.kind));
  html.paragraph(fmt::format(
      "{} nodes of {} GPUs, {} routing, {:g} GB/s a NIC, {:g} GB/s "
      "NVLink. Flows share links "
      "max-min fairly; {} flows were merged into {} classes, "
      "without approximation.",
      shape.num_nodes, shape.gpus_per_node, routing_name(spec.routing), shape.nic_bandwidth / 1e9,
      shape.nvlink_bandwidth / 1e9, r.num_flows, r.num_classes));
  Cells cells = {{"", "value"}};
  for (const auto& row : collective_cells(spec, r)) cells.push_back(row);
  html.table(cells);
  if (fabric.switch_links().empty() || r.link_bytes.empty()) return html.page();
  const HeatMap map = heat_map(fabric, r, 0);
  if (map.from.size() <= 140) {
    html.heading("Plane 0");
    if (fabric.switch_name(map.from[0]).starts_with("leaf"))
      html.picture(draw_plane(fabric, map), "Switches of plane 0; every other plane is alike.");
    html.picture(draw_heat_map(fabric, map),
                 fmt::format("Cables by the bytes they carried, before any failure; the darkest "
                             "carried {:.2f} MB.",
                             map.most / 1e6));
  }
  if (r.plane_seconds.size() > 1) {
    html.heading("Planes");
    Cells planes = {{"plane", "done after, ms"}};
    for (size_t p = 0; p < r.plane_seconds.size(); ++p)
      planes.push_back({std::to_string(p), fmt::format("{:.4f}", r.plane_seconds[p] * 1e3)});
    html.table(planes);
  }
  return html.page();
}

std::string paper_page(const TopologyTable& topologies, const PaperNetwork& paper) {
  Html html("The multi-plane network, simulated");
  html.heading("Topologies");
  html.table(topologies_cells(topologies));
  html.paragraph(topologies.prices.source);
  bool is_first = true;
  for (const PaperTable& table : paper_tables(paper)) {
    html.heading(table.title);
    html.table(table.rows);
    if (is_first) html.picture(draw_experts(paper.experts), paper.transport.source);
    is_first = false;
  }
  return html.page();
}

}  // namespace hadal::plan::network
