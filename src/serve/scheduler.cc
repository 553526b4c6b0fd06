// Planning a step, and keeping the books of what was planned.
// SPDX-License-Identifier: Apache-2.0
#include "serve/scheduler.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "core/env.h"

namespace hadal::serve {
namespace {

// Fewer rows are not worth a copy, unless it leaves one token alone to run.
constexpr int64_t kLeastCopied = 8;
// What a sequence that runs is to its home, in tokens of a prompt: it draws some more.
constexpr int64_t kWorkOfOne = 64;

}  // namespace

Scheduler::Scheduler(const Limits& limits)
    : limits_(limits), mistakes_homes_(env::sabotage() == "home") {
  for (int64_t home = 0; home < limits.num_homes; ++home)
    pools_.emplace_back(limits.num_pages, limits.page_tokens, limits.lookahead);
  HADAL_CHECK(limits.max_seqs >= 1 && limits.max_step_tokens >= limits.max_seqs, "a step of ",
              limits.max_step_tokens, " tokens cannot hold one of each of ", limits.max_seqs,
              " sequences");
  HADAL_CHECK(limits.num_pages >= pages_for(limits.max_tokens), "a cache of ",
              limits.num_pages * limits.page_tokens, " tokens does not hold one sequence of ",
              limits.max_tokens);
}

int64_t Scheduler::pages_for(int64_t num_tokens) const {
  return (num_tokens + limits_.page_tokens - 1) / limits_.page_tokens;
}

// The last token of a sequence is always run: the next one is drawn from its state.
PagePool::Match Scheduler::find(const Sequence& s, const PagePool& pool) const {
  if (!limits_.prefix_cache || !s.use_cache) return {};
  PagePool::Match match = pool.find(s.tokens, s.num_tokens() - 1, keeps_mtp(s));
  const int64_t left = s.num_tokens() - num_found(match);
  if (match.partial_rows < kLeastCopied && left > 1) match.drop_partial();
  return match;
}

void Scheduler::add(Sequence s) {
  HADAL_CHECK(s.id != 0 && !sequences_.contains(s.id), "internal error: sequence ", s.id,
              " exists");
  HADAL_CHECK(s.num_tokens() >= 1 && s.num_tokens() < limits_.max_tokens, "a prompt of ",
              s.num_tokens(), " tokens does not fit a context of ", limits_.max_tokens);
  sequences_.emplace(s.id, std::move(s));
}

Sequence& Scheduler::at(uint64_t id) {
  const auto it = sequences_.find(id);
  HADAL_CHECK(it != sequences_.end(), "internal error: there is no sequence ", id);
  return it->second;
}

// One step being put together.
class Scheduler::Planner {
 public:
  Planner(const Scheduler& scheduler, double now) : s_(scheduler), now_(now) {
    for (const PagePool& pool : s_.pools_)
      homes_.push_back({.pool = pool,
                        .available = pool.num_available(),
                        .budget = scheduler.limits_.max_step_tokens});
    for (const auto& [id, sequence] : s_.sequences_)
      (sequence.running ? home_of(sequence).running : waiting_).push_back(&sequence);
    const auto by_rank = [&](const Sequence* a, const Sequence* b) { return before(*a, *b); };
    for (Home& home : homes_) std::sort(home.running.begin(), home.running.end(), by_rank);
    std::sort(waiting_.begin(), waiting_.end(), by_rank);
  }

  StepPlan make() {
    for (Home& home : homes_) {
      reserve_running(home);
      for (const Sequence* q : home.running)
        if (num_unrun(*q) == 1 && !q->held)
          run(home, *q, q->done, 1 + static_cast<int64_t>(q->drafts.size()));
      for (const Sequence* q : home.running)
        if (num_unrun(*q) > 1) run(home, *q, q->done, std::min(num_unrun(*q), home.budget));
      home.num_running = static_cast<int64_t>(home.running.size());
      for (const Sequence* q : home.running) home.work += kWorkOfOne + num_unrun(*q);
    }
    if (plan_.preempt.empty()) admit();
    for (Home& home : homes_)
      plan_.runs.insert(plan_.runs.end(), home.runs.begin(), home.runs.end());
    return std::move(plan_);
  }

 private:
  struct Home {
    const PagePool& pool;
    int64_t available, budget;  // pages, tokens of the step
    int64_t num_running = 0, work = 0;
    std::vector<const Sequence*> running = {};
    std::unordered_map<int64_t, int64_t> users = {};  // of pages that preempted sequences have
    std::vector<StepPlan::Run> runs = {};
  };
  // Where a sequence could be admitted, and what it takes there.
  struct Place {
    Home* home = nullptr;
    PagePool::Match match = {};
    int64_t num_found = 0, pages = 0, work = 0;
  };

  Home& home_of(const Sequence& q) { return homes_[static_cast<size_t>(q.home)]; }
  static int64_t num_unrun(const Sequence& q) { return q.num_tokens() - q.done; }
  double urgency(const Sequence& q) const {
    return static_cast<double>(q.priority) - (now_ - q.arrival) / s_.limits_.aging_seconds;
  }
  bool before(const Sequence& a, const Sequence& b) const {
    const double ua = urgency(a), ub = urgency(b);
    return ua != ub ? ua < ub : a.id < b.id;
  }
  void run(Home& home, const Sequence& q, int64_t start, int64_t count) {
    if (count <= 0 || count > home.budget) return;
    home.runs.push_back({q.id, start, count});
    plan_.num_tokens += count;
    home.budget -= count;
  }

  // Pages for what each running sequence may write in this step, in rank order; the lowest give
  // theirs up.
  void reserve_running(Home& home) {
    std::vector<const Sequence*>& running = home.running;
    for (size_t i = 0; i < running.size(); ++i) {
      const Sequence& q = *running[i];
      const int64_t more = s_.num_wanted(q) - static_cast<int64_t>(q.pages.size());
      while (more > home.available && running.size() > i) {
        const Sequence& victim = *running.back();
        running.pop_back();
        plan_.preempt.push_back(victim.id);
        for (int64_t page : victim.pages) give_up(home, page);
      }
      if (i < running.size()) home.available -= std::max<int64_t>(more, 0);
    }
  }
  static void give_up(Home& home, int64_t page) {
    const auto [it, inserted] = home.users.try_emplace(page, home.pool.num_users(page));
    if (--it->second == 0) ++home.available;
  }

  bool has_place(const Home& home) const {
    return home.budget > 0 && home.num_running < s_.limits_.max_seqs;
  }
  void admit() {
    for (const Sequence* q : waiting_) {
      if (std::none_of(homes_.begin(), homes_.end(),
                       [&](const Home& home) { return has_place(home); }))
        return;
      if (waits_for_leader(*q)) continue;
      Place place = best_place(*q);
      if (place.home == nullptr) return;
      Home& home = *place.home;
      home.available -= place.pages;
      ++home.num_running;
      home.work = place.work;
      plan_.admit.push_back({q->id, std::move(place.match), &home - homes_.data()});
      run(home, *q, place.num_found, std::min(q->num_tokens() - place.num_found, home.budget));
    }
  }
  // The home with least work then; of equal ones the one with most pages left.
  Place best_place(const Sequence& q) {
    Place best;
    for (Home& home : homes_) {
      if (!has_place(home)) continue;
      Place place = place_at(q, home);
      if (place.home == nullptr) continue;
      const auto key = [](const Place& p) {
        return std::pair(p.work, p.pages - p.home->available);
      };
      if (best.home == nullptr || key(place) < key(best)) best = std::move(place);
    }
    return best;
  }
  // No home where it lacks pages.
  Place place_at(const Sequence& q, Home& home) const {
    PagePool::Match match = s_.find(q, s_.mistakes_homes_ ? s_.pools_[0] : home.pool);
    const auto taken = [&](int64_t page) { return home.pool.num_users(page) == 0 ? 1 : 0; };
    int64_t needed = s_.num_wanted(q) - static_cast<int64_t>(match.pages.size());
    for (int64_t page : match.pages) needed += taken(page);
    // A page to copy from is kept until the copy is on its way; where there is no room, it goes.
    if (match.partial >= 0 && needed + taken(match.partial) > home.available) match.drop_partial();
    if (match.partial >= 0) needed += taken(match.partial);
    if (needed > home.available) return {};
    const int64_t found = s_.num_found(match);
    return {.home = &home,
            .match = std::move(match),
            .num_found = found,
            .pages = needed,
            .work = home.work + kWorkOfOne + q.num_tokens() - found};
  }
  bool waits_for_leader(const Sequence& q) const {
    const auto leader = s_.sequences_.find(q.leader);
    return leader != s_.sequences_.end() && leader->second.done < leader->second.num_prompt;
  }

  const Scheduler& s_;
  double now_;
  std::vector<Home> homes_;
  std::vector<const Sequence*> waiting_;
  StepPlan plan_;
};

// Pages that the next step of a running sequence may write: its tokens, its drafts, and what is
// drafted behind them.
int64_t Scheduler::num_wanted(const Sequence& q) const {
  const int64_t end = q.num_tokens() + static_cast<int64_t>(q.drafts.size()) + q.num_ahead;
  return pages_for(std::min(end, limits_.max_tokens));
}

StepPlan Scheduler::plan(double now) const { return Planner(*this, now).make(); }

int64_t Scheduler::num_found(const PagePool::Match& match) const {
  return static_cast<int64_t>(match.pages.size()) * limits_.page_tokens + match.partial_rows;
}

// Full pages for others to share; rest: and the rows behind them, to be copied.
void Scheduler::publish(Sequence& s, bool rest) {
  if (!limits_.prefix_cache || !s.use_cache) return;
  const int64_t final_rows = std::min(s.done, s.num_known() - limits_.lookahead);
  for (;;) {
    const int64_t first = s.num_published * limits_.page_tokens;
    const int64_t rows = std::min(limits_.page_tokens, final_rows - first);
    const bool full = rows == limits_.page_tokens;
    if (rows <= 0 || !(full || rest)) return;
    const Chain chain = pool_of(s).publish(s.pages[static_cast<size_t>(s.num_published)], s.chain,
                                           {s.tokens.data() + first, rows, keeps_mtp(s)});
    if (!full) return;
    s.chain = chain;
    ++s.num_published;
  }
}

void Scheduler::preempt(Sequence& s) {
  publish(s, true);
  // The last pages first: of a chain, what is behind goes before what it stands on.
  for (auto page = s.pages.rbegin(); page != s.pages.rend(); ++page) pool_of(s).release(*page);
  s.pages.clear();
  s.drafts.clear();
  s.done = s.num_published = 0;
  s.chain = kNoPages;
  s.running = false;
  --num_running_;
}

std::vector<PageCopy> Scheduler::apply(const StepPlan& plan, double now) {
  for (uint64_t id : plan.preempt) {
    Sequence& s = at(id);
    preempt(s);
    ++s.num_preempted;
    ++num_preemptions_;
  }
  // What is found in the cache is taken before anything else may replace it.
  for (const auto& [id, match, home] : plan.admit) {
    Sequence& s = at(id);
    s.home = home;
    for (int64_t page : match.pages) pool_of(s).retain(page);
    if (match.partial >= 0) pool_of(s).retain(match.partial);
    s.pages = match.pages;
    s.chain = match.chain;
    s.num_published = static_cast<int64_t>(match.pages.size());
    s.done = num_found(match);
    if (s.admitted < 0) {
      s.admitted = now;
      s.num_found = s.done;
    }
    s.running = true;
    ++num_running_;
  }
  for (auto& [id, s] : sequences_) {
    if (!s.running) continue;
    while (static_cast<int64_t>(s.pages.size()) < num_wanted(s))
      s.pages.push_back(pool_of(s).allocate());
  }
  std::vector<PageCopy> copies;
  for (const auto& [id, match, home] : plan.admit) {
    if (match.partial < 0) continue;
    Sequence& s = at(id);
    copies.push_back({match.partial, s.pages[match.pages.size()], match.partial_rows, home});
    pool_of(s).release(match.partial);
  }
  return copies;
}

void Scheduler::advance(uint64_t id, int64_t done) {
  Sequence& s = at(id);
  HADAL_CHECK(done >= s.done && done <= s.num_tokens(), "internal error: sequence ", id, " at ",
              s.done, " of ", s.num_tokens(), " tokens cannot advance to ", done);
  const bool ends_prompt = s.done < s.num_prompt && done >= s.num_prompt;
  s.done = done;
  publish(s, ends_prompt);
}

void Scheduler::remove(uint64_t id) {
  Sequence& s = at(id);
  if (s.running) preempt(s);
  sequences_.erase(id);
}

}  // namespace hadal::serve
