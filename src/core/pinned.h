// Copies that nobody waits for: on the device, and to host memory that it reaches by itself.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/device.h"

namespace hadal::device {

// In stream order, within the device's memory. REQUIRES: the two do not overlap.
void copy_on_device(Device device, Stream stream, const void* from, void* to, size_t bytes);
// In stream order: the bytes are there once an event that was recorded behind is done. REQUIRES:
// `to` is pinned (device.h).
void copy_to_pinned(Device device, Stream stream, const void* from, void* to, size_t bytes);
// Waits for the event; throws what kernels have found wrong.
void wait_checked(Device device, Event event);

}  // namespace hadal::device
