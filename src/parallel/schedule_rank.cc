// Programs of the ranks: 1F1B, interleaved, ZB1P, DualPipe, DualPipeV.
//
// DualPipe's eight steps and the order of its messages are those of the public repository
// deepseek-ai/DualPipe and the DeepSeek-V3 report, 3.2.1.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/schedule_rank.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "core/check.h"

namespace hadal::detail {
namespace {

constexpr int kNobody = -1;

// One model chunk of a rank: where its inputs come from and how far its work has gone.
struct Lane {
  int direction = 0, stage = 0;
  int upstream = kNobody, downstream = kNobody;  // ranks; kNobody: an end, or this rank itself
  int forwards = 0, backwards = 0;               // next micro-batches
  int recv_f = 0, sent_f = 0, recv_b = 0, sent_b = 0;
};

class Builder {
 public:
  Builder(const Schedule& schedule, int rank) : schedule_(schedule), rank_(rank) {}

  int add_lane(int direction, int stage) {
    Lane lane{.direction = direction, .stage = stage};
    if (stage > 0) lane.upstream = peer(direction, stage - 1);
    if (stage + 1 < schedule_.num_stages) lane.downstream = peer(direction, stage + 1);
    lanes_.push_back(lane);
    return static_cast<int>(lanes_.size()) - 1;
  }

  void recv_forward(int l) {
    Lane& lane = at(l);
    post(false, lane.upstream, Transfer::What::kActivation, lane, lane.stage, lane.recv_f++);
  }
  void send_forward(int l) {
    Lane& lane = at(l);
    post(true, lane.downstream, Transfer::What::kActivation, lane, lane.stage + 1, lane.sent_f++);
  }
  void recv_backward(int l) {
    Lane& lane = at(l);
    post(false, lane.downstream, Transfer::What::kGradient, lane, lane.stage, lane.recv_b++);
  }
  void send_backward(int l) {
    Lane& lane = at(l);
    post(true, lane.upstream, Transfer::What::kGradient, lane, lane.stage - 1, lane.sent_b++);
  }

  void forward(int l) { add(Work::kForward, next_forward(l), {}); }
  void backward(int l) { add(Work::kBackward, {}, next_backward(l)); }
  void backward_input(int l) {
    const Chunk chunk = next_backward(l);
    deferred_.push_back(chunk);
    add(Work::kBackwardInput, {}, chunk);
  }
  void backward_weight() {
    HADAL_CHECK(!deferred_.empty(), "internal error: no deferred weight half");
    add(Work::kBackwardWeight, {}, deferred_.front());
    deferred_.pop_front();
  }
  void overlap(int f, int b) {
    const Chunk forward = next_forward(f);
    add(Work::kOverlap, forward, next_backward(b));
  }
  int num_deferred() const { return static_cast<int>(deferred_.size()); }

  RankProgram finish() && {
    HADAL_CHECK(deferred_.empty(), "internal error: weight halves are left");
    program_.last_transfers = std::move(pending_);
    return std::move(program_);
  }

 private:
  Lane& at(int l) { return lanes_[static_cast<size_t>(l)]; }
  int peer(int direction, int stage) const {
    const int rank = schedule_.rank_of(direction, stage);
    return rank == rank_ ? kNobody : rank;
  }
  Chunk next_forward(int l) {
    Lane& lane = at(l);
    return {.direction = lane.direction, .stage = lane.stage, .microbatch = lane.forwards++};
  }
  Chunk next_backward(int l) {
    Lane& lane = at(l);
    return {.direction = lane.direction, .stage = lane.stage, .microbatch = lane.backwards++};
  }
  void post(bool send, int peer, Transfer::What what, const Lane& lane, int stage, int microbatch) {
    if (peer == kNobody) return;
    pending_.push_back(
        {.send = send,
         .peer = peer,
         .what = what,
         .chunk = {.direction = lane.direction, .stage = stage, .microbatch = microbatch}});
  }
  void add(Work work, Chunk forward, Chunk backward) {
    program_.steps.push_back({.work = work,
                              .forward = forward,
                              .backward = backward,
                              .transfers = std::exchange(pending_, {})});
  }

  const Schedule& schedule_;
  const int rank_;
  std::vector<Lane> lanes_;
  std::vector<Transfer> pending_;
  std::deque<Chunk> deferred_;
  RankProgram program_;
};

// A chunk with its messages: what most schedules are made of.
void plain_forward(Builder& b, int lane) {
  b.recv_forward(lane);
  b.forward(lane);
  b.send_forward(lane);
}
void plain_backward(Builder& b, int lane) {
  b.recv_backward(lane);
  b.backward(lane);
  b.send_backward(lane);
}
void plain_backward_input(Builder& b, int lane) {
  b.recv_backward(lane);
  b.backward_input(lane);
  b.send_backward(lane);
}

RankProgram one_f_one_b(const Schedule& s, int rank) {
  Builder b(s, rank);
  const int lane = b.add_lane(0, rank), C = s.num_microbatches;
  const int warm_up = std::min(C, s.num_ranks - 1 - rank);
  for (int i = 0; i < warm_up; ++i) plain_forward(b, lane);
  for (int i = warm_up; i < C; ++i) {
    plain_forward(b, lane);
    plain_backward(b, lane);
  }
  for (int i = 0; i < warm_up; ++i) plain_backward(b, lane);
  return std::move(b).finish();
}

// Rank r lags r weight halves behind, so that gradients leave the last rank early and every rank
// has weight halves left to fill the end: activations stay at P micro-batches on each.
RankProgram zb1p(const Schedule& s, int rank) {
  Builder b(s, rank);
  const int lane = b.add_lane(0, rank), C = s.num_microbatches;
  const int warm_up = std::min(C, s.num_ranks - 1 - rank);
  const auto backward = [&] {
    plain_backward_input(b, lane);
    if (b.num_deferred() > rank) b.backward_weight();
  };
  for (int i = 0; i < warm_up; ++i) plain_forward(b, lane);
  for (int i = warm_up; i < C; ++i) {
    plain_forward(b, lane);
    backward();
  }
  for (int i = 0; i < warm_up; ++i) backward();
  while (b.num_deferred() > 0) b.backward_weight();
  return std::move(b).finish();
}

// Megatron-LM's interleaved 1F1B: rank r holds stages r, r + P, r + 2P, ...
RankProgram interleaved(const Schedule& s, int rank) {
  Builder b(s, rank);
  const int P = s.num_ranks, V = s.num_stages / P, total = s.num_microbatches * V;
  for (int v = 0; v < V; ++v) b.add_lane(0, rank + v * P);
  const auto lane_of = [&](int i) { return i % (P * V) / P; };
  const int warm_up =
      std::min(total, s.num_microbatches == P ? total : 2 * (P - 1 - rank) + (V - 1) * P);
  for (int i = 0; i < warm_up; ++i) plain_forward(b, lane_of(i));
  for (int i = 0; i < total; ++i) {
    if (warm_up + i < total) plain_forward(b, lane_of(warm_up + i));
    plain_backward(b, V - 1 - lane_of(i));
  }
  return std::move(b).finish();
}

// The eight steps with n of each; h: distance from the nearest end, H: half the depth of the
// pipeline. Lanes: phase 0 starts nearer to this rank.
struct DualShape {
  int H, h;
  int overlaps;  // of step 4
  bool turns;    // innermost: a micro-batch comes back from its neighbour (DualPipeV: itself) next
};

void dual_step_2(Builder& b, const DualShape& d) {
  b.recv_forward(0);
  for (int i = 0; i <= d.h; ++i) {
    const bool last = i == d.h;
    b.forward(0);
    if (d.turns) b.send_forward(0);
    b.recv_forward(0);
    b.recv_forward(1);
    b.forward(1);
    if (!d.turns || !last) b.send_forward(1);
    if (!d.turns) b.send_forward(0);
  }
}

void pair(Builder& b, int f, int bw) {
  b.recv_backward(bw);
  b.overlap(f, bw);
  b.send_forward(f);
  b.send_backward(bw);
}

void dual_step_4(Builder& b, const DualShape& d) {
  for (int i = 0; i < d.overlaps; ++i) {
    if (i > 0) {
      b.recv_forward(0);
      pair(b, 0, 1);
    } else if (d.turns) {
      // Not overlapped, which shortens the bubble.
      b.forward(0);
      b.send_forward(1);
      b.recv_backward(1);
      b.backward(1);
      b.send_forward(0);
      b.send_backward(1);
    } else {
      pair(b, 0, 1);
    }
    b.recv_forward(1);
    pair(b, 1, 0);
  }
}

// Weight halves are deferred from the middle of this step on.
void dual_step_6(Builder& b, const DualShape& d) {
  const int n = d.h + 1;
  bool zero_bubble = false;
  const auto backward = [&](int lane) {
    zero_bubble ? plain_backward_input(b, lane) : plain_backward(b, lane);
  };
  for (int i = 0; i < n; ++i) {
    if (i == n / 2 && d.h % 2 == 1) zero_bubble = true;
    backward(1);
    if (i == n / 2 && d.h % 2 == 0) zero_bubble = true;
    backward(0);
  }
}

void dual_steps(Builder& b, const DualShape& d) {
  const int inner = d.H - d.h - 1;
  for (int i = 0; i < 2 * inner; ++i) plain_forward(b, 0);  // 1
  dual_step_2(b, d);                                        // 2
  for (int i = 0; i < inner; ++i) {                         // 3
    plain_backward_input(b, 1);
    b.recv_forward(1);
    b.backward_weight();
    b.forward(1);
    b.send_forward(1);
  }
  dual_step_4(b, d);                 // 4
  for (int i = 0; i < inner; ++i) {  // 5
    plain_backward(b, 1);
    b.recv_forward(1);
    pair(b, 1, 0);
  }
  dual_step_6(b, d);                 // 6
  for (int i = 0; i < inner; ++i) {  // 7
    b.backward_weight();
    plain_backward_input(b, 0);
  }
  for (int i = 0; i <= d.h; ++i) b.backward_weight();  // 8
}

RankProgram dualpipe(const Schedule& s, int rank) {
  Builder b(s, rank);
  const int P = s.num_ranks, H = P / 2, second_half = rank >= H ? 1 : 0;
  for (int phase = 0; phase < 2; ++phase) {
    const int direction = phase ^ second_half;
    b.add_lane(direction, direction == 0 ? rank : P - 1 - rank);
  }
  const int h = std::min(rank, P - 1 - rank);
  dual_steps(b,
             {.H = H, .h = h, .overlaps = s.num_microbatches / 2 - P + h + 1, .turns = h == H - 1});
  return std::move(b).finish();
}

RankProgram dualpipev(const Schedule& s, int rank) {
  Builder b(s, rank);
  const int R = s.num_ranks;
  b.add_lane(0, rank);
  b.add_lane(0, 2 * R - 1 - rank);
  dual_steps(b, {.H = R,
                 .h = rank,
                 .overlaps = s.num_microbatches - 2 * R + rank + 1,
                 .turns = rank == R - 1});
  return std::move(b).finish();
}

}  // namespace

RankProgram make_program(const Schedule& schedule, int rank) {
  switch (schedule.kind) {
    case ScheduleKind::k1F1B:
      return one_f_one_b(schedule, rank);
    case ScheduleKind::kInterleaved:
      return interleaved(schedule, rank);
    case ScheduleKind::kZb1p:
      return zb1p(schedule, rank);
    case ScheduleKind::kDualPipe:
      return dualpipe(schedule, rank);
    case ScheduleKind::kDualPipeV:
      return dualpipev(schedule, rank);
  }
  HADAL_UNREACHABLE("schedule kind");
}

}  // namespace hadal::detail
