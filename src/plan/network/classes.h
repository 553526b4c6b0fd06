// Flows and links that behave alike, so that one of each is simulated for all.
//
// Colour refinement: links begin with the colour of their capacity, flows with that of their bytes
// and start; then each takes on the colours it meets, until no colour splits any more. In the end
// every flow of a class crosses links of the same classes with the same shares, and every link of a
// class carries the same number of flows of each class. Equal rates within classes then satisfy the
// bottleneck condition that makes an allocation max-min fair, so the merged network has the exact
// rates of the whole one, at every moment: flows of a class also start and end together.
//
// Colours are 64-bit hashes; two that should differ agree with a probability below 1e-6 even among
// a million classes.
//
// Before that, links that can never hold a flow back are left out: those whose capacity is at least
// what the first links (or the last links) of all the paths over them can deliver. A fat tree that
// is not oversubscribed falls apart into its NICs in this way.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "plan/network/max_min.h"
#include "plan/network/paths.h"

namespace hadal::plan::network {

struct Classes {
  std::vector<uint32_t> class_of;    // [flows]
  std::vector<uint32_t> example_of;  // [classes]  a flow of the class
  std::vector<uint32_t> count;       // [classes]  flows in the class
  Incidence incidence;               // of classes (as flows) and classes of links (as links)
  size_t num_classes() const { return example_of.size(); }
};

Classes merge_alike(const Paths& paths, std::span<const Flow> flows);

// Links that cannot be a bottleneck, whatever the flows send.                       [links]
std::vector<uint8_t> never_full(const Paths& paths, std::span<const Flow> flows);

}  // namespace hadal::plan::network
