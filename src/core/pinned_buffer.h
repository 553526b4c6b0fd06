// PinnedBuffer: room on the host that copies from and to a device go to directly, kept between
// uses.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "core/check.h"
#include "core/device.h"

namespace hadal {

class PinnedBuffer {
 public:
  explicit PinnedBuffer(Device device) : device_(device) {}
  ~PinnedBuffer() { device::release_pinned(device_, data_); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  // Room for so many bytes, with what was there before or without. REQUIRES: no copy from or to
  // earlier room is under way.
  std::byte* room(size_t bytes) {
    if (bytes > size_) {
      device::release_pinned(device_, data_);
      data_ = nullptr;
      size_ = 0;
      data_ = device::allocate_pinned(device_, bytes);
      HADAL_CHECK(data_ != nullptr, "there is no memory on the host for ", bytes, " bytes more");
      size_ = bytes;
    }
    return static_cast<std::byte*>(data_);
  }

 private:
  Device device_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace hadal
