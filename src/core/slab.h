// Slab: a range of addresses of a GPU that grows in place, and the pieces of it that are taken.
//
// Addresses for all of the device's memory are reserved once; memory is put behind them as the
// range grows, so that free neighbours can join whenever they were asked of the driver. Nothing
// goes back to the driver before the slab is destroyed.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "core/arena.h"
#include "core/device.h"
#include "core/device_memory.h"

namespace hadal {

class Slab {
 public:
  explicit Slab(Device device);  // REQUIRES: not the CPU
  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  // Aligned to Arena::kGrain; an Error when the device has no memory left.
  void* take(size_t bytes);
  void give_back(void* data, size_t bytes);

  size_t mapped_bytes() const { return range_.mapped; }  // asked of the driver

 private:
  Device device_;
  device::Range range_;
  Arena arena_;
};

}  // namespace hadal
