// PagePool: who uses which page of the latent cache, and which full pages can be found again.
//
// A page is free, in use (by one sequence or several), or cached: used by none, kept because it
// was published. A published page is found by the tokens it holds and all tokens before it, which
// are compared, not only hashed. When no page is free, the cached page that was given up longest
// ago goes. Numbers only: the memory is LatentCache's. Not thread-safe.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

namespace hadal::serve {

// The end of a chain of published pages; kNoPages is before the first.
using Chain = uint64_t;
inline constexpr Chain kNoPages = 0;

class PagePool {
 public:
  // HADAL_SABOTAGE=refcount or lru plants a fault, for the test of the tests.
  PagePool(int64_t num_pages, int64_t page_tokens);

  // A page with one user. REQUIRES: num_available() > 0.
  int64_t allocate();
  void retain(int64_t page);   // one user more; takes a cached page back into use
  void release(int64_t page);  // one user less

  // The longest chain of published pages that holds the first tokens, as whole pages.
  struct Match {
    std::vector<int64_t> pages;
    Chain chain = kNoPages;
  };
  Match find(const std::vector<int32_t>& tokens, int64_t max_pages) const;
  // Makes a page that is in use findable: it holds `tokens` [page_tokens] behind `before`. Returns
  // the end of the chain with them; if another page already holds the same, that one stays.
  Chain publish(int64_t page, Chain before, const int32_t* tokens);
  // Forgets all published pages; those in use stay in use.
  void forget();

  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  int64_t page_tokens() const { return page_tokens_; }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_cached() const { return static_cast<int64_t>(unused_.size()); }
  int64_t num_available() const { return num_free() + num_cached(); }
  int64_t num_in_use() const { return num_pages() - num_available(); }
  int64_t num_users(int64_t page) const { return pages_[static_cast<size_t>(page)].users; }
  int64_t num_evicted() const { return num_evicted_; }

 private:
  enum class Fault : uint8_t { kNone, kRefcount, kLru };
  struct Page {
    int64_t users = 0;
    Chain chain = kNoPages, before = kNoPages;  // while published
    uint64_t hash = 0;
    std::vector<int32_t> tokens;
    std::list<int64_t>::iterator unused;  // place in unused_, if cached
  };
  int64_t lookup(Chain before, uint64_t hash, const int32_t* tokens) const;
  uint64_t hash(Chain before, const int32_t* tokens) const;
  void unpublish(Page& page, int64_t index);

  int64_t page_tokens_;
  Fault fault_;
  std::vector<Page> pages_;
  std::vector<int64_t> free_;
  std::list<int64_t> unused_;  // cached pages, the one to go first in front
  std::unordered_multimap<uint64_t, int64_t> published_;
  Chain next_chain_ = 1;
  int64_t num_evicted_ = 0, num_retained_ = 0;
};

}  // namespace hadal::serve
