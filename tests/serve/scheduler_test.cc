// The scheduler with random requests against a trivial model of the cache: every position that a
// sequence reads holds what it would have written itself, no page leaks, nobody starves.
// SPDX-License-Identifier: Apache-2.0
#include "serve/scheduler.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/rng.h"
#include "tests/unit/expect_error.h"

namespace hadal::serve {
namespace {

constexpr int64_t kPageTokens = 4;

class Random {
 public:
  Random(uint64_t seed, const char* name) : rng_(seed, stream_id(name)) {}
  uint64_t below(uint64_t n) { return rng_.u64(at_++) % n; }

 private:
  Rng rng_;
  uint64_t at_ = 0;
};

// The cache as tokens: what stands at a position of a page is the hash of all tokens up to it; in
// the layers that draft, of one token more.
class Simulation {
 public:
  // overlap: the token that a step draws is known to the host one step later.
  Simulation(const Scheduler::Limits& limits, uint64_t seed, bool overlap)
      : scheduler(limits),
        random_(seed, "scheduler"),
        cache_(static_cast<size_t>(limits.num_homes * limits.num_pages * kPageTokens)),
        mtp_cache_(cache_.size()),
        overlap_(overlap) {}

  void operation() {
    ++num_operations;
    switch (random_.below(8)) {
      case 0:
      case 1:
        if (scheduler.sequences().size() < 24u * static_cast<size_t>(num_homes())) add();
        break;
      case 2:
        if (random_.below(4) == 0) cancel();
        break;
      default:
        step();
    }
  }
  void drain() {
    for (int i = 0; !scheduler.sequences().empty(); ++i) {
      ASSERT_LT(i, 20000) << "sequences do not end";
      step();
    }
    for (const PagePool& pool : scheduler.pools()) ASSERT_EQ(pool.num_in_use(), 0);
  }

  Scheduler scheduler;
  int64_t num_operations = 0, num_finished = 0, num_found = 0, num_copied = 0, num_moved = 0;

 private:
  void add() {
    Sequence s;
    s.id = ++last_id_;
    s.priority = static_cast<int64_t>(random_.below(3));
    s.arrival = now_;
    const uint64_t n = 1 + random_.below(20);
    for (uint64_t i = 0; i < n; ++i) s.tokens.push_back(static_cast<int32_t>(random_.below(2)));
    s.num_prompt = s.num_tokens();
    s.num_ahead = overlap_ ? 0 : static_cast<int64_t>(random_.below(3));
    s.use_cache = random_.below(8) != 0;
    if (random_.below(4) == 0 && !scheduler.sequences().empty())
      s.leader = scheduler.sequences().begin()->first;
    real_[s.id] = s.tokens;
    length_[s.id] = s.num_tokens() + 1 + static_cast<int64_t>(random_.below(16));
    scheduler.add(std::move(s));
  }
  void cancel() {
    const auto& all = scheduler.sequences();
    if (all.empty()) return;
    auto it = all.begin();
    std::advance(it, static_cast<long>(random_.below(all.size())));
    scheduler.remove(it->first);
  }

  uint64_t content(const std::vector<int32_t>& tokens, int64_t position) const {
    uint64_t h = 1;
    for (int64_t i = 0; i <= position; ++i)
      h = (h ^ static_cast<uint64_t>(tokens[static_cast<size_t>(i)] + 7)) * 0x9E3779B97F4A7C15u;
    return h;
  }
  int64_t num_homes() const { return scheduler.limits().num_homes; }
  size_t place_of(int64_t home, int64_t page, int64_t row) const {
    return static_cast<size_t>((home * scheduler.limits().num_pages + page) * kPageTokens + row);
  }
  size_t place_of(const Sequence& s, int64_t position) const {
    return place_of(s.home, s.pages.at(static_cast<size_t>(position / kPageTokens)),
                    position % kPageTokens);
  }
  uint64_t& cell(const Sequence& s, int64_t position) { return cache_.at(place_of(s, position)); }
  uint64_t& mtp_cell(const Sequence& s, int64_t position) {
    return mtp_cache_.at(place_of(s, position));
  }
  bool keeps_mtp(const Sequence& s) const {
    return scheduler.limits().lookahead > 0 && s.num_ahead > 0;
  }
  void copy(const PageCopy& copy) {
    ASSERT_NE(copy.from, copy.to);
    for (std::vector<uint64_t>* cache : {&cache_, &mtp_cache_})
      for (int64_t row = 0; row < kPageTokens; ++row)
        cache->at(place_of(copy.home, copy.to, row)) =
            row < copy.num_rows ? cache->at(place_of(copy.home, copy.from, row)) : 0;
    num_copied += copy.num_rows;
  }

  void step() {
    now_ += 0.1;
    const StepPlan plan = scheduler.plan(now_);
    // The same state and clock, the same plan.
    const StepPlan again = scheduler.plan(now_);
    ASSERT_TRUE(plan.admit == again.admit);
    ASSERT_EQ(plan.runs.size(), again.runs.size());
    check_rank(plan);
    for (const PageCopy& c : scheduler.apply(plan, now_)) copy(c);
    check_books();
    check_homes(plan);
    const bool work = !scheduler.sequences().empty();
    ASSERT_TRUE(!work || !plan.runs.empty() || !plan.preempt.empty() || !flight_.empty())
        << "nothing runs";
    std::vector<Drawn> flight;
    int64_t num_tokens = 0;
    for (const StepPlan::Run& run : plan.runs) {
      Sequence& s = scheduler.at(run.id);
      ASSERT_EQ(run.start, s.done);
      num_tokens += run.count;
      for (int64_t p = 0; p < run.start; ++p)
        ASSERT_EQ(cell(s, p), content(overlap_ ? real_[run.id] : s.tokens, p)) << "another's page";
      for (int64_t p = 0; p < run.start && keeps_mtp(s); ++p)
        ASSERT_EQ(mtp_cell(s, p), content(s.tokens, p + 1)) << "another's row of the MTP layer";
      // Known tokens, then drafts, which are wrong in the cache unless they turn out right.
      std::vector<int32_t> tokens = overlap_ ? real_[run.id] : s.tokens;
      tokens.insert(tokens.end(), s.drafts.begin(), s.drafts.end());
      for (int64_t p = run.start; p < run.start + run.count; ++p) {
        cell(s, p) = content(tokens, p);
        mtp_cell(s, p) = 0;
      }
      if (overlap_)
        advance_early(s, run, flight);
      else
        advance(s, run);
    }
    collect(std::exchange(flight_, std::move(flight)));
    ASSERT_EQ(num_tokens, plan.num_tokens);
  }

  // Runs are in the order of their homes, each within its budget; who runs stays where it is, and
  // who was preempted may come back elsewhere.
  void check_homes(const StepPlan& plan) {
    std::vector<int64_t> tokens(static_cast<size_t>(num_homes()));
    int64_t last = 0;
    for (const StepPlan::Run& run : plan.runs) {
      const int64_t home = scheduler.at(run.id).home;
      ASSERT_GE(home, last);
      last = home;
      tokens.at(static_cast<size_t>(home)) += run.count;
    }
    for (const int64_t count : tokens) ASSERT_LE(count, scheduler.limits().max_step_tokens);
    for (const StepPlan::Admission& a : plan.admit) home_.erase(a.id);
    for (const auto& [id, s] : scheduler.sequences()) {
      if (!s.running) continue;
      const auto [at, is_new] = home_.try_emplace(id, s.home);
      ASSERT_EQ(at->second, s.home);
      if (is_new && s.num_preempted > 0 && first_home_.at(id) != s.home) ++num_moved;
      first_home_.try_emplace(id, s.home);
    }
  }

  // A token that the device knows, and the host will.
  struct Drawn {
    uint64_t id;
    int32_t token;
  };
  void advance_early(Sequence& s, const StepPlan::Run& run, std::vector<Drawn>& flight) {
    scheduler.advance(run.id, run.start + run.count);
    num_found += s.num_found;
    if (run.start + run.count < s.num_tokens()) return;
    flight.push_back({run.id, static_cast<int32_t>(random_.below(2))});
    real_[run.id].push_back(flight.back().token);
    s.tokens.push_back(0);
    ++s.num_pending;
    s.held = s.num_tokens() >= length_[run.id];
  }
  void collect(const std::vector<Drawn>& flight) {
    for (const Drawn& drawn : flight) {
      if (!scheduler.sequences().contains(drawn.id)) continue;  // cancelled, or ended before
      Sequence& s = scheduler.at(drawn.id);
      s.tokens[static_cast<size_t>(s.num_known())] = drawn.token;
      --s.num_pending;
      // Some end earlier than the scheduler was told: a step too many runs.
      const bool ended = s.num_known() >= length_[drawn.id] || random_.below(16) == 0;
      if (!ended) {
        scheduler.advance(drawn.id, s.done);
        continue;
      }
      ++num_finished;
      scheduler.remove(drawn.id);
    }
  }

  void advance(Sequence& s, const StepPlan::Run& run) {
    int64_t done = std::min(run.start + run.count, s.num_tokens());
    const uint64_t id = s.id;
    bool ended = false;
    if (done == s.num_tokens()) {
      const std::vector<int32_t> drafts = std::exchange(s.drafts, {});
      for (size_t d = 0; d <= drafts.size() && !ended; ++d) {
        const auto token = static_cast<int32_t>(random_.below(2));
        s.tokens.push_back(token);
        ended = s.num_tokens() >= length_[id];
        if (d == drafts.size() || drafts[d] != token) break;
        ++done;
      }
      for (int64_t d = 0; d < s.num_ahead && !ended; ++d) {
        if (s.num_tokens() + d < scheduler.limits().max_tokens)
          s.drafts.push_back(static_cast<int32_t>(random_.below(2)));
        // What is drafted writes to the cache as well.
        const int64_t at = s.num_tokens() - 1 + d;
        if (at >= done && at < scheduler.limits().max_tokens) cell(s, at) = 0;
      }
    }
    for (int64_t p = run.start; p < done && p + 1 < s.num_tokens() && keeps_mtp(s); ++p)
      mtp_cell(s, p) = content(s.tokens, p + 1);
    scheduler.advance(id, done);
    num_found += s.num_found;
    // Some give drafts up for ever, as the engine does under load.
    if (!ended && random_.below(32) == 0) s.num_ahead = 0, s.drafts.clear();
    if (!ended) return;
    ++num_finished;
    scheduler.remove(id);
  }

  // Who waits is not overtaken by one of lower rank that runs from now on.
  void check_rank(const StepPlan& plan) {
    if (plan.admit.empty()) return;
    const auto urgency = [&](const Sequence& s) {
      return static_cast<double>(s.priority) -
             (now_ - s.arrival) / scheduler.limits().aging_seconds;
    };
    double last = -1e300;
    for (const auto& [id, match, home] : plan.admit) {
      ASSERT_GE(urgency(scheduler.at(id)), last);
      last = urgency(scheduler.at(id));
    }
    for (const auto& [id, s] : scheduler.sequences()) {
      const auto is_it = [&](const StepPlan::Admission& a) { return a.id == s.id; };
      if (s.running || std::any_of(plan.admit.begin(), plan.admit.end(), is_it)) continue;
      const auto leader = scheduler.sequences().find(s.leader);
      const bool waits =
          leader != scheduler.sequences().end() && leader->second.done < leader->second.num_prompt;
      if (waits) continue;
      ASSERT_GE(urgency(s), last) << "overtaken";
    }
  }

  // Every page has as many users as sequences have it, once each.
  void check_books() {
    std::map<std::pair<int64_t, int64_t>, int64_t> users;  // of homes' pages
    std::map<int64_t, int64_t> used, running;              // by home
    int64_t num_running = 0;
    for (const auto& [id, s] : scheduler.sequences()) {
      num_running += s.running ? 1 : 0;
      ASSERT_TRUE(s.running || s.pages.empty());
      ASSERT_EQ(std::set<int64_t>(s.pages.begin(), s.pages.end()).size(), s.pages.size());
      for (int64_t page : s.pages) used[s.home] += ++users[{s.home, page}] == 1 ? 1 : 0;
      running[s.home] += s.running ? 1 : 0;
    }
    ASSERT_EQ(num_running, scheduler.num_running());
    for (int64_t home = 0; home < num_homes(); ++home) {
      const PagePool& pool = scheduler.pools().at(static_cast<size_t>(home));
      ASSERT_LE(running[home], scheduler.limits().max_seqs);
      for (int64_t page = 0; page < scheduler.limits().num_pages; ++page)
        ASSERT_EQ(pool.num_users(page), users.contains({home, page}) ? (users[{home, page}]) : 0);
      ASSERT_EQ(pool.num_in_use(), used[home]);
    }
  }

  Random random_;
  std::vector<uint64_t> cache_, mtp_cache_;
  bool overlap_;
  std::map<uint64_t, std::vector<int32_t>> real_;  // tokens as the device knows them
  std::vector<Drawn> flight_;                      // of the step under way
  std::map<uint64_t, int64_t> length_, home_, first_home_;
  uint64_t last_id_ = 0;
  double now_ = 0.0;
};

void run_random(bool overlap, int64_t lookahead, int64_t num_homes = 1) {
  int64_t operations = 0, preemptions = 0, evictions = 0, moved = 0;
  for (int64_t pages : {10, 16, 40})
    for (bool prefix_cache : {true, false}) {
      Simulation s({.max_seqs = 6,
                    .max_step_tokens = 24,
                    .max_tokens = 40,
                    .num_pages = pages,
                    .page_tokens = kPageTokens,
                    .aging_seconds = 2.0,
                    .prefix_cache = prefix_cache,
                    .lookahead = lookahead,
                    .num_homes = num_homes},
                   static_cast<uint64_t>(pages), overlap);
      for (int i = 0; i < 84000 && !::testing::Test::HasFatalFailure(); ++i) s.operation();
      if (::testing::Test::HasFatalFailure()) return;
      s.drain();
      operations += s.num_operations;
      preemptions += s.scheduler.num_preemptions();
      for (const PagePool& pool : s.scheduler.pools()) evictions += pool.num_evicted();
      moved += s.num_moved;
      EXPECT_GT(s.num_finished, 1000);
      EXPECT_EQ(s.num_found > 0, prefix_cache);
      EXPECT_EQ(s.num_copied > 1000, prefix_cache);
    }
  EXPECT_GT(operations, 500000);
  EXPECT_GT(preemptions, 1000);
  EXPECT_GT(evictions, 1000);
  EXPECT_EQ(moved > 1000, num_homes > 1);
}

TEST(Scheduler, HalfAMillionRandomOperations) { run_random(false, 0); }
TEST(Scheduler, HalfAMillionRandomOperationsWithAnMtpLayer) { run_random(false, 1); }
TEST(Scheduler, HalfAMillionRandomOperationsOfStepsThatOverlap) { run_random(true, 0); }

TEST(Scheduler, AMillionRandomOperationsOfSeveralHomes) {
  run_random(false, 1, 3);
  run_random(true, 0, 2);
}

// The one with the prefix, unless the others are much emptier; one with room.
TEST(Scheduler, ASequenceGetsTheHomeWithTheLeastToRun) {
  Scheduler s({.max_seqs = 5,
               .max_step_tokens = 256,
               .max_tokens = 256,
               .num_pages = 64,
               .page_tokens = kPageTokens,
               .num_homes = 2});
  uint64_t last = 0;
  const auto admit = [&](int32_t first, size_t length) {
    std::vector<int32_t> tokens(length);
    for (size_t i = 0; i < length; ++i) tokens[i] = first + static_cast<int32_t>(i);
    const int64_t n = static_cast<int64_t>(length);
    s.add({.id = ++last, .tokens = std::move(tokens), .num_prompt = n});
    const StepPlan plan = s.plan(0.0);
    s.apply(plan, 0.0);
    for (const StepPlan::Run& run : plan.runs) s.advance(run.id, run.start + run.count);
    return plan.admit.empty() ? -1 : plan.admit[0].home;
  };
  EXPECT_EQ(admit(0, 100), 0);
  EXPECT_EQ(admit(1000, 10), 1);
  EXPECT_EQ(admit(2000, 10), 1);  // as much work as on the first, more pages
  EXPECT_EQ(admit(0, 100), 0);    // 99 tokens are found
  EXPECT_EQ(admit(0, 100), 0);
  EXPECT_EQ(admit(0, 100), 0);
  EXPECT_EQ(admit(0, 100), 1);  // the first has two sequences more: the prefix is run again
  EXPECT_EQ(admit(0, 100), 1);  // and found on both
  EXPECT_EQ(admit(0, 100), 0);
  EXPECT_EQ(admit(0, 100), 1);
  EXPECT_EQ(admit(0, 10), -1);  // five run on each
  s.remove(2);
  EXPECT_EQ(admit(3000, 5), 1);  // the one before
  s.remove(1);
  EXPECT_EQ(admit(4000, 5), 0);  // and this one's
}

TEST(Scheduler, DecodesFirstThenChunksThenAdmits) {
  Scheduler s({.max_seqs = 3,
               .max_step_tokens = 8,
               .max_tokens = 64,
               .num_pages = 64,
               .page_tokens = kPageTokens});
  const auto add = [&](uint64_t id, size_t length) {
    s.add({.id = id,
           .tokens = std::vector<int32_t>(length, static_cast<int32_t>(id)),
           .num_prompt = static_cast<int64_t>(length)});
  };
  const auto step = [&] {
    const StepPlan plan = s.plan(0.0);
    s.apply(plan, 0.0);
    std::vector<std::array<int64_t, 3>> runs;
    for (const StepPlan::Run& run : plan.runs) {
      runs.push_back({static_cast<int64_t>(run.id), run.start, run.count});
      Sequence& q = s.at(run.id);
      if (run.start + run.count == q.num_tokens()) q.tokens.push_back(0);
      s.advance(run.id, run.start + run.count);
    }
    return runs;
  };
  using Runs = std::vector<std::array<int64_t, 3>>;
  add(1, 3);
  EXPECT_EQ(step(), (Runs{{1, 0, 3}}));
  add(2, 12);
  add(3, 2);
  add(4, 1);
  EXPECT_EQ(step(), (Runs{{1, 3, 1}, {2, 0, 7}}));
  EXPECT_EQ(step(), (Runs{{1, 4, 1}, {2, 7, 5}, {3, 0, 2}}));
  EXPECT_EQ(step(), (Runs{{1, 5, 1}, {2, 12, 1}, {3, 2, 1}}));
  s.remove(2);
  EXPECT_EQ(step(), (Runs{{1, 6, 1}, {3, 3, 1}, {4, 0, 1}}));
}

// A prompt that was run before leaves one token to run, in a full page or behind it; a page that is
// no longer needed is copied from, unless all pages are needed.
TEST(Scheduler, RowsThatAgreeAreCopied) {
  Scheduler s(
      {.max_seqs = 2, .max_step_tokens = 64, .max_tokens = 64, .num_pages = 4, .page_tokens = 16});
  const auto ids = [](int32_t n) {
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    for (int32_t i = 0; i < n; ++i) tokens[static_cast<size_t>(i)] = i;
    return tokens;
  };
  const auto run = [&](uint64_t id, std::vector<int32_t> tokens) {
    const auto n = static_cast<int64_t>(tokens.size());
    s.add({.id = id, .tokens = std::move(tokens), .num_prompt = n});
    const StepPlan plan = s.plan(0.0);
    std::vector<PageCopy> copies = s.apply(plan, 0.0);
    EXPECT_EQ(plan.runs.size(), 1u);
    s.advance(id, n);
    s.remove(id);
    EXPECT_EQ(s.pools()[0].num_in_use(), 0);
    return std::pair{plan.runs[0].start, copies.empty() ? 0 : copies[0].num_rows};
  };
  using Got = std::pair<int64_t, int64_t>;
  EXPECT_EQ(run(1, ids(32)), (Got{0, 0}));
  EXPECT_EQ(run(2, ids(32)), (Got{31, 15}));
  EXPECT_EQ(run(3, ids(26)), (Got{25, 9}));
  EXPECT_EQ(run(4, ids(35)), (Got{32, 0}));  // three tokens more, not full
  EXPECT_EQ(run(5, ids(35)), (Got{34, 2}));  // two rows: one token is left
  std::vector<int32_t> other = ids(35);
  other[33] = 99;  // one row of the last page: not worth it
  EXPECT_EQ(run(6, other), (Got{32, 0}));
  other[31] = 99;
  EXPECT_EQ(run(7, other), (Got{31, 15}));
  // All four pages are needed: the one to copy from cannot be kept beside them.
  EXPECT_EQ(run(8, ids(63)).first % 16, 0);
}

TEST(Scheduler, Limits) {
  EXPECT_ERROR(Scheduler({.max_seqs = 4, .max_step_tokens = 3}),
               "a step of 3 tokens cannot hold one of each of 4 sequences");
  EXPECT_ERROR(Scheduler({.max_tokens = 4096, .num_pages = 63}),
               "a cache of 4032 tokens does not hold one sequence of 4096");
  Scheduler s({.max_tokens = 64, .num_pages = 1});
  s.add({.id = 1, .tokens = {1}, .num_prompt = 1});
  EXPECT_ERROR(s.add({.id = 1, .tokens = {1}}), "internal error: sequence 1 exists");
  EXPECT_ERROR(s.add({.id = 2, .tokens = std::vector<int32_t>(64)}),
               "a prompt of 64 tokens does not fit a context of 64");
  EXPECT_ERROR(s.remove(7), "internal error: there is no sequence 7");
  EXPECT_ERROR(s.advance(1, 2), "internal error: sequence 1 at 0 of 1 tokens cannot advance to 2");
}

}  // namespace
}  // namespace hadal::serve
