// Slab: numbers of the arena, moved to where the range begins.
// SPDX-License-Identifier: Apache-2.0
#include "core/slab.h"

namespace hadal {

Slab::Slab(Device device) : device_(device), range_(device::reserve(device)) {}

Slab::~Slab() { device::release(device_, range_); }

void* Slab::take(size_t bytes) {
  const size_t at = arena_.take(bytes);
  try {
    device::map(device_, range_, arena_.end());
  } catch (...) {
    arena_.give_back(at, bytes);
    arena_.trim();
    throw;
  }
  return static_cast<char*>(range_.data) + at;
}

void Slab::give_back(void* data, size_t bytes) {
  arena_.give_back(static_cast<size_t>(static_cast<char*>(data) - static_cast<char*>(range_.data)),
                   bytes);
}

}  // namespace hadal
