// StepClock: when the steps of a pipeline rank's program began and ended.
//
// On a GPU the times are the stream's: a step begins when what it waits for has come.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/context.h"
#include "core/timer.h"

namespace hadal {

class StepClock {
 public:
  struct Span {
    double begin = 0.0, end = 0.0;  // milliseconds since start()
  };
  explicit StepClock(Device device) : device_(device), zero_(device) {}
  StepClock(const StepClock&) = delete;
  StepClock& operator=(const StepClock&) = delete;
  ~StepClock();

  // Forgets all spans. Ranks whose times are compared call it when all are idle, one barrier ago.
  void start(const Context& ctx);
  void begin(const Context& ctx);
  void end(const Context& ctx);
  std::vector<Span> spans();  // waits for the last one

 private:
  // A point in time: of the stream on a GPU, of the host otherwise.
  struct Mark {
    explicit Mark(Device device) : event(device::make_event(device)) {}
    Event event;
    double ms = 0.0;
  };
  void set(const Context& ctx, Mark& mark);
  void add(const Context& ctx);
  double ms_of(const Mark& mark) const;

  Device device_;
  Timer timer_;
  Mark zero_;
  std::vector<Mark> marks_;  // begin and end in turns; those beyond used_ wait to be used again
  size_t used_ = 0;
};

}  // namespace hadal
