// Schedules of a pipeline as data: what each rank computes and which messages it posts, in order.
//
//   P ranks   S stages of the model   C micro-batches
//
// A kind says which rank holds which stage and in which order work runs; nothing here knows times.
// Directions exist in DualPipe alone: micro-batches of direction 1 enter at the last rank, and each
// stage is held twice. Everywhere else direction is 0.
//
// Bubble per rank, with F a forward chunk, B a full backward chunk, W its weight half, F&B an
// overlapped pair (DeepSeek-V3 report, Table 2):
//   1F1B      (P-1)(F+B)          activations of P micro-batches at most
//   ZB1P      (P-1)(F+B-2W)       P
//   DualPipe  (P/2-1)(F&B+B-3W)   P+1, parameters twice
//   DualPipeV the same with 2P for P: half the ranks for the same number of stages
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

namespace hadal {

enum class ScheduleKind : uint8_t { k1F1B, kInterleaved, kZb1p, kDualPipe, kDualPipeV };

// "1f1b", "interleaved", "zb1p", "dualpipe", "dualpipev"
const char* schedule_name(ScheduleKind kind);
ScheduleKind parse_schedule(const std::string& name);
std::vector<ScheduleKind> all_schedules();

enum class Work : uint8_t {
  kForward,
  kBackwardInput,   // gradients of inputs alone; the weight half is deferred
  kBackwardWeight,  // a deferred weight half
  kBackward,        // both halves
  kOverlap,         // a forward and a full backward of other micro-batches, overlapped
};

// One chunk: a micro-batch in one stage.
struct Chunk {
  int direction = 0;
  int stage = 0;
  int microbatch = 0;  // of its direction
  bool operator==(const Chunk&) const = default;
};

// A message between pipeline neighbours. `chunk` is the one that consumes it: its forward input
// (activation) or its output's gradient.
struct Transfer {
  enum class What : uint8_t { kActivation, kGradient };
  bool send = false;
  int peer = 0;
  What what = What::kActivation;
  Chunk chunk;
};

// Messages from one rank to another, in the order in which both post them. Where activations and
// gradients are posted in orders that differ (interleaved on two ranks), each have a link.
struct Link {
  int from = 0, to = 0;
  bool gradients = false;
  auto operator<=>(const Link&) const = default;
};

struct ScheduleStep {
  Work work = Work::kForward;
  Chunk forward;   // kForward, kOverlap
  Chunk backward;  // all but kForward
  // Posted as one group before the computation of this step: outputs of earlier steps to send and
  // inputs to receive. Between two ranks, sends and receives are in the same order.
  std::vector<Transfer> transfers;

  bool has_forward() const { return work == Work::kForward || work == Work::kOverlap; }
  bool has_backward() const { return work == Work::kBackward || work == Work::kOverlap; }
  bool has_backward_input() const { return has_backward() || work == Work::kBackwardInput; }
  bool has_backward_weight() const { return has_backward() || work == Work::kBackwardWeight; }
};

struct Schedule {
  ScheduleKind kind = ScheduleKind::k1F1B;
  int num_ranks = 1;
  int num_stages = 1;
  int num_microbatches = 1;                      // of both directions together
  std::vector<std::vector<ScheduleStep>> steps;  // [P]
  // Posted after the last step.
  std::vector<std::vector<Transfer>> last_transfers;  // [P]

  int num_directions() const { return kind == ScheduleKind::kDualPipe ? 2 : 1; }
  int rank_of(int direction, int stage) const;
};

// That of a message which `rank` posts.
Link link_of(const Schedule& schedule, int rank, const Transfer& transfer);
std::vector<Link> links_of(const Schedule& schedule);  // all, ascending

struct ScheduleShape {
  ScheduleKind kind = ScheduleKind::k1F1B;
  int num_ranks = 1;
  int num_microbatches = 1;
  int stages_per_rank = 2;  // of interleaved alone; the others fix it
};

// Stages that one rank holds: 1, 2, or shape.stages_per_rank.
int stages_per_rank(const ScheduleShape& shape);
// Throws an Error that names the number that is wrong: odd ranks, too few micro-batches, ...
void check_schedule(const ScheduleShape& shape);
// The same as a question, for searches.
bool schedule_fits(const ScheduleShape& shape);
Schedule make_schedule(const ScheduleShape& shape);

// Most micro-batches whose activations one rank holds at once, over its stages; a pair counts its
// forward before its backward frees. with_deferred: those that wait for their weight half as well.
struct LiveChunks {
  int activations = 0;
  int with_deferred = 0;
};
LiveChunks live_chunks(const Schedule& schedule, int rank);

// "F0.3", "Bi1.0", "W1.0", "B0.2", "F0.3&B1.1": direction and micro-batch. Where a rank holds
// several stages of one direction, "F3:0": micro-batch and stage.
std::string to_string(const Schedule& schedule, const ScheduleStep& step);

}  // namespace hadal
