// Flow-level simulation: each flow gets its max-min fair rate, from event to event (a flow starts,
// a flow ends), until all have ended or a given moment.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <span>
#include <vector>

#include "plan/network/paths.h"

namespace hadal::plan::network {

struct Outcome {
  std::vector<uint32_t> class_of;  // [flows]
  std::vector<double> end;         // [classes]  infinite: had not ended by `until`, or never can
  std::vector<double> left;        // [classes]  bytes still to send at `until`
  size_t num_events = 0;

  double end_of(size_t flow) const { return end[class_of[flow]]; }
  double left_of(size_t flow) const { return left[class_of[flow]]; }
  double last_end() const;  // of all flows; 0 where there are none
};

// A link of capacity 0 stops its flows for good. Exact but for rounding: flows that behave alike
// are merged (classes.h), and parts of the network that share no link are simulated apart.
Outcome simulate(const Paths& paths, std::span<const Flow> flows,
                 double until = std::numeric_limits<double>::infinity());

}  // namespace hadal::plan::network
