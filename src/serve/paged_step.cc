// Slots of the cache for the sequences of a step.
// SPDX-License-Identifier: Apache-2.0
#include "serve/paged_step.h"

namespace hadal::serve {

PagedStep make_paged_step(Context& ctx, Decoder& decoder, const PagedTokens& tokens) {
  PagedStep paged;
  for (const std::vector<int64_t>* pages : tokens.pages) {
    const auto slot = static_cast<int64_t>(paged.slots.size());
    decoder.cache().assign(slot, *pages);
    paged.slots.push_back(slot);
  }
  paged.step =
      make_step(ctx, decoder.config(), tokens.ids, tokens.starts, tokens.counts, decoder.act());
  return paged;
}

}  // namespace hadal::serve
