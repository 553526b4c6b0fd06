// Metrics: what a run reports: metrics.jsonl (one line a step or evaluation), the same numbers as a
// TensorBoard event file, and a progress bar.
//
// Every value in a line but those under "time" is a function of config, data and step alone: a
// resumed run writes the same lines. On resume, lines after the checkpoint's step are cut off.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "core/timer.h"
#include "io/json.h"
#include "train/learner.h"
#include "train/schedule.h"
#include "train/tensorboard.h"

namespace hadal::train {

class Metrics {
 public:
  // Opens OUTPUT/metrics.jsonl for appending; keeps lines of steps up to last_step and cuts off the
  // rest. OUTPUT/tensorboard gets an event file of the same numbers.
  Metrics(const std::string& output, int64_t last_step);
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  ~Metrics();

  // A step that ended at `done`, the share `progress` of the run.
  struct StepLine {
    Moment done;
    double progress = 0.0;
    int64_t tokens = 0, sequences = 0;  // of this step
    double bytes_per_target = 1.0;      // turns losses into bits per byte
    bool skipped = false;               // by the guard
    double checkpoint_seconds = 0.0;    // waited for the checkpoint after the step before
  };
  void step(const StepLine& line, const StepResult& result, const Recipe& recipe);
  void evaluation(int64_t step, double loss, double bits_per_byte, const std::vector<double>& mtp,
                  double max_violation);
  // The run went back from `from` to the checkpoint of `to`: cuts off the lines between and says
  // so.
  void rolled_back(int64_t from, int64_t to);
  // Ends the progress bar's line, so that other text can follow.
  void end_line();

 private:
  enum class Events : uint8_t { kCut, kKeep };
  void open(int64_t last_step, Events events);
  void write(const io::Json& line);
  void show(const StepLine& line, const StepResult& result, double bits_per_byte);

  std::string path_, events_path_;
  int fd_ = -1;
  std::unique_ptr<EventWriter> events_;
  bool terminal_, line_open_ = false;
  Timer run_, since_last_;
  double average_step_seconds_ = 0.0;
  double first_progress_ = -1.0;
  double last_shown_ = -1e9;
};

}  // namespace hadal::train
