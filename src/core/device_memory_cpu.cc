// Device memory of a build without CUDA: there is none.
// SPDX-License-Identifier: Apache-2.0
#include "core/check.h"
#include "core/device_memory.h"

namespace hadal::device {

size_t memory_in_use(Device) { return 0; }
size_t memory_free(Device) { return 0; }
Range reserve(Device) { HADAL_UNREACHABLE("this build has no CUDA backend"); }
void map(Device, Range&, size_t) { HADAL_UNREACHABLE("this build has no CUDA backend"); }
void release(Device, const Range&) noexcept {}

}  // namespace hadal::device
