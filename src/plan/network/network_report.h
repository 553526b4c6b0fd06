// What hadal plan network prints, as cells, JSON and pages.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "io/json.h"
#include "plan/network/paper.h"
#include "plan/network/topology.h"

namespace hadal::plan::network {

using Cells = std::vector<std::vector<std::string>>;

// One column per topology.
Cells topologies_cells(const TopologyTable& table);
io::Json topologies_json(const TopologyTable& table);

// Name and value.
Cells collective_cells(const CollectiveSpec& spec, const CollectiveResult& result);
io::Json collective_json(const Fabric& fabric, const CollectiveSpec& spec,
                         const CollectiveResult& result);
// Its network as a sketch, links coloured by the bytes they carried.
std::string collective_page(const Fabric& fabric, const CollectiveSpec& spec,
                            const CollectiveResult& result);

struct PaperNetwork {
  ExpertTransport transport;
  std::vector<ExpertRow> experts;
  std::vector<PlaneRow> planes;
  PlaneLoss loss;
  std::vector<NodeLimitRow> limits;
  Congestion congestion;
  std::vector<RoutingRow> rings;
};
PaperNetwork simulate_paper(const ExpertTransport& transport);

struct PaperTable {
  std::string title;
  Cells rows;  // the first is the header
};
std::vector<PaperTable> paper_tables(const PaperNetwork& paper);
io::Json paper_json(const PaperNetwork& paper);
std::string paper_page(const TopologyTable& topologies, const PaperNetwork& paper);

}  // namespace hadal::plan::network
