// Arena: the free pieces in the order of their addresses.
// SPDX-License-Identifier: Apache-2.0
#include "core/arena.h"

#include <algorithm>
#include <iterator>

#include "core/check.h"

namespace hadal {
size_t Arena::take(size_t bytes) {
  const size_t size = piece_bytes(bytes);
  auto piece = std::find_if(free_.begin(), free_.end(),
                            [&](const auto& p) { return p.second - p.first >= size; });
  if (piece == free_.end()) {
    // The range grows by what the free piece at its end lacks.
    const bool last_is_free = !free_.empty() && free_.rbegin()->second == end_;
    const size_t begin = last_is_free ? free_.rbegin()->first : end_;
    end_ = begin + size;
    piece = free_.insert_or_assign(begin, end_).first;
  }
  const auto [begin, end] = *piece;
  free_.erase(piece);
  if (end - begin > size) free_.emplace(begin + size, end);
  in_use_ += size;
  return begin;
}

void Arena::give_back(size_t at, size_t bytes) {
  size_t begin = at, end = at + piece_bytes(bytes);
  in_use_ -= end - begin;
  const auto next = free_.lower_bound(begin);
  HADAL_CHECK(end <= end_ && (next == free_.end() || next->first >= end) &&
                  (next == free_.begin() || std::prev(next)->second <= begin),
              "internal error: a piece of an arena was given back twice");
  if (next != free_.begin() && std::prev(next)->second == begin) {
    begin = std::prev(next)->first;
    free_.erase(std::prev(next));
  }
  if (next != free_.end() && next->first == end) {
    end = next->second;
    free_.erase(next);
  }
  free_.emplace(begin, end);
}

void Arena::trim() {
  if (free_.empty() || free_.rbegin()->second != end_) return;
  end_ = free_.rbegin()->first;
  free_.erase(std::prev(free_.end()));
}

}  // namespace hadal
