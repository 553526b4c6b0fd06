// PeerWindows: a window of each GPU of a group, mapped by all of them (ops/peer.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/device_window.h"
#include "ops/peer.h"
#include "parallel/world.h"

namespace hadal {

class PeerWindows {
 public:
  // Collective over `ranks` of the world: ascending, this one among them, all on this host. An
  // Error where they are not, or are more than ops::kMaxPeers. REQUIRES: the world outlives it.
  PeerWindows(World& world, std::vector<int> ranks, Device device, size_t bytes);
  PeerWindows(const PeerWindows&) = delete;
  PeerWindows& operator=(const PeerWindows&) = delete;
  ~PeerWindows();  // waits for the others, who may still write here

  const ops::PeerView& view() const { return view_; }

 private:
  World& world_;
  std::vector<int> ranks_;
  Device device_;
  ops::PeerView view_;
};

}  // namespace hadal
