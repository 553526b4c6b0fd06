// Shuffling without a table: where an index goes in a random permutation.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/rng.h"

namespace hadal::train {

// Where `index` goes in a permutation of 0 .. size - 1 drawn from rng: a Feistel network over the
// next even power of two, walked until it lands inside. Any place costs the same.
int64_t permute(int64_t index, int64_t size, const Rng& rng);

}  // namespace hadal::train
