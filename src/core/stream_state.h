// What a stream is doing.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/device.h"

namespace hadal::device {

// Whether all work of the stream is done; true on the CPU. REQUIRES: it is not being recorded.
bool is_idle(Device device, Stream stream);
// Whether what comes into the stream is recorded (begin_recording) and not done.
bool is_recording(Device device, Stream stream);

}  // namespace hadal::device
