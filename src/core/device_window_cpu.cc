// Windows of a build without CUDA.
// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "core/device_window.h"
#include "core/host_window.h"

namespace hadal::device {

void* allocate_window(Device, size_t bytes, WindowHandle* handle) {
  return host_window(bytes, handle);
}
void* open_window(Device, const WindowHandle& handle) { return address_of(handle); }
void close_window(Device, void*) noexcept {}
void release_window(Device, void* window) noexcept { std::free(window); }

}  // namespace hadal::device
