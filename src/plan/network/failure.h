// Failures while a collective runs: of a NIC, a cable, a switch or a plane.
//
// Flows over what failed stand still until the time to re-route has passed, then send the rest of
// their bytes on other ways: over other cables of the plane, or relayed over the other planes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "plan/network/traffic.h"

namespace hadal::plan::network {

// What fails while a collective runs, and how long until its traffic takes other ways.
struct Failure {
  enum class Kind : uint8_t { kNone, kNic, kLink, kSwitch, kPlane } kind = Kind::kNone;
  int64_t index = 0;     // of the GPU whose NIC, the cable, the switch or the plane it is
  double at = 0.0;       // seconds
  double reroute = 0.0;  // seconds
};
Failure parse_failure(const std::string& text, const char* flag);  // "plane:0", "nic:17", ...
void apply(Fabric& fabric, const Failure& failure);

struct FailureOutcome {
  double end = 0.0;               // of everything
  double end_without = 0.0;       // had nothing failed
  size_t num_flows = 0;           // that were running
  size_t num_stopped = 0;         // of them stood still until they were re-routed
  size_t num_others_stopped = 0;  // of those that do not cross what failed
  double bytes_moved = 0.0;       // left to send on other ways
};
// `fabric` is left as it is after the failure.
FailureOutcome simulate_failure(Fabric& fabric, Traffic& traffic, Routing routing,
                                const Failure& failure);

}  // namespace hadal::plan::network
