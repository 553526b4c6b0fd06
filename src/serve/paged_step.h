// PagedStep: a step of the model over sequences whose pages the scheduler gave.
//
//   T tokens of a step   S sequences   D model width   G homes: ranks that have sequences apart
//
// Where there are several homes, the rank that leads decides from states of all tokens: they go to
// it from their homes and, as what MTP reads, back. The others make the same calls.
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
  std::vector<int64_t> homes = {};                 // [S] ascending; empty: there is one
};

// Whose is what of a step: home g has sequences [seqs[g], seqs[g+1]) and tokens likewise.
struct HomeRuns {
  std::vector<int64_t> seqs, tokens;  // [G+1]
  HomeRuns(const PagedTokens& all, int num_homes);
  std::vector<int64_t> num_tokens() const;  // [G]
  int64_t most_seqs() const;
  PagedTokens part_of(const PagedTokens& all, int home) const;
};

struct PagedStep {
  Step step;
  std::vector<int64_t> slots;  // [S] 0, 1, ...: of the cache

  // REQUIRES: this outlives it.
  Decoder::Call call() const { return {.step = step, .seqs = slots}; }
};

// Tokens that are all this rank's; other homes' are left to step.of_ranks. Gives slot s of the
// decoder's cache the pages of sequence s. REQUIRES: the pages are lent, and as many slots are
// open.
PagedStep make_paged_step(Context& ctx, Decoder& decoder, const PagedTokens& own);

// Decoder::forward() and mtp_forward() of such a step. Of ranks with homes h and out [T, D] are of
// all tokens on the one that leads, and are empty on the others.
void paged_forward(Context& ctx, Decoder& decoder, const PagedTokens& tokens, Out h);
void paged_mtp_forward(Context& ctx, Decoder& decoder, int64_t k, const PagedTokens& tokens, In h,
                       Out out);

}  // namespace hadal::serve
