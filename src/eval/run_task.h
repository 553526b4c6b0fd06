// Runs a task: likelihoods of the choices, or a generated answer and whether it matches.
//
// One line of JSON an item goes to the output file as soon as it is known (eval/result_file.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "eval/answer.h"
#include "eval/task.h"
#include "serve/prefix_runner.h"

namespace hadal::eval {

struct ItemResult {
  bool is_choice = false;
  bool right = false;            // the choice with the greatest likelihood, or the answer, is right
  bool right_by_length = false;  // choices only: likelihood by character
  std::vector<double> log_probs;  // of each choice
  std::string output;             // generated
  std::string answer;             // what of it is the answer
};

struct TaskScore {
  int64_t num_choice = 0, num_generated = 0;
  int64_t right = 0, right_by_length = 0, matches = 0;
  double acc() const { return share(right, num_choice); }
  double acc_norm() const { return share(right_by_length, num_choice); }
  double exact_match() const { return share(matches, num_generated); }
  // Of such a share: that of a mean of n draws of 0 and 1; none below two.
  static std::optional<double> standard_error(double share, int64_t n);

 private:
  static double share(int64_t part, int64_t n) {
    return n == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(n);
  }
};

struct TaskOptions {
  FewShot few_shot{};
  int64_t max_answer_tokens = 256;
  AnswerOptions answer{};  // of generated tasks
  std::string output;      // file of results; none if empty
  std::string identity;    // what else decides about results: the model
  std::function<void(int64_t done, int64_t total, int64_t resumed)> progress;
};

class TaskRunner {
 public:
  TaskRunner(serve::PrefixRunner& runner, io::Tokenizer tokenizer, int32_t bos,
             std::vector<int64_t> stop_ids);
  // `place` in the task decides about examples that are drawn.
  ItemResult run(const TaskItem& item, int64_t place, const TaskOptions& options);
  TaskScore run(const std::vector<TaskItem>& items, const TaskOptions& options);

 private:
  ItemResult choose(const TaskItem& item, const std::string& few_shot);
  ItemResult generate(const TaskItem& item, const std::string& few_shot,
                      const TaskOptions& options);

  serve::PrefixRunner& runner_;
  io::Tokenizer tokenizer_;
  int32_t bos_;
  std::vector<int64_t> stop_ids_;
};

}  // namespace hadal::eval
