// StepChannel: what rank 0 tells the others to do next, in order; they sleep until it does.
//
// A message is a run of 32-bit words. Nobody is given up for saying nothing: a server may have no
// work for hours. A rank that fails ends the wait, with a PeerFailure that names it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "parallel/world.h"

namespace hadal {

class StepChannel {
 public:
  // REQUIRES: the world outlives it; one thread at a time uses the world.
  explicit StepChannel(World& world) : world_(world) {}

  // Returns when all ranks have called it, however long that takes.
  void meet();
  // On rank 0. Returns when the words are on their way.
  void say(const std::vector<int32_t>& words);
  // On the others.
  std::vector<int32_t> hear();

 private:
  World& world_;
};

}  // namespace hadal
