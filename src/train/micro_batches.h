// A step's sequences as micro-batches.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "model/batch.h"

namespace hadal::train {

// Micro-batches of at most `size` sequences, those of each of `dp` data-parallel ranks after the
// other's.
std::vector<std::vector<Sequence>> cut(std::vector<Sequence> sequences, int64_t size, int dp = 1);

}  // namespace hadal::train
