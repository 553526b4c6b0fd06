// Memory of a GPU: what the driver says of it, and ranges of addresses that grow in place.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "core/device.h"

namespace hadal::device {

// Bytes in use by every process and the driver itself; 0 on the CPU.
size_t memory_in_use(Device device);
// Bytes that can still be had; 0 on the CPU.
size_t memory_free(Device device);

// Addresses for as much memory as the device has, and the part from the beginning that has some.
struct Range {
  void* data = nullptr;
  size_t bytes = 0, mapped = 0;
};
// REQUIRES for the three: not the CPU.
Range reserve(Device device);
// Puts memory behind at least the first `end` bytes; an Error, and the range as it was, when there
// is none left.
void map(Device device, Range& range, size_t end);
// Waits for the device first: a kernel may still use it.
void release(Device device, const Range& range) noexcept;

}  // namespace hadal::device
