// What a Pool sets aside for a block of a number of bytes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>

#include "core/memory.h"

namespace hadal {

// Four classes per power of two: at most a quarter is wasted and sizes that differ slightly share.
inline size_t size_class(size_t bytes) {
  bytes = std::max<size_t>(bytes, 256);
  const size_t step = std::bit_floor(bytes - 1) / 4;
  const size_t rounded = (bytes + step - 1) / step * step;
  return (rounded + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace hadal
