// Windows: memory of a device that other processes of the host map.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>

#include "core/device.h"

namespace hadal::device {

// What another process of this host opens a window by. NOTE: on the CPU it is an address of this
// process, for tests with threads.
struct WindowHandle {
  std::array<unsigned char, 64> bytes{};
};
// All zeros.
void* allocate_window(Device device, size_t bytes, WindowHandle* handle);
// A window of another process, on this device or one that this one reaches.
void* open_window(Device device, const WindowHandle& handle);
void close_window(Device device, void* window) noexcept;
// The window of this process; nobody uses it any more.
void release_window(Device device, void* window) noexcept;

}  // namespace hadal::device
