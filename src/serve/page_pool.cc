// Users and publication of pages.
// SPDX-License-Identifier: Apache-2.0
#include "serve/page_pool.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>

#include "core/check.h"
#include "core/env.h"

namespace hadal::serve {

PagePool::PagePool(int64_t num_pages, int64_t page_tokens, int64_t lookahead)
    : page_tokens_(page_tokens), lookahead_(lookahead), pages_(static_cast<size_t>(num_pages)) {
  const std::string fault = env::sabotage();
  fault_ = fault == "refcount" ? Fault::kRefcount
           : fault == "lru"    ? Fault::kLru
           : fault == "rows"   ? Fault::kRows
                               : Fault::kNone;
  for (int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

int64_t PagePool::allocate() {
  int64_t index = 0;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else {
    HADAL_CHECK(!unused_.empty(), "internal error: a page was asked for and all ", num_pages(),
                " are in use");
    index = fault_ == Fault::kLru ? unused_.back() : unused_.front();
    unused_.erase(pages_[static_cast<size_t>(index)].unused);
    unpublish(index);
    ++num_evicted_;
  }
  pages_[static_cast<size_t>(index)].users = 1;
  return index;
}

void PagePool::retain(int64_t index) {
  Page& page = pages_[static_cast<size_t>(index)];
  if (page.users == 0) {
    HADAL_CHECK(page.chain != kNoPages, "internal error: page ", index, " is free");
    unused_.erase(page.unused);
  } else if (fault_ == Fault::kRefcount && ++num_retained_ % 1000 == 0) {
    return;
  }
  ++page.users;
}

void PagePool::release(int64_t index) {
  Page& page = pages_[static_cast<size_t>(index)];
  HADAL_CHECK(page.users > 0, "internal error: page ", index, " has no user to give it back");
  if (--page.users > 0) return;
  if (page.chain == kNoPages) {
    free_.push_back(index);
  } else {
    page.unused = unused_.insert(unused_.end(), index);
  }
}

uint64_t PagePool::hash(Chain before, const int32_t* tokens, bool with_mtp) const {
  uint64_t h = (2 * before + (with_mtp ? 1 : 0)) * 0x9E3779B97F4A7C15u;
  for (int64_t i = 0; i < page_tokens_ + lookahead_; ++i) {
    h = (h ^ static_cast<uint32_t>(tokens[i])) * 0xBF58476D1CE4E5B9u;
    h ^= h >> 29;
  }
  return h;
}

// The full page with these tokens, or -1.
int64_t PagePool::full_page(Chain before, const int32_t* tokens, bool with_mtp) const {
  for (const bool mtp : {true, false}) {
    if (mtp ? lookahead_ == 0 : with_mtp) continue;
    const auto [begin, end] = full_.equal_range(hash(before, tokens, mtp));
    for (auto it = begin; it != end; ++it) {
      const Key& key = pages_[static_cast<size_t>(it->second)].key->first;
      if (key.before == before && key.with_mtp == mtp &&
          std::equal(key.tokens.begin(), key.tokens.end(), tokens))
        return it->second;
    }
  }
  return -1;
}

// Of pages in the order of their tokens, the one that agrees longest is next to where these would
// stand.
PagePool::Agreement PagePool::longest(const Key& key) const {
  Agreement best;
  const auto consider = [&](const auto& it) {
    const auto& [other, page] = *it;
    if (other.with_mtp != key.with_mtp || other.before != key.before) return;
    const auto [end, unused] = std::mismatch(other.tokens.begin(), other.tokens.end(),
                                             key.tokens.begin(), key.tokens.end());
    const int64_t rows = end - other.tokens.begin() - lookahead_;
    if (rows > best.num_rows) best = {page, rows};
  };
  const auto at = ordered_.lower_bound(key);
  if (at != ordered_.end()) consider(at);
  if (at != ordered_.begin()) consider(std::prev(at));
  return best;
}

PagePool::Agreement PagePool::longest(Chain before, const std::vector<int32_t>& tokens,
                                      bool with_mtp) const {
  const Agreement with = longest({true, before, tokens});
  if (with_mtp) return with;
  const Agreement without = longest({false, before, tokens});
  return without.num_rows > with.num_rows ? without : with;
}

PagePool::Match PagePool::find(const std::vector<int32_t>& tokens, int64_t max_rows,
                               bool with_mtp) const {
  Match match;
  const auto n = static_cast<int64_t>(tokens.size());
  const int64_t rows = std::min(max_rows, n - lookahead_);
  int64_t found = 0;
  for (; found + page_tokens_ <= rows; found += page_tokens_) {
    const int64_t index = full_page(match.chain, tokens.data() + found, with_mtp);
    if (index < 0) break;
    match.pages.push_back(index);
    match.chain = pages_[static_cast<size_t>(index)].chain;
  }
  if (found >= rows) return match;
  const auto begin = tokens.begin() + found;
  const Agreement next = longest(
      match.chain, {begin, begin + std::min(page_tokens_ + lookahead_, n - found)}, with_mtp);
  match.partial_rows = std::min(next.num_rows, rows - found);
  if (match.partial_rows > 0) match.partial = next.page;
  if (fault_ == Fault::kRows && match.partial_rows > 0 && found + match.partial_rows < rows)
    match.partial_rows = std::min(match.partial_rows + 1, page_tokens_ - 1);
  return match;
}

Chain PagePool::publish(int64_t index, Chain before, const Contents& c) {
  Page& page = pages_[static_cast<size_t>(index)];
  HADAL_CHECK(page.users > 0 && !page.full && c.num_rows > 0 && c.num_rows <= page_tokens_,
              "internal error: page ", index, " cannot be published");
  if (page.chain != kNoPages) unpublish(index);
  const bool full = c.num_rows == page_tokens_;
  Key key{c.with_mtp, before, {c.tokens, c.tokens + c.num_rows + lookahead_}};
  if (full) {
    const int64_t same = full_page(before, c.tokens, c.with_mtp);
    if (same >= 0) return pages_[static_cast<size_t>(same)].chain;
  } else if (longest(before, key.tokens, c.with_mtp).num_rows == c.num_rows) {
    return kNoPages;
  }
  const auto [at, inserted] = ordered_.emplace(std::move(key), index);
  HADAL_CHECK(inserted, "internal error: page ", index, " is published twice");
  page.chain = next_chain_++;
  page.key = at;
  page.full = full;
  if (!full) return kNoPages;
  page.hash = hash(before, c.tokens, c.with_mtp);
  full_.emplace(page.hash, index);
  return page.chain;
}

void PagePool::unpublish(int64_t index) {
  Page& page = pages_[static_cast<size_t>(index)];
  if (page.full) {
    const auto [begin, end] = full_.equal_range(page.hash);
    full_.erase(std::find_if(begin, end, [&](const auto& it) { return it.second == index; }));
  }
  ordered_.erase(page.key);
  page.chain = kNoPages;
  page.full = false;
}

void PagePool::forget() {
  for (int64_t index = 0; index < num_pages(); ++index)
    if (pages_[static_cast<size_t>(index)].chain != kNoPages) unpublish(index);
  free_.insert(free_.end(), unused_.begin(), unused_.end());
  unused_.clear();
}

}  // namespace hadal::serve
