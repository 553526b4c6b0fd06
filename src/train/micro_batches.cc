// A step's sequences as micro-batches: cutting.
// SPDX-License-Identifier: Apache-2.0
#include "train/micro_batches.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace hadal::train {

std::vector<std::vector<Sequence>> cut(std::vector<Sequence> sequences, int64_t size, int dp) {
  std::vector<std::vector<Sequence>> batches;
  const size_t of_rank = sequences.size() / static_cast<size_t>(dp);
  for (size_t begin = 0; begin < sequences.size(); begin += of_rank)
    for (size_t i = begin; i < begin + of_rank; i += static_cast<size_t>(size)) {
      const size_t end = std::min(begin + of_rank, i + static_cast<size_t>(size));
      batches.emplace_back(
          std::make_move_iterator(sequences.begin() + static_cast<std::ptrdiff_t>(i)),
          std::make_move_iterator(sequences.begin() + static_cast<std::ptrdiff_t>(end)));
    }
  return batches;
}

}  // namespace hadal::train
