// The table of classes, spread out from its ranges.
// SPDX-License-Identifier: Apache-2.0
#include "io/unicode.h"

#include <algorithm>

namespace hadal::io {

const uint8_t* unicode_classes() {
  static const std::vector<uint8_t> classes = [] {
    std::vector<uint8_t> all(kNumCodePoints);
    const std::vector<uint32_t>& ranges = unicode_ranges();
    for (size_t i = 0; i < ranges.size(); ++i) {
      const uint32_t end = i + 1 < ranges.size() ? ranges[i + 1] >> 8 : kNumCodePoints;
      std::fill(all.begin() + (ranges[i] >> 8), all.begin() + end,
                static_cast<uint8_t>(ranges[i] & 0xFF));
    }
    return all;
  }();
  return classes.data();
}

}  // namespace hadal::io
