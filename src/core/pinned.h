// Host memory that the device reaches by itself, and copies to it that nobody waits for.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/device.h"

namespace hadal::device {

// In stream order: the bytes are there once an event that was recorded behind is done. REQUIRES:
// `to` is pinned (device.h).
void copy_to_pinned(Device device, Stream stream, const void* from, void* to, size_t bytes);
// Waits for the event; throws what kernels have found wrong.
void wait_checked(Device device, Event event);

}  // namespace hadal::device
