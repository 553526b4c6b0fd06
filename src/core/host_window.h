// Windows of the CPU (core/device_window.h), for both bodies of the device functions.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdlib>
#include <cstring>

#include "core/check.h"
#include "core/device_window.h"

namespace hadal::device {

// Zeros at a multiple of 64 bytes; given back by std::free.
inline void* host_window(size_t bytes, WindowHandle* handle) {
  const size_t rounded = (bytes + 63) / 64 * 64;
  void* const data = std::aligned_alloc(64, rounded);
  HADAL_CHECK(data != nullptr, "out of memory: could not get ", rounded >> 20, " MiB");
  std::memset(data, 0, rounded);
  std::memcpy(handle->bytes.data(), &data, sizeof(data));
  return data;
}
inline void* address_of(const WindowHandle& handle) {
  void* data = nullptr;
  std::memcpy(&data, handle.bytes.data(), sizeof(data));
  return data;
}

}  // namespace hadal::device
