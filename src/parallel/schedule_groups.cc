// Plays the groups with messages that wait for both ends, and mends what stands still.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/schedule_groups.h"

#include <algorithm>

#include "core/check.h"

namespace hadal::detail {
namespace {

// A rank on its way through its groups.
class Rank {
 public:
  Rank(std::vector<ScheduleStep>& steps, std::vector<Transfer>& last) {
    for (ScheduleStep& step : steps) groups_.push_back(&step.transfers);
    groups_.push_back(&last);
    enter();
  }
  bool has_ended() const { return at_ == groups_.size(); }
  // The first message to or from a rank that its group still waits for; null: none.
  const Transfer* waiting(bool send, int peer) const {
    for (size_t i = 0; i < done_.size(); ++i)
      if (const Transfer& t = (*groups_[at_])[i]; !done_[i] && t.send == send && t.peer == peer)
        return &t;
    return nullptr;
  }
  void finish(const Transfer* t) { done_[static_cast<size_t>(t - groups_[at_]->data())] = true; }
  // To the next group, once this one is done.
  bool advance() {
    if (has_ended() || std::find(done_.begin(), done_.end(), false) != done_.end()) return false;
    ++at_;
    enter();
    return true;
  }
  // Its next receive from a rank, of a later group, comes into this one; false: there is none.
  bool receive_early(int peer) {
    for (size_t later = at_ + 1; later < groups_.size(); ++later) {
      std::vector<Transfer>& from = *groups_[later];
      const auto found = std::find_if(from.begin(), from.end(),
                                      [&](const Transfer& t) { return !t.send && t.peer == peer; });
      if (found == from.end()) continue;
      groups_[at_]->push_back(*found);
      done_.push_back(false);
      from.erase(found);
      return true;
    }
    return false;
  }

 private:
  void enter() { done_.assign(has_ended() ? 0 : groups_[at_]->size(), false); }

  std::vector<std::vector<Transfer>*> groups_;
  size_t at_ = 0;
  std::vector<bool> done_;  // of this group's messages
};

}  // namespace

void let_groups_meet(Schedule& s) {
  std::vector<Rank> ranks;
  for (size_t r = 0; r < s.steps.size(); ++r) ranks.emplace_back(s.steps[r], s.last_transfers[r]);
  const int P = s.num_ranks;
  const auto rank = [&](int r) -> Rank& { return ranks[static_cast<size_t>(r)]; };
  const auto for_each_pair = [&](const auto& fn) {  // fn(from, to): whether it did something
    bool any = false;
    for (int from = 0; from < P; ++from)
      for (int to = 0; to < P; ++to) any = fn(from, to) || any;
    return any;
  };
  const auto meet = [&](int from, int to) {
    const Transfer* const sent = rank(from).waiting(true, to);
    const Transfer* const got = sent == nullptr ? nullptr : rank(to).waiting(false, from);
    if (got == nullptr) return false;
    HADAL_CHECK(sent->what == got->what && sent->chunk == got->chunk,
                "internal error: ", schedule_name(s.kind), ": ranks ", from, " and ", to,
                " have their messages in other orders");
    rank(from).finish(sent);
    rank(to).finish(got);
    return true;
  };
  const auto advance = [&] {
    bool any = false;
    for (Rank& r : ranks) any = r.advance() || any;
    return any;
  };
  const auto mend = [&] {
    for (int from = 0; from < P; ++from)
      for (int to = 0; to < P; ++to)
        if (rank(from).waiting(true, to) != nullptr && !rank(to).has_ended() &&
            rank(to).receive_early(from))
          return true;
    return false;
  };
  while (std::any_of(ranks.begin(), ranks.end(), [](const Rank& r) { return !r.has_ended(); }))
    HADAL_CHECK(for_each_pair(meet) || advance() || mend(),
                "internal error: ", schedule_name(s.kind), ": a message has no receiver");
}

}  // namespace hadal::detail
