// One training step, planned: memory of each rank, times, throughput and cost.
//
// The schedule is played event by event with the times of chunks; the parts of the step are the
// rows of the ISCA'25 paper's Table 4, as means over pipeline ranks:
//   1F, 1B, 1W  forwards, backwards (full ones whole, split ones their input half) and deferred
//               weight halves that run alone
//   1F1B        overlapped pairs; in schedules without them, forwards and backwards in turn count
//               as 1F and 1B
//   bubble      what is left of the makespan
//   optimizer   gradient reduce-scatter, norm, update, parameter all-gather, exposed
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "plan/chunk.h"
#include "plan/memory.h"
#include "plan/timeline.h"

namespace hadal::plan {

struct StepParts {
  double forward = 0.0, backward = 0.0, weight = 0.0, overlapped = 0.0, bubble = 0.0;
};

struct TrainResult {
  StepParts mean;                 // over pipeline ranks
  std::vector<StepParts> ranks;   // [pp]
  double pipeline_seconds = 0.0;  // makespan
  double optimizer_seconds = 0.0;
  double step_seconds = 0.0;
  double bubble_share = 0.0;       // of the step
  std::vector<RankMemory> memory;  // [pp]
  double largest_memory = 0.0;     // device bytes of the fullest rank
  double memory_limit = 0.0;       // of a device, less what is reserved
  bool fits = false;
  double host_bytes_per_node = 0.0;

  double tokens_per_second = 0.0, tokens_per_second_per_device = 0.0, tokens_per_day = 0.0;
  double flops_per_token_causal = 0.0, flops_per_token_noncausal = 0.0;
  double tflops_causal = 0.0, tflops_noncausal = 0.0;          // per device, in 1e12
  double mfu_causal = 0.0, mfu_noncausal = 0.0;                // of the BF16 peak
  double total_days = 0.0, device_hours = 0.0, dollars = 0.0;  // for plan.tokens; 0: no budget

  Schedule schedule;
  Timeline timeline;
  Basis basis;
  std::vector<StageRange> stages;
};

// FLOP of one trained token, no MTP, no recomputation: 6 x matrix parameters that it uses (head
// counted, embedding and router not), and core attention forward and backward over a sequence.
// Non-causal counts the whole square of scores, causal its half. This is the count that gives the
// ISCA'25 paper's 385 and 432 TFLOPS for its 19.926 s.
double flops_per_token(const Config& config, const ParamCounts& counts, int64_t sequence_length,
                       bool is_causal);

// Throws an Error if the plan cannot be: a mesh that does not divide, a missing rate. A plan that
// does not fit in memory is a result with fits = false.
TrainResult plan_step(const TrainPlan& plan);

// The same for searches: no timeline, and no times at all where it does not fit. REQUIRES:
// check_train_plan() passed, and `schedule` is that of plan.schedule_shape().
TrainResult plan_totals(const TrainPlan& plan, const Schedule& schedule, const ParamSums& sums);

}  // namespace hadal::plan
