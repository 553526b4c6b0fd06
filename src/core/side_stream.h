// SideStream: a second stream of a device, for transfers that run beside the work (report, 3.2.1).
//
// fork() gives a context on the side, whose work begins after all that the main one has put into
// its stream so far; mark() notes how far the side has come; join() makes the main stream go on
// from there. Memory that is taken on the side comes from a pool of the side: the main stream may
// read it between a join and the next fork, and give it back after that. Memory of the main
// stream that the side works on is kept until the join. On the CPU, where work is done when a call
// returns, fork() gives the main context.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/context.h"
#include "core/stream_state.h"

namespace hadal {

class SideStream {
 public:
  explicit SideStream(Device device);
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  ~SideStream();  // waits for what is on the side

  Context fork(const Context& main);
  Event mark();
  void mark(Event& later);  // moves a mark that nobody has joined yet, or makes it
  // Uses the mark up. A mark of a CPU, and one that was used, is empty: nothing to wait for.
  void join(const Context& main, Event& mark);
  bool is_idle() const { return device::is_idle(device_, stream_); }
  void synchronize() const { device::synchronize(device_, stream_); }

 private:
  Event take_mark();

  Device device_;
  Stream stream_;
  Pool memory_;
  std::vector<Event> free_;
};

}  // namespace hadal
