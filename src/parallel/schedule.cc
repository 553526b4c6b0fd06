// Schedules: names, checks, ownership of stages, live chunks. The programs of the ranks are in
// schedule_rank.cc.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/schedule.h"

#include <algorithm>
#include <set>

#include "core/check.h"
#include "parallel/schedule_groups.h"
#include "parallel/schedule_rank.h"

namespace hadal {
namespace {

struct Named {
  ScheduleKind kind;
  const char* name;
};
constexpr Named kNames[] = {{ScheduleKind::k1F1B, "1f1b"},
                            {ScheduleKind::kInterleaved, "interleaved"},
                            {ScheduleKind::kZb1p, "zb1p"},
                            {ScheduleKind::kDualPipe, "dualpipe"},
                            {ScheduleKind::kDualPipeV, "dualpipev"}};

constexpr int kMaxRanks = 4096, kMaxMicrobatches = 1 << 20;

// What is wrong with a shape; empty if nothing is.
std::string fault_of(const ScheduleShape& s) {
  const std::string name = schedule_name(s.kind);
  const int P = s.num_ranks, C = s.num_microbatches;
  if (P < 1 || P > kMaxRanks) return concat("pp is ", P, "; allowed: 1 to ", kMaxRanks);
  if (C < 1 || C > kMaxMicrobatches)
    return concat("the number of micro-batches is ", C, "; allowed: 1 to ", kMaxMicrobatches);
  switch (s.kind) {
    case ScheduleKind::k1F1B:
    case ScheduleKind::kZb1p:
      return "";
    case ScheduleKind::kInterleaved:
      if (s.stages_per_rank < 2 || s.stages_per_rank > 64)
        return concat(name, ": stages per rank is ", s.stages_per_rank, "; allowed: 2 to 64");
      if (C % P != 0)
        return concat(name, ": pp = ", P, " does not divide the ", C, " micro-batches");
      return "";
    case ScheduleKind::kDualPipe:
      if (P % 2 != 0) return concat(name, ": pp is ", P, "; it has to be even");
      if (C % 2 != 0) return concat(name, ": ", C, " micro-batches; the number has to be even");
      [[fallthrough]];
    case ScheduleKind::kDualPipeV:
      if (C < 2 * P)
        return concat(name, ": ", C, " micro-batches; at least 2 * pp = ", 2 * P, " are needed");
      return "";
  }
  HADAL_UNREACHABLE("schedule kind");
}

}  // namespace

const char* schedule_name(ScheduleKind kind) {
  for (const Named& n : kNames)
    if (n.kind == kind) return n.name;
  HADAL_UNREACHABLE("schedule kind");
}

ScheduleKind parse_schedule(const std::string& name) {
  std::string list;
  for (const Named& n : kNames) {
    if (name == n.name) return n.kind;
    list += concat(list.empty() ? "" : ", ", n.name);
  }
  HADAL_FAIL("there is no schedule ", name, "; choose one of: ", list);
}

std::vector<ScheduleKind> all_schedules() {
  std::vector<ScheduleKind> kinds;
  for (const Named& n : kNames) kinds.push_back(n.kind);
  return kinds;
}

int Schedule::rank_of(int direction, int stage) const {
  switch (kind) {
    case ScheduleKind::k1F1B:
    case ScheduleKind::kZb1p:
      return stage;
    case ScheduleKind::kInterleaved:
      return stage % num_ranks;
    case ScheduleKind::kDualPipe:
      return direction == 0 ? stage : num_ranks - 1 - stage;
    case ScheduleKind::kDualPipeV:
      return stage < num_ranks ? stage : 2 * num_ranks - 1 - stage;
  }
  HADAL_UNREACHABLE("schedule kind");
}

int stages_per_rank(const ScheduleShape& s) {
  switch (s.kind) {
    case ScheduleKind::k1F1B:
    case ScheduleKind::kZb1p:
      return 1;
    case ScheduleKind::kInterleaved:
      return s.stages_per_rank;
    case ScheduleKind::kDualPipe:
    case ScheduleKind::kDualPipeV:
      return 2;
  }
  HADAL_UNREACHABLE("schedule kind");
}

void check_schedule(const ScheduleShape& shape) {
  const std::string fault = fault_of(shape);
  HADAL_CHECK(fault.empty(), fault);
}

bool schedule_fits(const ScheduleShape& shape) { return fault_of(shape).empty(); }

Schedule make_schedule(const ScheduleShape& shape) {
  check_schedule(shape);
  Schedule s;
  s.kind = shape.kind;
  s.num_ranks = shape.num_ranks;
  s.num_stages = shape.kind == ScheduleKind::kDualPipe ? shape.num_ranks
                                                       : shape.num_ranks * stages_per_rank(shape);
  s.num_microbatches = shape.num_microbatches;
  for (int rank = 0; rank < s.num_ranks; ++rank) {
    detail::RankProgram program = detail::make_program(s, rank);
    s.steps.push_back(std::move(program.steps));
    s.last_transfers.push_back(std::move(program.last_transfers));
  }
  detail::let_groups_meet(s);
  return s;
}

Link link_of(const Schedule& s, int rank, const Transfer& t) {
  return {.from = t.send ? rank : t.peer,
          .to = t.send ? t.peer : rank,
          .gradients = s.kind == ScheduleKind::kInterleaved && t.what == Transfer::What::kGradient};
}

std::vector<Link> links_of(const Schedule& s) {
  std::set<Link> links;
  for (int rank = 0; rank < s.num_ranks; ++rank) {
    const auto at = static_cast<size_t>(rank);
    const auto add = [&](const std::vector<Transfer>& transfers) {
      for (const Transfer& t : transfers) links.insert(link_of(s, rank, t));
    };
    for (const ScheduleStep& step : s.steps[at]) add(step.transfers);
    add(s.last_transfers[at]);
  }
  return {links.begin(), links.end()};
}

LiveChunks live_chunks(const Schedule& schedule, int rank) {
  LiveChunks most;
  int live = 0, deferred = 0;
  for (const ScheduleStep& step : schedule.steps[static_cast<size_t>(rank)]) {
    if (step.has_forward()) ++live;
    if (step.work == Work::kBackwardInput) ++deferred, --live;
    most.activations = std::max(most.activations, live);
    most.with_deferred = std::max(most.with_deferred, live + deferred);
    if (step.has_backward()) --live;
    if (step.work == Work::kBackwardWeight) --deferred;
  }
  return most;
}

std::string to_string(const Schedule& schedule, const ScheduleStep& step) {
  const bool show_stage =
      schedule.num_directions() == 1 && schedule.num_stages > schedule.num_ranks;
  const auto chunk = [&](const char* work, const Chunk& c) {
    return show_stage ? concat(work, c.microbatch, ":", c.stage)
                      : concat(work, c.direction, ".", c.microbatch);
  };
  switch (step.work) {
    case Work::kForward:
      return chunk("F", step.forward);
    case Work::kBackwardInput:
      return chunk("Bi", step.backward);
    case Work::kBackwardWeight:
      return chunk("W", step.backward);
    case Work::kBackward:
      return chunk("B", step.backward);
    case Work::kOverlap:
      return chunk("F", step.forward) + "&" + chunk("B", step.backward);
  }
  HADAL_UNREACHABLE("work");
}

}  // namespace hadal
