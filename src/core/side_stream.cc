// SideStream: events from one stream to the other and back, used again and again.
// SPDX-License-Identifier: Apache-2.0
#include "core/side_stream.h"

#include <utility>

#include "core/check.h"

namespace hadal {

SideStream::SideStream(Device device)
    : device_(device), stream_(device::make_urgent_stream(device)), memory_(device) {}

SideStream::~SideStream() {
  try {
    synchronize();
  } catch (const Error&) {
    // It was said when it happened, or the main stream will say it.
  }
  for (const Event event : free_) device::destroy(device_, event);
  device::destroy(device_, stream_);
}

// NOTE: an event may be recorded again once those that wait for it have been told to: they wait for
// the record before.
Event SideStream::take_mark() {
  if (free_.empty()) return device::make_mark(device_);
  const Event event = free_.back();
  free_.pop_back();
  return event;
}

Context SideStream::fork(const Context& main) {
  if (device_.kind == DeviceKind::kCpu) return main;
  const Event here = take_mark();
  device::record(device_, main.stream, here);
  device::await(device_, stream_, here);
  free_.push_back(here);
  return {.device = device_,
          .stream = stream_,
          .threads = main.threads,
          .memory = memory_,
          .numerics = main.numerics};
}

Event SideStream::mark() {
  Event event;
  mark(event);
  return event;
}

void SideStream::mark(Event& later) {
  if (device_.kind == DeviceKind::kCpu) return;
  if (later.handle == nullptr) later = take_mark();
  device::record(device_, stream_, later);
}

void SideStream::join(const Context& main, Event& mark) {
  if (mark.handle == nullptr) return;
  device::await(device_, main.stream, mark);
  free_.push_back(std::exchange(mark, Event()));
}

}  // namespace hadal
