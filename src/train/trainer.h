// Trainer: a whole run: data, steps, evaluations, checkpoints, and a clean stop.
//
// Order of a step: micro-batches forward and backward, the guard's verdict, clip, AdamW, bias
// update, metrics; then, when due, a held-out evaluation and a checkpoint. A run that is killed
// goes on from its last checkpoint with the same bits as if it had never stopped.
//
// In a team every rank runs the same loop and draws the same sequences; the first rank alone prints
// and writes metrics, and a stop or a report that one rank was asked for is everybody's.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "train/learner.h"
#include "train/run_config.h"

namespace hadal::train {

struct TrainOptions {
  bool resume = false;                       // go on from the newest checkpoint
  Team* team = nullptr;                      // this rank among others; none: alone
  std::function<bool()> should_stop = {};    // asked after each step: checkpoint and return
  std::function<bool()> should_report = {};  // asked after each step: write the report page
};

struct TrainReport {
  int64_t steps = 0;
  bool finished = false;       // false: stopped early by should_stop
  double held_out_loss = 0.0;  // mean per target token
  double held_out_bits_per_byte = 0.0;
  double max_violation = 0.0;  // on the held-out text
  double seconds = 0.0;        // of this process's steps and evaluations
};

TrainReport run_training(Context& ctx, const RunConfig& run, const TrainOptions& options);

// The recipe of the step from `before` to `after`.
Recipe recipe_of(const TrainConfig& config, Moment before, Moment after);

}  // namespace hadal::train
