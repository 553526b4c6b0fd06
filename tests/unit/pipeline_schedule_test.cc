// Schedules: every chunk once and in order, messages matched, no deadlock, bounds, golden traces.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <tuple>

#include "parallel/schedule.h"
#include "plan/measured.h"
#include "plan/schedule_report.h"
#include "plan/timeline.h"
#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

using plan::play;
using plan::Timeline;
using plan::unit_times;

Schedule make(ScheduleKind kind, int num_ranks, int num_microbatches, int stages = 2) {
  return make_schedule({.kind = kind,
                        .num_ranks = num_ranks,
                        .num_microbatches = num_microbatches,
                        .stages_per_rank = stages});
}

using Key = std::tuple<int, int, int>;  // direction, stage, micro-batch
Key key(const Chunk& c) { return {c.direction, c.stage, c.microbatch}; }

// Every shape of a kind that is tried: each even PP to 16, and odd ones where they are allowed.
std::vector<ScheduleShape> shapes(ScheduleKind kind) {
  std::vector<ScheduleShape> all;
  for (int P : {1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16})
    for (int C : std::set<int>{1, P, P + 2, 2 * P, 2 * P + 2, 3 * P, 4 * P + 2})
      for (int stages : {2, 3}) {
        const ScheduleShape s{kind, P, C, stages};
        if (schedule_fits(s) && (kind == ScheduleKind::kInterleaved || stages == 2))
          all.push_back(s);
      }
  return all;
}

std::string name_of(const Schedule& s) {
  return concat(schedule_name(s.kind), ", ", s.num_ranks, " ranks, ", s.num_stages, " stages, ",
                s.num_microbatches, " micro-batches");
}

void check_chunks(const Schedule& schedule) {
  std::set<Key> forward, input, weight;
  for (int rank = 0; rank < schedule.num_ranks; ++rank)
    for (const ScheduleStep& s : schedule.steps[static_cast<size_t>(rank)]) {
      if (s.has_forward()) {
        EXPECT_EQ(schedule.rank_of(s.forward.direction, s.forward.stage), rank);
        EXPECT_TRUE(forward.insert(key(s.forward)).second) << to_string(schedule, s);
      }
      if (s.has_backward_input()) {
        EXPECT_EQ(schedule.rank_of(s.backward.direction, s.backward.stage), rank);
        EXPECT_TRUE(forward.contains(key(s.backward))) << to_string(schedule, s);
        EXPECT_TRUE(input.insert(key(s.backward)).second) << to_string(schedule, s);
      }
      if (s.has_backward_weight()) {
        EXPECT_TRUE(input.contains(key(s.backward))) << to_string(schedule, s);
        EXPECT_TRUE(weight.insert(key(s.backward)).second) << to_string(schedule, s);
      }
      if (s.work == Work::kOverlap) {
        EXPECT_NE(key(s.forward), key(s.backward));
      }
    }
  const auto all = static_cast<size_t>(schedule.num_stages * schedule.num_microbatches);
  EXPECT_EQ(forward.size(), all);
  EXPECT_EQ(input.size(), all);
  EXPECT_EQ(weight.size(), all);
}

// What a channel carries, in order.
using Channel = std::vector<std::pair<Transfer::What, Key>>;

std::vector<std::vector<Transfer>> groups_of(const Schedule& s, int rank) {
  std::vector<std::vector<Transfer>> groups;
  for (const ScheduleStep& step : s.steps[static_cast<size_t>(rank)])
    groups.push_back(step.transfers);
  groups.push_back(s.last_transfers[static_cast<size_t>(rank)]);
  return groups;
}

void check_messages(const Schedule& schedule) {
  // Interleaved sends activations and gradients over one pair of ranks in orders that differ, so
  // there each kind of message is a channel of its own.
  const bool split = schedule.kind == ScheduleKind::kInterleaved;
  std::map<std::tuple<int, int, int>, Channel> sent, received;
  for (int rank = 0; rank < schedule.num_ranks; ++rank)
    for (const auto& group : groups_of(schedule, rank))
      for (const Transfer& t : group) {
        EXPECT_NE(t.peer, rank);
        EXPECT_EQ(schedule.rank_of(t.chunk.direction, t.chunk.stage), t.send ? t.peer : rank);
        const int what = split ? static_cast<int>(t.what) : 0;
        auto& channel = t.send ? sent[{rank, t.peer, what}] : received[{t.peer, rank, what}];
        channel.emplace_back(t.what, key(t.chunk));
      }
  EXPECT_EQ(sent, received);
  if (schedule.num_ranks > 1) {
    EXPECT_FALSE(sent.empty());
  }
}

// Each step's inputs were received, and its outputs were made before they are sent.
void check_inputs(const Schedule& schedule) {
  for (int rank = 0; rank < schedule.num_ranks; ++rank) {
    std::set<std::pair<Transfer::What, Key>> here;  // usable on this rank: consumer's key
    const auto made = [&](Transfer::What what, Chunk chunk) {
      chunk.stage += what == Transfer::What::kActivation ? 1 : -1;
      here.insert({what, key(chunk)});
    };
    const auto post = [&](const std::vector<Transfer>& group) {
      for (const Transfer& t : group)
        if (t.send)
          EXPECT_TRUE(here.contains({t.what, key(t.chunk)})) << "rank " << rank;
        else
          here.insert({t.what, key(t.chunk)});
    };
    for (const ScheduleStep& s : schedule.steps[static_cast<size_t>(rank)]) {
      post(s.transfers);
      if (s.has_forward() && s.forward.stage > 0) {
        EXPECT_TRUE(here.contains({Transfer::What::kActivation, key(s.forward)}));
      }
      if (s.has_backward_input() && s.backward.stage + 1 < schedule.num_stages) {
        EXPECT_TRUE(here.contains({Transfer::What::kGradient, key(s.backward)}));
      }
      if (s.has_forward()) made(Transfer::What::kActivation, s.forward);
      if (s.has_backward_input()) made(Transfer::What::kGradient, s.backward);
    }
    post(schedule.last_transfers[static_cast<size_t>(rank)]);
  }
}

// A group of messages completes when the peer posts each of its counterparts: the strictest way to
// run it (ncclGroupEnd and a wait). Ranks then go on to their next group.
bool goes_on_blocking(const Schedule& s) {
  const auto num_ranks = static_cast<size_t>(s.num_ranks);
  std::vector<std::vector<std::vector<Transfer>>> groups;
  for (int rank = 0; rank < s.num_ranks; ++rank) groups.push_back(groups_of(s, rank));
  std::vector<size_t> at(num_ranks, 0);
  std::map<std::tuple<bool, int, int>, int> posted;  // sends or receives of a channel, so far
  std::vector<std::vector<std::tuple<bool, int, int, int>>> waits(num_ranks);  // its counterparts
  const auto enter = [&](size_t rank) {
    waits[rank].clear();
    if (at[rank] == groups[rank].size()) return;
    for (const Transfer& t : groups[rank][at[rank]]) {
      const int me = static_cast<int>(rank);
      const int from = t.send ? me : t.peer, to = t.send ? t.peer : me;
      waits[rank].emplace_back(!t.send, from, to, ++posted[{t.send, from, to}]);
    }
  };
  for (size_t rank = 0; rank < num_ranks; ++rank) enter(rank);
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      if (at[rank] == groups[rank].size()) continue;
      const bool done = std::all_of(waits[rank].begin(), waits[rank].end(), [&](const auto& w) {
        const auto& [send, from, to, count] = w;
        return posted[{send, from, to}] >= count;
      });
      if (!done) continue;
      ++at[rank];
      enter(rank);
      moved = true;
    }
  }
  for (size_t rank = 0; rank < num_ranks; ++rank)
    if (at[rank] != groups[rank].size()) return false;
  return true;
}

// Messages beside the work, as Pipeline posts them: a send behind the step before, a receive a step
// ahead, each when the one before it on its link is through; gradients that were sent are awaited
// when as many others were as their receiver has chunks at most.
class Beside {
 public:
  explicit Beside(const Schedule& schedule)
      : schedule_(schedule), times_(unit_times(3.0)), ranks_(count(schedule.num_ranks)) {}

  // When the last step ends; -1 if the ranks wait for each other.
  double makespan() {
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < schedule_.num_ranks; ++rank)
        while (advance(rank)) moved = true;
    }
    double end = 0.0;
    for (int rank = 0; rank < schedule_.num_ranks; ++rank) {
      if (at(rank).step <= num_steps(rank)) return kNotYet;
      end = std::max(end, at(rank).now);
    }
    return end;
  }

 private:
  static constexpr double kNotYet = -1.0;
  struct Ends {
    double sent = kNotYet, received = kNotYet;  // when each end is posted
  };
  struct Rank {
    size_t step = 0;            // the next one
    size_t received_ahead = 0;  // the last step whose receives are posted
    bool has_posted = false;    // its sends
    double now = 0.0;           // of the stream of the work
    std::map<Key, std::pair<Link, size_t>> input, gradient;  // the message that a chunk reads
    std::map<Link, size_t> sent, received;                   // messages of each link so far
    std::map<Link, std::deque<size_t>> gradients;            // of them, not given back
  };
  static size_t count(int n) { return static_cast<size_t>(n); }
  Rank& at(int rank) { return ranks_[count(rank)]; }
  size_t num_steps(int rank) const { return schedule_.steps[count(rank)].size(); }
  const std::vector<Transfer>& transfers(int rank, size_t step) const {
    return step < num_steps(rank) ? schedule_.steps[count(rank)][step].transfers
                                  : schedule_.last_transfers[count(rank)];
  }

  double through(const Link& link, size_t number) {
    const std::vector<Ends>& all = messages_[link];
    double time = 0.0;
    for (size_t i = 0; i <= number; ++i) {
      if (i >= all.size() || all[i].sent == kNotYet || all[i].received == kNotYet) return kNotYet;
      time = std::max({time, all[i].sent, all[i].received});
    }
    return time;
  }
  Ends& message(const Link& link, size_t number) {
    std::vector<Ends>& all = messages_[link];
    if (all.size() <= number) all.resize(number + 1);
    return all[number];
  }

  void post_receives(int rank, size_t step) {
    Rank& r = at(rank);
    for (const Transfer& t : transfers(rank, step)) {
      if (t.send) continue;
      const Link link = link_of(schedule_, rank, t);
      const size_t number = r.received[link]++;
      message(link, number).received = r.now;
      (t.what == Transfer::What::kGradient ? r.gradient : r.input)[key(t.chunk)] = {link, number};
    }
  }
  void post_sends(int rank, size_t step) {
    Rank& r = at(rank);
    for (const Transfer& t : transfers(rank, step)) {
      if (!t.send) continue;
      const Link link = link_of(schedule_, rank, t);
      const size_t number = r.sent[link]++;
      message(link, number).sent = r.now;
      if (t.what == Transfer::What::kGradient) r.gradients[link].push_back(number);
    }
  }
  // Goes on with the messages that the work waits for, if all of them are through.
  bool await(Rank& r, const std::vector<std::pair<Link, size_t>>& messages) {
    double now = r.now;
    for (const auto& [link, number] : messages) {
      const double time = through(link, number);
      if (time == kNotYet) return false;
      now = std::max(now, time);
    }
    r.now = now;
    return true;
  }
  bool gives_back(Rank& r) {
    for (auto& [link, numbers] : r.gradients)
      while (numbers.size() > count(live_chunks(schedule_, link.to).activations)) {
        if (!await(r, {{link, numbers.front()}})) return false;
        numbers.pop_front();
      }
    return true;
  }

  bool advance(int rank) {
    Rank& r = at(rank);
    const size_t steps = num_steps(rank);
    if (r.step > steps) return false;
    if (!r.has_posted) {
      if (r.step == 0) post_receives(rank, 0);
      post_sends(rank, r.step);
      r.has_posted = true;
    }
    if (!gives_back(r)) return false;
    if (r.step == steps) {
      ++r.step;
      return true;
    }
    if (r.received_ahead == r.step) post_receives(rank, ++r.received_ahead);
    const ScheduleStep& step = schedule_.steps[count(rank)][r.step];
    std::vector<std::pair<Link, size_t>> reads;
    const auto read = [&](auto& of, const Chunk& chunk) {
      if (const auto found = of.find(key(chunk)); found != of.end()) reads.push_back(found->second);
    };
    if (step.has_forward()) read(r.input, step.forward);
    if (step.has_backward_input()) read(r.gradient, step.backward);
    if (!await(r, reads)) return false;
    r.now += times_.step(rank, step);
    ++r.step;
    r.has_posted = false;
    return true;
  }

  const Schedule& schedule_;
  const plan::StepTimes times_;
  std::vector<Rank> ranks_;
  std::map<Link, std::vector<Ends>> messages_;
};

void check_progress(const Schedule& schedule) {
  EXPECT_NO_THROW(play(schedule, unit_times(3.0)));
  EXPECT_TRUE(goes_on_blocking(schedule));
}

// No message holds up a step that does not read it.
void check_beside(const Schedule& schedule) {
  EXPECT_EQ(Beside(schedule).makespan(), play(schedule, unit_times(3.0)).makespan);
}

void check_links(const Schedule& schedule) {
  std::map<Link, Channel> sent, received;
  for (int rank = 0; rank < schedule.num_ranks; ++rank)
    for (const auto& group : groups_of(schedule, rank))
      for (const Transfer& t : group)
        (t.send ? sent : received)[link_of(schedule, rank, t)].emplace_back(t.what, key(t.chunk));
  EXPECT_EQ(sent, received);
  std::vector<Link> links;
  for (const auto& [link, messages] : sent) links.push_back(link);
  EXPECT_EQ(links_of(schedule), links);
}

void check_memory(const Schedule& schedule) {
  const int P = schedule.num_ranks, V = schedule.num_stages / P;
  for (int rank = 0; rank < P; ++rank) {
    const LiveChunks live = live_chunks(schedule, rank);
    switch (schedule.kind) {
      case ScheduleKind::k1F1B:
      case ScheduleKind::kZb1p:
        EXPECT_LE(live.with_deferred, P) << "rank " << rank;
        break;
      case ScheduleKind::kInterleaved:
        EXPECT_LE(live.activations, std::min(schedule.num_microbatches * V,
                                             2 * (P - 1 - rank) + (V - 1) * P + 1 +
                                                 (schedule.num_microbatches == P ? P * V : 0)));
        break;
      case ScheduleKind::kDualPipe:
        EXPECT_LE(live.with_deferred, P + 1) << "rank " << rank;
        break;
      case ScheduleKind::kDualPipeV:
        EXPECT_LE(live.with_deferred, 2 * P + 1) << "rank " << rank;
        break;
    }
  }
}

class EverySchedule : public ::testing::TestWithParam<ScheduleKind> {
 protected:
  template <class Check>
  void for_each(const Check& check) {
    const std::vector<ScheduleShape> all = shapes(GetParam());
    EXPECT_GE(all.size(), 20u);
    for (const ScheduleShape& shape : all) {
      const Schedule schedule = make_schedule(shape);
      SCOPED_TRACE(name_of(schedule));
      check(schedule);
      if (HasFailure()) return;
    }
  }
};

TEST_P(EverySchedule, RunsEachChunkOnceOnItsRankWeightAfterInputAfterForward) {
  for_each(check_chunks);
}
TEST_P(EverySchedule, MatchesSendsAndReceivesInOrder) { for_each(check_messages); }
TEST_P(EverySchedule, HasItsInputsAndSendsWhatItMade) { for_each(check_inputs); }
TEST_P(EverySchedule, NeverDeadlocks) { for_each(check_progress); }
TEST_P(EverySchedule, LinksCarryTheirMessagesInOrder) { for_each(check_links); }
TEST_P(EverySchedule, MessagesBesideTheWorkHoldNothingUp) { for_each(check_beside); }
// Links are made before the number of micro-batches is known.
TEST_P(EverySchedule, HasTheSameLinksWithEveryNumberOfMicroBatches) {
  for_each([](const Schedule& schedule) {
    const int P = schedule.num_ranks;
    EXPECT_EQ(links_of(schedule), links_of(make(schedule.kind, P, 2 * P, schedule.num_stages / P)));
  });
}
TEST_P(EverySchedule, KeepsItsMemoryBoundOnEveryRank) { for_each(check_memory); }

INSTANTIATE_TEST_SUITE_P(Kinds, EverySchedule, ::testing::ValuesIn(all_schedules()),
                         [](const auto& info) { return std::string(schedule_name(info.param)); });

// Bubble formulas of the DeepSeek-V3 report's Table 2, in units.
TEST(Schedule, HasTheBubbleOfItsFormula) {
  for (int P = 2; P <= 16; P += 2) {
    for (int C : {2 * P, 3 * P}) {
      const Timeline f1b1 = play(make(ScheduleKind::k1F1B, P, C), unit_times(3));
      const Timeline zb1p = play(make(ScheduleKind::kZb1p, P, C), unit_times(3));
      const Timeline dual = play(make(ScheduleKind::kDualPipe, P, C), unit_times(3));
      const Timeline v = play(make(ScheduleKind::kDualPipeV, P / 2, C), unit_times(3));
      for (int rank = 0; rank < P; ++rank) {
        EXPECT_EQ(plan::bubble(f1b1, rank), (P - 1) * 3);
        EXPECT_EQ(plan::bubble(zb1p, rank), (P - 1) * (1 + 2 - 2));
        EXPECT_EQ(plan::bubble(dual, rank), (P / 2 - 1) * (3 + 2 - 3)) << P << " " << C;
        if (rank < P / 2) {
          EXPECT_EQ(plan::bubble(v, rank), (P / 2 - 1) * (3 + 2 - 3));
        }
      }
    }
  }
}

TEST(Schedule, HasThePublishedMakespans) {
  EXPECT_EQ(play(make(ScheduleKind::kDualPipe, 8, 20), unit_times(3)).makespan, 66);
  EXPECT_EQ(play(make(ScheduleKind::kDualPipe, 16, 120), unit_times(3)).makespan, 374);
  EXPECT_EQ(play(make(ScheduleKind::kDualPipe, 4, 8), unit_times(3)).makespan, 26);
  EXPECT_EQ(play(make(ScheduleKind::kDualPipe, 2, 4), unit_times(3)).makespan, 12);
}

TEST(Schedule, DualPipeReachesItsActivationBoundOnEveryRank) {
  for (int P = 2; P <= 16; P += 2) {
    const Schedule s = make(ScheduleKind::kDualPipe, P, 4 * P);
    for (int rank = 0; rank < P; ++rank) EXPECT_EQ(live_chunks(s, rank).activations, P + 1);
  }
}

// "0:F0.0 1:F0.1": start and step; W without its micro-batch, as the trace has it.
std::string trace(const Schedule& s, int rank, bool directions = true) {
  const Timeline t = play(s, unit_times(3));
  std::string text;
  for (size_t i = 0; i < s.steps[static_cast<size_t>(rank)].size(); ++i) {
    const ScheduleStep& step = s.steps[static_cast<size_t>(rank)][i];
    std::string name = step.work == Work::kBackwardWeight ? "W" : to_string(s, step);
    if (!directions) {  // "F0.1&B1.2" as "F1&B2": which micro-batch of which phase
      std::string plain;
      for (size_t c = 0; c < name.size(); ++c)
        if (!(c + 1 < name.size() && name[c + 1] == '.') && name[c] != '.') plain += name[c];
      name = plain;
    }
    text += concat(i ? " " : "", static_cast<int>(t.spans[static_cast<size_t>(rank)][i].start), ":",
                   name);
  }
  return text;
}

TEST(Schedule, DualPipeHasTheGoldenTraces) {
  const Schedule s = make(ScheduleKind::kDualPipe, 4, 8);
  EXPECT_EQ(trace(s, 0),
            "0:F0.0 1:F0.1 2:F0.2 3:F1.0 4:Bi1.0 5:W 6:F1.1 7:F0.3&B1.1 11:F1.2&B0.0 14:B1.2 "
            "17:F1.3&B0.1 20:B1.3 22:Bi0.2 23:W 24:Bi0.3 25:W");
  EXPECT_EQ(trace(s, 1),
            "1:F0.0 2:F1.0 3:F0.1 4:F1.1 5:F0.2 6:B1.0 8:F1.2&B0.0 11:F0.3&B1.1 14:F1.3&B0.1 "
            "17:B1.2 19:B0.2 22:Bi1.3 23:Bi0.3 24:W 25:W");
  EXPECT_EQ(trace(make(ScheduleKind::kDualPipe, 2, 4), 0),
            "0:F0.0 1:F1.0 2:F0.1 3:B1.0 5:F1.1&B0.0 8:B1.1 10:Bi0.1 11:W");
}

// Mirrored ranks run the same program with directions swapped.
TEST(Schedule, DualPipeMirrorsItself) {
  for (int P = 2; P <= 16; P += 2) {
    const Schedule s = make(ScheduleKind::kDualPipe, P, 2 * P + 4);
    for (int rank = 0; rank < P / 2; ++rank) {
      const auto& near = s.steps[static_cast<size_t>(rank)];
      const auto& far = s.steps[static_cast<size_t>(P - 1 - rank)];
      ASSERT_EQ(near.size(), far.size());
      for (size_t i = 0; i < near.size(); ++i) {
        EXPECT_EQ(near[i].work, far[i].work);
        if (near[i].has_forward()) {
          EXPECT_EQ(near[i].forward.direction, 1 - far[i].forward.direction);
          EXPECT_EQ(near[i].forward.microbatch, far[i].forward.microbatch);
        }
      }
    }
  }
}

// DualPipeV on R ranks is ranks 0 to R-1 of DualPipe on 2R: the same work at the same times.
TEST(Schedule, DualPipeVIsHalfOfDualPipe) {
  for (int R : {1, 2, 3, 4, 8}) {
    const int C = 2 * R + 3;
    const Schedule v = make(ScheduleKind::kDualPipeV, R, C);
    const Schedule dual = make(ScheduleKind::kDualPipe, 2 * R, 2 * C);
    for (int rank = 0; rank < R; ++rank) {
      const Timeline tv = play(v, unit_times(3)), td = play(dual, unit_times(3));
      const auto r = static_cast<size_t>(rank);
      ASSERT_EQ(v.steps[r].size(), dual.steps[r].size());
      for (size_t i = 0; i < v.steps[r].size(); ++i) {
        EXPECT_EQ(v.steps[r][i].work, dual.steps[r][i].work);
        EXPECT_EQ(tv.spans[r][i].start, td.spans[r][i].start) << R << " " << rank << " " << i;
      }
    }
  }
}

// Table of the eight steps for 8 ranks and 20 micro-batches: pairs of rank h are 2 n4 + n5, less
// the one that the middle does not overlap.
TEST(Schedule, DualPipeHasThePublishedNumberOfPairs) {
  const Schedule s = make(ScheduleKind::kDualPipe, 8, 20);
  const int expected[] = {2 * 3 + 3, 2 * 4 + 2, 2 * 5 + 1, 2 * 6 - 1};
  for (int rank = 0; rank < 4; ++rank) {
    const auto& steps = s.steps[static_cast<size_t>(rank)];
    EXPECT_EQ(std::count_if(steps.begin(), steps.end(),
                            [](const ScheduleStep& step) { return step.work == Work::kOverlap; }),
              expected[rank]);
  }
}

TEST(Schedule, PlaysMessagesThatTakeTime) {
  plan::StepTimes times = unit_times(3);
  times.message = [](const ScheduleStep&, int, int) { return 0.5; };
  // One micro-batch down and back over 3 boundaries each way.
  EXPECT_EQ(play(make(ScheduleKind::k1F1B, 4, 1), times).makespan, 4 * 3 + 6 * 0.5);
}

TEST(Schedule, SaysWhenItCannotGoOn) {
  Schedule s = make(ScheduleKind::k1F1B, 2, 2);
  std::reverse(s.steps[0].begin(), s.steps[0].end());
  EXPECT_ERROR(play(s, unit_times(3)), "the schedule cannot go on: rank 0 waits at step 0");
}

TEST(Schedule, RefusesWhatDoesNotDivide) {
  using K = ScheduleKind;
  EXPECT_ERROR(make(K::kDualPipe, 7, 20), "dualpipe: pp is 7; it has to be even");
  EXPECT_ERROR(make(K::kDualPipe, 8, 21), "dualpipe: 21 micro-batches; the number has to be even");
  EXPECT_ERROR(make(K::kDualPipe, 8, 14),
               "dualpipe: 14 micro-batches; at least 2 * pp = 16 are needed");
  EXPECT_ERROR(make(K::kDualPipeV, 8, 15),
               "dualpipev: 15 micro-batches; at least 2 * pp = 16 are needed");
  EXPECT_ERROR(make(K::kInterleaved, 4, 6),
               "interleaved: pp = 4 does not divide the 6 micro-batches");
  EXPECT_ERROR(make(K::kInterleaved, 4, 8, 1),
               "interleaved: stages per rank is 1; allowed: 2 to 64");
  EXPECT_ERROR(make(K::k1F1B, 0, 8), "pp is 0; allowed: 1 to 4096");
  EXPECT_ERROR(make(K::k1F1B, 2, 0), "the number of micro-batches is 0; allowed: 1 to 1048576");
  EXPECT_ERROR(parse_schedule("gpipe"),
               "there is no schedule gpipe; choose one of: 1f1b, interleaved, zb1p, dualpipe, "
               "dualpipev");
}

// Times of a rank that never waits but for the schedule: medians, the formulas and the replay.
TEST(MeasuredSchedule, FormulasAndReplayOfUnitTimes) {
  for (const ScheduleKind kind : {ScheduleKind::k1F1B, ScheduleKind::kZb1p, ScheduleKind::kDualPipe,
                                  ScheduleKind::kDualPipeV}) {
    const Schedule schedule = make(kind, 4, 16);
    const Timeline played = play(schedule, unit_times(3.0));
    const plan::ChunkTimes times = plan::chunk_times(schedule, played);
    EXPECT_EQ(times.forward, 1.0);
    EXPECT_EQ(times.backward, 2.0);
    EXPECT_EQ(times.weight, kind == ScheduleKind::k1F1B ? 0.0 : 1.0);
    EXPECT_EQ(times.overlap,
              schedule.num_stages > 4 || kind == ScheduleKind::kDualPipe ? 3.0 : 0.0);
    EXPECT_DOUBLE_EQ(plan::formula_bubble(schedule, times).value(), plan::largest_bubble(played))
        << schedule_name(kind);
    EXPECT_DOUBLE_EQ(plan::replay(schedule, played).makespan, played.makespan);
  }
  const Schedule interleaved = make(ScheduleKind::kInterleaved, 4, 16);
  EXPECT_FALSE(plan::formula_bubble(interleaved, {}).has_value());
}

TEST(MeasuredSchedule, ReplayTakesTheMedianOfEachRankAndStage) {
  const Schedule schedule = make(ScheduleKind::k1F1B, 2, 3);
  // Rank 1 is half as fast; one of its steps was disturbed.
  Timeline measured = play(schedule, {.step =
                                          [](int rank, const ScheduleStep& s) {
                                            return (s.has_forward() ? 1.0 : 2.0) * (rank + 1);
                                          },
                                      .message = {}});
  const double makespan = measured.makespan;
  measured.spans[1][2].finish += 50.0;
  EXPECT_DOUBLE_EQ(plan::replay(schedule, measured).makespan, makespan);
  const std::string picture = plan::draw_measured(schedule, measured, "1f1b").file("1f1b");
  EXPECT_NE(picture.find("1f1b, planned with the times measured"), std::string::npos);
  EXPECT_NE(picture.find("1f1b, measured"), std::string::npos);
  measured.spans[1].pop_back();
  EXPECT_ERROR(plan::replay(schedule, measured),
               "internal error: 5 of the 6 steps of rank 1 were measured");
}

}  // namespace
}  // namespace hadal
