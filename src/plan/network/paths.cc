// Links and paths of a simulated network.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/paths.h"

namespace hadal::plan::network {

uint32_t Paths::add_link(double capacity) {
  const uint32_t link = static_cast<uint32_t>(capacity_.size());
  capacity_.push_back(capacity);
  const Hop whole{link, 1.0};
  piece_of_link_.push_back(add_piece(std::span(&whole, 1)));
  return link;
}

uint32_t Paths::add_piece(std::span<const Hop> hops) {
  hops_.insert(hops_.end(), hops.begin(), hops.end());
  begin_.push_back(hops_.size());
  return static_cast<uint32_t>(begin_.size() - 2);
}

}  // namespace hadal::plan::network
