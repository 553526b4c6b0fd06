// The page pool against a trivial model, with random operations; and its limits.
//
// HADAL_SABOTAGE=refcount, =lru and =rows must make this fail (tests/CMakeLists.txt).
// SPDX-License-Identifier: Apache-2.0
#include "serve/page_pool.h"

#include <algorithm>
#include <deque>
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
    int64_t page, num_rows;
    Chain before, chain;          // chain: of a full page
    std::vector<int32_t> tokens;  // [num_rows + lookahead]
    bool with_mtp;
  };
  std::vector<Place> published;
  int64_t lookahead = 0;

  void forget(int64_t page) {
    std::erase_if(published, [&](const Place& place) { return place.page == page; });
  }
  bool is_published(int64_t page) const {
    return std::any_of(published.begin(), published.end(),
                       [&](const Place& place) { return place.page == page; });
  }
  // Rows of a page that one with these tokens behind `before` could use.
  int64_t num_rows(const Place& place, Chain before, const std::vector<int32_t>& tokens,
                   bool with_mtp) const {
    if (place.before != before || (with_mtp && !place.with_mtp)) return 0;
    int64_t n = 0;
    while (n < std::ssize(tokens) && n < std::ssize(place.tokens) &&
           tokens[static_cast<size_t>(n)] == place.tokens[static_cast<size_t>(n)])
      ++n;
    return std::max<int64_t>(n - lookahead, 0);
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
  bool with_mtp = false;
};

// At most `most` of a user's tokens from n on.
std::vector<int32_t> tokens_of(const User& user, size_t n, int64_t most) {
  const auto begin = user.tokens.begin() + static_cast<long>(n);
  return {begin, begin + std::min(most, user.tokens.end() - begin)};
}

class PagePoolTest : public ::testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Lookahead, PagePoolTest, ::testing::Values(0, 1));

TEST_P(PagePoolTest, HalfAMillionRandomOperations) {
  constexpr int64_t kPages = 24;
  const int64_t lookahead = GetParam();
  PagePool pool(kPages, kPageTokens, lookahead);
  Model model;
  model.lookahead = lookahead;
  model.users.assign(kPages, 0);
  for (int64_t page = 0; page < kPages; ++page) model.free.insert(page);
  std::vector<User> users;
  Random random(5, "pool");
  int64_t evictions = 0, found_pages = 0, found_rows = 0, extended = 0;

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
        user.with_mtp = lookahead > 0 && random.below(2) == 0;
        const auto max_rows = static_cast<int64_t>(random.below(user.tokens.size() + 1));
        const PagePool::Match match = pool.find(user.tokens, max_rows, user.with_mtp);
        // Full pages as far as there are any, then as many rows as any page has.
        Chain chain = kNoPages;
        int64_t rows = 0, more = 0;
        const auto best_rows = [&] {
          int64_t best = 0;
          const std::vector<int32_t> tokens =
              tokens_of(user, static_cast<size_t>(rows), kPageTokens + lookahead);
          for (const Model::Place& place : model.published)
            best = std::max(best, model.num_rows(place, chain, tokens, user.with_mtp));
          return std::min(best, max_rows - rows);
        };
        for (int64_t page : match.pages) {
          ASSERT_EQ(best_rows(), kPageTokens) << operation;
          const auto place = std::find_if(model.published.begin(), model.published.end(),
                                          [&](const Model::Place& p) { return p.page == page; });
          ASSERT_TRUE(place != model.published.end()) << "page " << page << " is not published";
          ASSERT_EQ(
              model.num_rows(*place, chain,
                             tokens_of(user, static_cast<size_t>(rows), kPageTokens + lookahead),
                             user.with_mtp),
              kPageTokens)
              << operation;
          chain = place->chain;
          rows += kPageTokens;
        }
        more = best_rows();
        ASSERT_LT(more, kPageTokens) << "operation " << operation;
        ASSERT_EQ(match.chain, chain) << operation;
        ASSERT_EQ(match.partial_rows, more) << "operation " << operation;
        ASSERT_EQ(match.partial >= 0, more > 0) << operation;
        if (more > 0) {
          const auto place =
              std::find_if(model.published.begin(), model.published.end(),
                           [&](const Model::Place& p) { return p.page == match.partial; });
          ASSERT_TRUE(place != model.published.end()) << operation;
          ASSERT_GE(
              model.num_rows(*place, chain,
                             tokens_of(user, static_cast<size_t>(rows), kPageTokens + lookahead),
                             user.with_mtp),
              more)
              << operation;
        }
        found_pages += rows / kPageTokens;
        found_rows += more;
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
        while (user.tokens.size() <
               user.pages.size() * kPageTokens + static_cast<size_t>(lookahead))
          user.tokens.push_back(static_cast<int32_t>(random.below(2)));
        break;
      }
      case 2: {  // publishes its next page, or some rows of it
        if (users.empty()) break;
        User& user = users[random.below(users.size())];
        const size_t n = user.num_published, first = n * kPageTokens;
        if (n >= user.pages.size()) break;
        const int64_t most = std::min<int64_t>(
            kPageTokens, std::ssize(user.tokens) - static_cast<int64_t>(first) - lookahead);
        if (most <= 0) break;
        const int64_t page = user.pages[n];
        const int64_t rows =
            random.below(2) == 0 ? most : 1 + static_cast<int64_t>(random.below(4)) % most;
        const bool full = rows == kPageTokens;
        extended += model.is_published(page) ? 1 : 0;
        model.forget(page);
        const std::vector<int32_t> tokens = tokens_of(user, first, rows + lookahead);
        int64_t known = 0;  // rows of them that another page has already
        Chain same = kNoPages;
        for (const Model::Place& place : model.published) {
          const int64_t r = model.num_rows(place, user.chain, tokens, user.with_mtp);
          // Of two that hold the same, those with the rows of MTP layers come first.
          if (r == kPageTokens && (same == kNoPages || place.with_mtp)) same = place.chain;
          known = std::max(known, r);
        }
        const Chain chain =
            pool.publish(page, user.chain, {user.tokens.data() + first, rows, user.with_mtp});
        if (known < rows)
          model.published.push_back({page, rows, user.chain, chain, tokens, user.with_mtp});
        ASSERT_EQ(chain != kNoPages, full) << operation;
        if (!full) break;
        if (known == rows) {
          ASSERT_EQ(chain, same) << operation;
        }
        user.chain = chain;
        ++user.num_published;
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
  EXPECT_GT(found_rows, 1000);
  EXPECT_GT(extended, 1000);
  for (const User& user : users)
    for (auto page = user.pages.rbegin(); page != user.pages.rend(); ++page) release(*page);
  EXPECT_EQ(pool.num_in_use(), 0);
  pool.forget();
  EXPECT_EQ(pool.num_free(), kPages);
  EXPECT_TRUE(pool.find({0, 0, 0, 0}, 9).pages.empty());
}

// A row of an MTP layer is of the token after it: a page whose last row was made before another
// token is another page.
TEST(PagePool, RowsThatLookAheadNeedTheTokenBehindThem) {
  PagePool pool(4, kPageTokens, 1);
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6};
  const int64_t page = pool.allocate();
  const Chain chain = pool.publish(page, kNoPages, {tokens.data(), kPageTokens, true});
  using Match = PagePool::Match;
  EXPECT_EQ(pool.find({1, 2, 3, 4, 5, 6}, 5, true), (Match{{page}, chain, -1, 0}));
  EXPECT_EQ(pool.find({1, 2, 3, 4, 9, 6}, 5, true), (Match{{}, kNoPages, page, 3}));
  EXPECT_EQ(pool.find({1, 2, 3, 4}, 3, true), (Match{{}, kNoPages, page, 3}));
  EXPECT_EQ(pool.find({1, 2, 9}, 2, true), (Match{{}, kNoPages, page, 1}));
  EXPECT_EQ(pool.find({1, 9}, 1, true), (Match{}));
  // One that does not keep those layers finds it too, but is not found by one that does.
  EXPECT_EQ(pool.find({1, 2, 3, 4, 5, 6}, 5, false), (Match{{page}, chain, -1, 0}));
  const std::vector<int32_t> others = {7, 8, 9};
  pool.publish(pool.allocate(), kNoPages, {others.data(), 2, false});
  EXPECT_EQ(pool.find(others, 2, true), (Match{}));
  EXPECT_EQ(pool.find(others, 2, false).partial_rows, 2);
}

TEST(PagePool, WhatCannotHappenIsSaid) {
  PagePool pool(1, kPageTokens);
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  EXPECT_ERROR(pool.release(0), "internal error: page 0 has no user to give it back");
  EXPECT_ERROR(pool.retain(0), "internal error: page 0 is free");
  EXPECT_ERROR(pool.publish(0, kNoPages, {tokens.data(), kPageTokens}),
               "internal error: page 0 cannot be published");
  const int64_t page = pool.allocate();
  EXPECT_ERROR(pool.allocate(), "internal error: a page was asked for and all 1 are in use");
  pool.publish(page, kNoPages, {tokens.data(), 2});
  pool.publish(page, kNoPages, {tokens.data(), kPageTokens});
  EXPECT_ERROR(pool.publish(page, kNoPages, {tokens.data(), kPageTokens}),
               "internal error: page 0 cannot be published");
}

}  // namespace
}  // namespace hadal::serve
