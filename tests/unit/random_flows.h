// Random small networks and flows over them, for tests of the flow simulator.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <vector>

#include "core/rng.h"
#include "plan/network/paths.h"

namespace hadal::testing {

struct RandomFlows {
  plan::network::Paths paths;
  std::vector<plan::network::Flow> flows;
  std::vector<std::vector<uint32_t>> links_of;  // [flows]

  // num_links links, flows over 1 to 4 different ones; some capacities, sizes and starts repeat.
  RandomFlows(uint64_t seed, int num_links, int num_flows) {
    const Rng rng(seed, stream_id("random_flows"));
    uint64_t at = 0;
    const auto draw = [&](int n) {
      return static_cast<int>(rng.u64(at++) % static_cast<uint64_t>(n));
    };
    for (int l = 0; l < num_links; ++l) paths.add_link(1e8 * (1 + draw(5)) + draw(2) * 3.7e7);
    for (int f = 0; f < num_flows; ++f) {
      std::vector<uint32_t> links;
      for (int i = 0, n = 1 + draw(4); i < n; ++i) {
        const auto l = static_cast<uint32_t>(draw(num_links));
        if (std::find(links.begin(), links.end(), l) == links.end()) links.push_back(l);
      }
      plan::network::Flow flow{.bytes = 1e6 * (1 + draw(20)), .start = 0.01 * draw(6)};
      for (size_t i = 0; i < links.size(); ++i) flow.pieces[i] = paths.piece_of(links[i]);
      flows.push_back(flow);
      links_of.push_back(links);
    }
  }
};

}  // namespace hadal::testing
