// What hadal plan serve prints, as cells, JSON and a page.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "io/json.h"
#include "plan/serve.h"

namespace hadal::plan {

struct ServeReport {
  ServeRates rates;
  ServeLoad load;
  ServeDevice device;
  ServePlan plan;
  std::vector<CacheRow> caches;  // in what the weights of a decode GPU leave
  // 32 tokens, 9 targets, hidden 7,000: as printed in the paper; then the same for this model.
  struct Limit {
    std::string name;
    EpLimit limit;
  };
  std::vector<Limit> limits;
};
ServeReport make_serve_report(const Config& config, ServeRates rates, ServeLoad load,
                              const ServeDevice& device);

struct ServeTable {
  std::string title;
  std::vector<std::vector<std::string>> rows;  // the first is the header
};
std::vector<ServeTable> serve_tables(const ServeReport& report);
io::Json serve_json(const ServeReport& report);
std::string serve_page(const ServeReport& report);

}  // namespace hadal::plan
