// What a stream is doing, and the order between two of them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "core/device.h"

namespace hadal::device {

// Whether all work of the stream is done; true on the CPU. REQUIRES: it is not being recorded.
bool is_idle(Device device, Stream stream);
// Whether what comes into the stream is recorded (begin_recording) and not done.
bool is_recording(Device device, Stream stream);

// Looks at streams that are recorded when this one is, from another thread: not while it is, and it
// does not begin to be meanwhile.
void look_unless_recording(Device device, Stream stream, const std::function<void()>& look);

// A stream whose kernels start before those of others that wait for room.
Stream make_urgent_stream(Device device);
// The same for work that waits for other processes: the default stream, whose work otherwise
// begins after that of all streams, does not wait for it.
Stream make_message_stream(Device device);
// An event for await() alone: it keeps no time.
Event make_mark(Device device);
// What comes into the stream from here on begins after what the event was last recorded behind.
void await(Device device, Stream stream, Event event);
// The same in a stream that may be recorded, for an event that is not recorded with it: whenever
// the graph is launched it awaits what the event was last recorded behind.
void await_outside(Device device, Stream stream, Event event);

}  // namespace hadal::device
