// What the driver says of a device's memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "core/device.h"

namespace hadal::device {

// Bytes in use by every process and the driver itself; 0 on the CPU.
size_t memory_in_use(Device device);
// Bytes that can still be had; 0 on the CPU.
size_t memory_free(Device device);

}  // namespace hadal::device
