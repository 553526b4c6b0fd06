// Metrics: what a run reports: metrics.jsonl (one line a step or evaluation) and a progress bar.
//
// Every value in a line but those under "time" is a function of config, data and step alone: a
// resumed run writes the same lines. On resume, lines after the checkpoint's step are cut off.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "core/timer.h"
#include "io/json.h"
#include "train/learner.h"

namespace hadal::train {

class Metrics {
 public:
  // Opens PATH for appending; keeps lines of steps up to last_step and cuts off the rest.
  Metrics(std::string path, int64_t last_step, int64_t num_steps);
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  ~Metrics();

  // tokens: of this step; bytes_per_token turns losses into bits per byte.
  void step(int64_t step, const StepResult& result, const Recipe& recipe, int64_t tokens,
            double bytes_per_token);
  void evaluation(int64_t step, double loss, double bits_per_byte, const std::vector<double>& mtp,
                  double max_violation);
  // Ends the progress bar's line, so that other text can follow.
  void end_line();

 private:
  void write(const io::Json& line);
  void show(int64_t step, const StepResult& result, double bits_per_byte, double tokens_per_second);

  std::string path_;
  int fd_;
  int64_t first_step_, num_steps_;
  bool terminal_, line_open_ = false;
  Timer run_, since_last_;
  double average_step_seconds_ = 0.0;
  double last_shown_ = -1e9;
};

}  // namespace hadal::train
