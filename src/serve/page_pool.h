// PagePool: who uses which page of the latent cache, and which of them can be found again.
//
// A page is free, in use (by one sequence or several), or cached: used by none, kept because it
// was published. A published page is found by the tokens it holds and all tokens before it, which
// are compared, not only hashed. Full pages that agree are shared; of the next one, full or not,
// the rows that agree can be copied. When no page is free, the cached page that was given up
// longest ago goes. Numbers only: the memory is LatentCache's. Not thread-safe.
//
// A row is a function of its token and those before it; in MTP layers of the token after it too.
// Where such layers are cached, `lookahead` is 1, and a row counts only if that token agrees.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <unordered_map>
#include <vector>

namespace hadal::serve {

// The end of a chain of published pages; kNoPages is before the first.
using Chain = uint64_t;
inline constexpr Chain kNoPages = 0;

class PagePool {
 public:
  // HADAL_SABOTAGE=refcount, lru or rows plants a fault, for the test of the tests.
  PagePool(int64_t num_pages, int64_t page_tokens, int64_t lookahead = 0);

  // A page with one user. REQUIRES: num_available() > 0.
  int64_t allocate();
  void retain(int64_t page);   // one user more; takes a cached page back into use
  void release(int64_t page);  // one user less

  // The longest chain of full pages that holds the first rows, and a page that holds most of the
  // rows behind them.
  struct Match {
    std::vector<int64_t> pages;
    Chain chain = kNoPages;    // with them
    int64_t partial = -1;      // its first partial_rows rows, fewer than a page; -1: none
    int64_t partial_rows = 0;  // to be copied: the page is another's
    void drop_partial() { partial = -1, partial_rows = 0; }
    bool operator==(const Match&) const = default;
  };
  // At most max_rows rows. with_mtp: only where the rows of MTP layers are there as well.
  Match find(const std::vector<int32_t>& tokens, int64_t max_rows, bool with_mtp = false) const;
  struct Contents {
    const int32_t* tokens = nullptr;  // [num_rows + lookahead]
    int64_t num_rows = 0;
    bool with_mtp = false;
  };
  // Makes a page that is in use findable by its first rows behind `before`; one that was published
  // before it was full may be published again with more. Returns the end of the chain with a full
  // page (of the one that held the same already, if any), or kNoPages.
  Chain publish(int64_t page, Chain before, const Contents& contents);
  // Forgets all published pages; those in use stay in use.
  void forget();

  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  int64_t page_tokens() const { return page_tokens_; }
  int64_t lookahead() const { return lookahead_; }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_cached() const { return static_cast<int64_t>(unused_.size()); }
  int64_t num_available() const { return num_free() + num_cached(); }
  int64_t num_in_use() const { return num_pages() - num_available(); }
  int64_t num_users(int64_t page) const { return pages_[static_cast<size_t>(page)].users; }
  int64_t num_evicted() const { return num_evicted_; }

 private:
  enum class Fault : uint8_t { kNone, kRefcount, kLru, kRows };
  // What is published; ordered so that neighbours agree longest.
  struct Key {
    bool with_mtp = false;
    Chain before = kNoPages;
    std::vector<int32_t> tokens;
    auto operator<=>(const Key&) const = default;
  };
  using Ordered = std::map<Key, int64_t>;
  struct Page {
    int64_t users = 0;
    Chain chain = kNoPages;  // while published
    bool full = false;
    uint64_t hash = 0;                    // while full
    Ordered::const_iterator key;          // while published
    std::list<int64_t>::iterator unused;  // place in unused_, if cached
  };
  struct Agreement {
    int64_t page = -1, num_rows = 0;
  };
  int64_t full_page(Chain before, const int32_t* tokens, bool with_mtp) const;
  Agreement longest(const Key& key) const;
  Agreement longest(Chain before, const std::vector<int32_t>& tokens, bool with_mtp) const;
  uint64_t hash(Chain before, const int32_t* tokens, bool with_mtp) const;
  void unpublish(int64_t index);

  int64_t page_tokens_, lookahead_;
  Fault fault_;
  std::vector<Page> pages_;
  std::vector<int64_t> free_;
  std::list<int64_t> unused_;  // cached pages, the one to go first in front
  Ordered ordered_;            // all that are published
  std::unordered_multimap<uint64_t, int64_t> full_;
  Chain next_chain_ = 1;
  int64_t num_evicted_ = 0, num_retained_ = 0;
};

}  // namespace hadal::serve
