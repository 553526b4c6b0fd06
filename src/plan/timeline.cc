// Timeline: playing a schedule.
// SPDX-License-Identifier: Apache-2.0
#include "plan/timeline.h"

#include <algorithm>

#include "core/check.h"

namespace hadal::plan {
namespace {

constexpr double kNotYet = -1.0;

// When each chunk's output, or its gradient of inputs, reached the next stage that uses it.
class Ready {
 public:
  explicit Ready(const Schedule& s)
      : stages_(s.num_stages),
        microbatches_(s.num_microbatches),
        at_(static_cast<size_t>(s.num_directions() * stages_ * microbatches_), kNotYet) {}
  double& of(const Chunk& c) {
    return at_[static_cast<size_t>((c.direction * stages_ + c.stage) * microbatches_ +
                                   c.microbatch)];
  }

 private:
  int stages_, microbatches_;
  std::vector<double> at_;
};

class Player {
 public:
  Player(const Schedule& schedule, const StepTimes& times)
      : schedule_(schedule), times_(times), forward_(schedule), backward_(schedule) {}

  Timeline play() {
    const auto num_ranks = static_cast<size_t>(schedule_.num_ranks);
    timeline_.spans.resize(num_ranks);
    std::vector<double> free(num_ranks, 0.0);
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t rank = 0; rank < num_ranks; ++rank)
        while (advance(rank, free[rank])) moved = true;
    }
    for (size_t rank = 0; rank < num_ranks; ++rank)
      HADAL_CHECK(timeline_.spans[rank].size() == schedule_.steps[rank].size(),
                  "the schedule cannot go on: rank ", rank, " waits at step ",
                  timeline_.spans[rank].size());
    timeline_.makespan = *std::max_element(free.begin(), free.end());
    return std::move(timeline_);
  }

 private:
  // When the input that the chunk next door made arrived; kNotYet if it did not.
  double arrival(Ready& ready, Chunk chunk, int from_stage) const {
    if (from_stage < 0 || from_stage >= schedule_.num_stages) return 0.0;
    chunk.stage = from_stage;
    return ready.of(chunk);
  }

  double message_time(const ScheduleStep& maker, const Chunk& chunk, int to_stage) const {
    if (!times_.message || to_stage < 0 || to_stage >= schedule_.num_stages) return 0.0;
    const int from = schedule_.rank_of(chunk.direction, chunk.stage),
              to = schedule_.rank_of(chunk.direction, to_stage);
    return from == to ? 0.0 : times_.message(maker, from, to);
  }

  bool advance(size_t rank, double& free) {
    auto& spans = timeline_.spans[rank];
    if (spans.size() == schedule_.steps[rank].size()) return false;
    const ScheduleStep& step = schedule_.steps[rank][spans.size()];
    double start = free;
    if (step.has_forward()) {
      const double at = arrival(forward_, step.forward, step.forward.stage - 1);
      if (at == kNotYet) return false;
      start = std::max(start, at);
    }
    if (step.has_backward_input()) {
      const double at = arrival(backward_, step.backward, step.backward.stage + 1);
      if (at == kNotYet || forward_.of(step.backward) == kNotYet) return false;
      start = std::max(start, at);
    }
    free = start + times_.step(static_cast<int>(rank), step);
    if (step.has_forward())
      forward_.of(step.forward) = free + message_time(step, step.forward, step.forward.stage + 1);
    if (step.has_backward_input())
      backward_.of(step.backward) =
          free + message_time(step, step.backward, step.backward.stage - 1);
    spans.push_back({.start = start, .finish = free});
    return true;
  }

  const Schedule& schedule_;
  const StepTimes& times_;
  Ready forward_, backward_;
  Timeline timeline_;
};

}  // namespace

double Timeline::busy(int rank) const {
  double sum = 0.0;
  for (const Span& s : spans[static_cast<size_t>(rank)]) sum += s.finish - s.start;
  return sum;
}

StepTimes unit_times(double overlap) {
  return {.step =
              [overlap](int, const ScheduleStep& step) {
                switch (step.work) {
                  case Work::kForward:
                  case Work::kBackwardInput:
                  case Work::kBackwardWeight:
                    return 1.0;
                  case Work::kBackward:
                    return 2.0;
                  case Work::kOverlap:
                    return overlap;
                }
                HADAL_UNREACHABLE("work");
              },
          .message = {}};
}

Timeline play(const Schedule& schedule, const StepTimes& times) {
  return Player(schedule, times).play();
}

}  // namespace hadal::plan
