// PagedStep: a step of the model over sequences whose pages the scheduler gave.
//
//   T tokens of a step   S sequences
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "model/decoder.h"

namespace hadal::serve {

// The tokens of all sequences, one sequence after the other.
struct PagedTokens {
  std::vector<int32_t> ids;                        // [T]
  std::vector<int64_t> starts, counts;             // [S] positions
  std::vector<const std::vector<int64_t>*> pages;  // [S] of the cache, for positions in order
};

struct PagedStep {
  Step step;
  std::vector<int64_t> slots;  // [S] 0, 1, ...: of the cache

  // REQUIRES: this outlives it.
  Decoder::Call call() const { return {.step = step, .seqs = slots}; }
};

// Gives slot s of the decoder's cache the pages of sequence s. REQUIRES: the pages are lent, and as
// many slots are open.
PagedStep make_paged_step(Context& ctx, Decoder& decoder, const PagedTokens& tokens);

}  // namespace hadal::serve
