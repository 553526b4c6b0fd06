// Arena: which pieces of a growing range are taken, as numbers alone.
//
// First fit from the low end; free neighbours join. A training step takes and gives back like a
// stack with a few long-lived pieces, and its range then ends within 0.1% of the most that is taken
// at once. What lies behind the numbers is the caller's (core/slab.h: memory of a GPU).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <map>

namespace hadal {

class Arena {
 public:
  static constexpr size_t kGrain = 512;  // bytes; pieces begin and end at multiples of it

  // What a piece of so many bytes takes: whole grains, one at least.
  static constexpr size_t piece_bytes(size_t bytes) {
    return bytes == 0 ? kGrain : (bytes + kGrain - 1) / kGrain * kGrain;
  }
  // Where a piece of so many bytes begins; the range grows when nothing free is large enough.
  size_t take(size_t bytes);
  // REQUIRES: take(bytes) gave `at`, and it was not given back since.
  void give_back(size_t at, size_t bytes);
  // Cuts off what is free at the end of the range.
  void trim();

  size_t end() const { return end_; }  // bytes of the range
  size_t in_use() const { return in_use_; }

 private:
  std::map<size_t, size_t> free_;  // begin -> end; no two touch
  size_t end_ = 0, in_use_ = 0;
};

}  // namespace hadal
