// The page pool against a trivial model, with random operations; and its limits.
//
// HADAL_SABOTAGE=refcount and =lru must make this fail (tests/CMakeLists.txt).
// SPDX-License-Identifier: Apache-2.0
#include "serve/page_pool.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>

#include "core/rng.h"
#include "tests/unit/expect_error.h"

namespace hadal::serve {
namespace {

constexpr int64_t kPageTokens = 4;

// What a pool has to do, in the plainest way: maps by whole contents, lists that are searched.
struct Model {
  std::vector<int64_t> users;
  std::deque<int64_t> unused;  // the one to go first in front
  std::set<int64_t> free;
  struct Place {
    int64_t page;
    Chain chain;
  };
  // By what stands before a page, and its tokens.
  std::map<std::pair<Chain, std::vector<int32_t>>, Place> published;

  void forget(int64_t page) {
    std::erase_if(published, [&](const auto& entry) { return entry.second.page == page; });
  }
  bool is_published(int64_t page) const {
    return std::any_of(published.begin(), published.end(),
                       [&](const auto& entry) { return entry.second.page == page; });
  }
};

class Random {
 public:
  Random(uint64_t seed, const char* name) : rng_(seed, stream_id(name)) {}
  uint64_t below(uint64_t n) { return rng_.u64(at_++) % n; }

 private:
  Rng rng_;
  uint64_t at_ = 0;
};

// A sequence as the scheduler uses the pool: finds a prefix, fills pages, publishes, gives back.
struct User {
  std::vector<int64_t> pages;
  std::vector<int32_t> tokens;
  Chain chain = kNoPages;
  size_t num_published = 0;
};

// Of the page that begins at token n.
std::vector<int32_t> tokens_of(const User& user, size_t n) {
  const auto begin = user.tokens.begin() + static_cast<long>(n);
  return {begin, begin + kPageTokens};
}

TEST(PagePool, HalfAMillionRandomOperations) {
  constexpr int64_t kPages = 24;
  PagePool pool(kPages, kPageTokens);
  Model model;
  model.users.assign(kPages, 0);
  for (int64_t page = 0; page < kPages; ++page) model.free.insert(page);
  std::vector<User> users;
  Random random(5, "pool");
  int64_t evictions = 0, found_pages = 0;

  const auto retain = [&](int64_t page) {
    pool.retain(page);
    if (model.users[static_cast<size_t>(page)]++ == 0)
      model.unused.erase(std::find(model.unused.begin(), model.unused.end(), page));
  };
  const auto release = [&](int64_t page) {
    pool.release(page);
    if (--model.users[static_cast<size_t>(page)] > 0) return;
    if (model.is_published(page))
      model.unused.push_back(page);
    else
      model.free.insert(page);
  };
  for (int64_t operation = 0; operation < 500000; ++operation) {
    switch (random.below(4)) {
      case 0: {  // a new sequence takes what it finds
        if (users.size() >= 8) break;
        User user;
        for (uint64_t i = random.below(24); i > 0; --i)
          user.tokens.push_back(static_cast<int32_t>(random.below(2)));
        const PagePool::Match match = pool.find(user.tokens, kPages);
        std::vector<int64_t> want;
        Chain chain = kNoPages;
        for (size_t n = 0; n + kPageTokens <= user.tokens.size(); n += kPageTokens) {
          const auto it = model.published.find({chain, tokens_of(user, n)});
          if (it == model.published.end()) break;
          want.push_back(it->second.page);
          chain = it->second.chain;
        }
        ASSERT_EQ(match.pages, want) << "operation " << operation;
        found_pages += static_cast<int64_t>(want.size());
        for (int64_t page : match.pages) retain(page);
        user.pages = match.pages;
        user.chain = match.chain;
        user.num_published = match.pages.size();
        users.push_back(user);
        break;
      }
      case 1: {  // one more page
        if (users.empty() || pool.num_available() == 0) break;
        const int64_t page = pool.allocate();
        ASSERT_GE(page, 0);
        ASSERT_EQ(model.users[static_cast<size_t>(page)], 0) << "page " << page << " is in use";
        if (!model.free.empty()) {
          ASSERT_EQ(model.free.erase(page), 1u);
        } else {
          ASSERT_EQ(page, model.unused.front()) << "not the one given up longest ago";
          model.unused.pop_front();
          model.forget(page);
          ++evictions;
        }
        model.users[static_cast<size_t>(page)] = 1;
        User& user = users[random.below(users.size())];
        user.pages.push_back(page);
        while (user.tokens.size() < user.pages.size() * kPageTokens)
          user.tokens.push_back(static_cast<int32_t>(random.below(2)));
        break;
      }
      case 2: {  // publishes its next page
        if (users.empty()) break;
        User& user = users[random.below(users.size())];
        if (user.num_published >= user.pages.size() ||
            user.tokens.size() < (user.num_published + 1) * kPageTokens)
          break;
        const size_t n = user.num_published;
        const std::pair key{user.chain, tokens_of(user, n * kPageTokens)};
        user.chain = pool.publish(user.pages[n], user.chain, user.tokens.data() + n * kPageTokens);
        ++user.num_published;
        const auto [it, inserted] =
            model.published.try_emplace(key, Model::Place{user.pages[n], user.chain});
        ASSERT_EQ(it->second.chain, user.chain);
        break;
      }
      case 3: {  // ends; a shared page may be taken twice by one
        if (users.empty()) break;
        const size_t at = random.below(users.size());
        User user = users[at];
        users.erase(users.begin() + static_cast<long>(at));
        for (auto page = user.pages.rbegin(); page != user.pages.rend(); ++page) release(*page);
        break;
      }
    }
    ASSERT_EQ(pool.num_free(), static_cast<int64_t>(model.free.size())) << operation;
    ASSERT_EQ(pool.num_cached(), static_cast<int64_t>(model.unused.size())) << operation;
    for (int64_t page = 0; page < kPages; ++page)
      ASSERT_EQ(pool.num_users(page), model.users[static_cast<size_t>(page)]) << operation;
  }
  EXPECT_EQ(pool.num_evicted(), evictions);
  EXPECT_GT(evictions, 1000);
  EXPECT_GT(found_pages, 1000);
  for (const User& user : users)
    for (auto page = user.pages.rbegin(); page != user.pages.rend(); ++page) release(*page);
  EXPECT_EQ(pool.num_in_use(), 0);
  pool.forget();
  EXPECT_EQ(pool.num_free(), kPages);
  EXPECT_TRUE(pool.find({0, 0, 0, 0}, 9).pages.empty());
}

TEST(PagePool, WhatCannotHappenIsSaid) {
  PagePool pool(1, kPageTokens);
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  EXPECT_ERROR(pool.release(0), "internal error: page 0 has no user to give it back");
  EXPECT_ERROR(pool.retain(0), "internal error: page 0 is free");
  EXPECT_ERROR(pool.publish(0, kNoPages, tokens.data()),
               "internal error: page 0 cannot be published");
  const int64_t page = pool.allocate();
  EXPECT_ERROR(pool.allocate(), "internal error: a page was asked for and all 1 are in use");
  pool.publish(page, kNoPages, tokens.data());
  EXPECT_ERROR(pool.publish(page, kNoPages, tokens.data()),
               "internal error: page 0 cannot be published");
}

}  // namespace
}  // namespace hadal::serve
