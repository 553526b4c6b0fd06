// Users and publication of pages.
// SPDX-License-Identifier: Apache-2.0
#include "serve/page_pool.h"

#include <algorithm>

#include "core/check.h"
#include "core/env.h"

namespace hadal::serve {

PagePool::PagePool(int64_t num_pages, int64_t page_tokens)
    : page_tokens_(page_tokens), pages_(static_cast<size_t>(num_pages)) {
  const std::string fault = env::sabotage();
  fault_ = fault == "refcount" ? Fault::kRefcount : fault == "lru" ? Fault::kLru : Fault::kNone;
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
    Page& page = pages_[static_cast<size_t>(index)];
    unused_.erase(page.unused);
    unpublish(page, index);
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

uint64_t PagePool::hash(Chain before, const int32_t* tokens) const {
  uint64_t h = before * 0x9E3779B97F4A7C15u;
  for (int64_t i = 0; i < page_tokens_; ++i) {
    h = (h ^ static_cast<uint32_t>(tokens[i])) * 0xBF58476D1CE4E5B9u;
    h ^= h >> 29;
  }
  return h;
}

int64_t PagePool::lookup(Chain before, uint64_t hash, const int32_t* tokens) const {
  const auto [begin, end] = published_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    const Page& page = pages_[static_cast<size_t>(it->second)];
    if (page.before == before && std::equal(page.tokens.begin(), page.tokens.end(), tokens))
      return it->second;
  }
  return -1;
}

PagePool::Match PagePool::find(const std::vector<int32_t>& tokens, int64_t max_pages) const {
  Match match;
  const auto whole = static_cast<int64_t>(tokens.size()) / page_tokens_;
  for (int64_t i = 0; i < std::min(whole, max_pages); ++i) {
    const int32_t* at = tokens.data() + i * page_tokens_;
    const int64_t index = lookup(match.chain, hash(match.chain, at), at);
    if (index < 0) break;
    match.pages.push_back(index);
    match.chain = pages_[static_cast<size_t>(index)].chain;
  }
  return match;
}

Chain PagePool::publish(int64_t index, Chain before, const int32_t* tokens) {
  Page& page = pages_[static_cast<size_t>(index)];
  HADAL_CHECK(page.users > 0 && page.chain == kNoPages, "internal error: page ", index,
              " cannot be published");
  const uint64_t h = hash(before, tokens);
  const int64_t same = lookup(before, h, tokens);
  if (same >= 0) return pages_[static_cast<size_t>(same)].chain;
  page.chain = next_chain_++;
  page.before = before;
  page.hash = h;
  page.tokens.assign(tokens, tokens + page_tokens_);
  published_.emplace(h, index);
  return page.chain;
}

void PagePool::unpublish(Page& page, int64_t index) {
  const auto [begin, end] = published_.equal_range(page.hash);
  published_.erase(std::find_if(begin, end, [&](const auto& it) { return it.second == index; }));
  page.chain = page.before = kNoPages;
  page.tokens.clear();
}

void PagePool::forget() {
  for (int64_t index = 0; index < num_pages(); ++index) {
    Page& page = pages_[static_cast<size_t>(index)];
    if (page.chain != kNoPages) unpublish(page, index);
  }
  free_.insert(free_.end(), unused_.begin(), unused_.end());
  unused_.clear();
}

}  // namespace hadal::serve
