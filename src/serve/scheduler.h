// Scheduler: which sequences run next, on which pages; numbers only, no model.
//
// plan() is a pure function of the scheduler's state and the clock. Sequences are ranked by
// priority (a smaller number is more urgent), which waiting improves by one every aging_seconds,
// then by arrival. A step holds:
//
//   1. every running sequence that decodes: its last token and its drafts;
//   2. with what is left of the token budget, chunks of prompts that have begun;
//   3. then waiting sequences in rank order, each when the pages of all its tokens are there. The
//      first that does not fit ends the step, so none is overtaken for ever.
//
// A sequence begins behind what the page pool finds of it: full pages that it shares, and rows of
// one more page, which are copied to a page of its own before the step.
//
// A running sequence that needs a page when there is none takes those of the lowest in rank, which
// waits again and is recomputed. The highest is never preempted, so it ends. Not thread-safe.
//
// There may be several homes, each with pages, places and a token budget of its own: ranks that
// split sequences. All of the above is within a home, but for the order of who waits. A sequence is
// admitted to the home with the least left to run, its own tokens there included, and some for each
// that runs: so one with its prefix is preferred as long as the others are not much emptier.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "serve/page_pool.h"

namespace hadal::serve {

struct Sequence {
  uint64_t id = 0;
  int64_t priority = 0;
  double arrival = 0.0;         // seconds of the clock of plan()
  std::vector<int32_t> tokens;  // prompt, then what was generated
  int64_t num_prompt = 0;
  int64_t num_ahead = 0;             // drafts that a step may add behind its last token
  bool use_cache = true;             // of prefixes; false: every position is run for this sequence
  uint64_t leader = 0;               // waits until that one's prompt is done; 0: none
  std::vector<int32_t> drafts = {};  // to verify in the next step
  int64_t num_pending = 0;           // last tokens that are drawn but not known yet
  bool held = false;                 // its last token is not to be run

  // The scheduler's own.
  bool running = false;
  int64_t home = 0;                 // while it runs
  int64_t done = 0;                 // positions [0, done) are in the cache
  std::vector<int64_t> pages = {};  // of positions in order
  Chain chain = kNoPages;           // of its first num_published pages
  int64_t num_published = 0;
  int64_t num_found = 0;  // tokens that admission found in the cache
  int64_t num_preempted = 0;
  double admitted = -1.0;  // first time; negative: not yet

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_known() const { return num_tokens() - num_pending; }
};

struct StepPlan {
  struct Run {
    uint64_t id = 0;
    int64_t start = 0, count = 0;  // positions
  };
  struct Admission {
    uint64_t id = 0;
    PagePool::Match match;
    int64_t home = 0;
    bool operator==(const Admission&) const = default;
  };
  std::vector<uint64_t> preempt;  // in this order, before all else
  std::vector<Admission> admit;
  std::vector<Run> runs;  // in the order of their homes
  int64_t num_tokens = 0;
};

// Rows of the cache to be copied before a step: the first ones of a page into another.
struct PageCopy {
  int64_t from = 0, to = 0, num_rows = 0, home = 0;
};

class Scheduler {
 public:
  // Of each home.
  struct Limits {
    int64_t max_seqs = 16;          // that run
    int64_t max_step_tokens = 256;  // REQUIRES: at least max_seqs * (1 + num_ahead)
    int64_t max_tokens = 4096;      // of a sequence
    int64_t num_pages = 1024;       // REQUIRES: enough for one sequence of max_tokens
    int64_t page_tokens = 64;
    double aging_seconds = 10.0;
    bool prefix_cache = true;
    int64_t lookahead = 0;  // of the page pool: 1 where sequences may draft
    int64_t num_homes = 1;
  };
  // HADAL_SABOTAGE=home plants a fault, for the test of the tests.
  explicit Scheduler(const Limits& limits);

  // REQUIRES: a new id, one token or more, fewer than max_tokens.
  void add(Sequence sequence);
  // Finished or cancelled, waiting or running.
  void remove(uint64_t id);

  StepPlan plan(double now) const;
  // Preempts, admits and reserves pages as planned; returns what has to be copied before the step
  // runs, and before anything else is written. REQUIRES: no change since plan().
  std::vector<PageCopy> apply(const StepPlan& plan, double now);
  // Positions [0, done) of a sequence are final: its full pages can be found from now on, as far as
  // their tokens are known.
  void advance(uint64_t id, int64_t done);
  // Forgets published pages, as new weights ask for.
  void forget() {
    for (PagePool& pool : pools_) pool.forget();
  }

  // Changes of tokens and drafts are the caller's.
  Sequence& at(uint64_t id);
  const std::map<uint64_t, Sequence>& sequences() const { return sequences_; }
  int64_t num_running() const { return num_running_; }
  int64_t num_waiting() const { return static_cast<int64_t>(sequences_.size()) - num_running_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  const std::vector<PagePool>& pools() const { return pools_; }  // of homes
  const Limits& limits() const { return limits_; }

 private:
  class Planner;
  int64_t pages_for(int64_t num_tokens) const;
  int64_t num_wanted(const Sequence& s) const;
  int64_t num_found(const PagePool::Match& match) const;
  PagePool::Match find(const Sequence& s, const PagePool& pool) const;
  PagePool& pool_of(const Sequence& s) { return pools_[static_cast<size_t>(s.home)]; }
  bool keeps_mtp(const Sequence& s) const { return limits_.lookahead > 0 && s.num_ahead > 0; }
  void publish(Sequence& s, bool rest);
  void preempt(Sequence& s);

  Limits limits_;
  std::vector<PagePool> pools_;
  bool mistakes_homes_;  // the fault
  std::map<uint64_t, Sequence> sequences_;
  int64_t num_running_ = 0, num_preemptions_ = 0;
};

}  // namespace hadal::serve
