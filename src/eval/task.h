// Tasks in JSON lines, with the field names that lm-evaluation-harness uses.
//
//   multiple choice   context, query, ctx or question; choices or endings; gold, label or answer
//                     (the index of the right choice, or its text)
//   generated         question, context or query; answer (a text, or a list of accepted texts);
//                     until (a text or a list; a line break if absent)
//
// Other fields are ignored. A question is asked as "Question: ...\nAnswer:"; a context or query
// stands as it is. A blank goes between it and the answer unless one is there.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/tokenizer.h"

namespace hadal::eval {

struct TaskItem {
  std::string prompt;
  std::vector<std::string> choices;  // empty: the answer is generated
  int64_t gold = 0;                  // index into choices
  std::vector<std::string> answers;  // accepted ones, when generated
  std::vector<std::string> until;

  bool is_choice() const { return !choices.empty(); }
  const std::string& right_answer() const {
    return is_choice() ? choices[static_cast<size_t>(gold)] : answers[0];
  }
  // The prompt with the blank before `answer`, and the answer.
  std::string with(const std::string& answer) const;
};

// An Error names file and line. Blank lines are skipped.
std::vector<TaskItem> read_task(const std::string& path);

// Solved examples that stand before a question, each followed by an empty line. The question itself
// is never among them.
struct FewShot {
  std::vector<TaskItem> examples{};
  int64_t count = 0;
  // Draws them anew for each question, by (seed, its place in the task); without it they are the
  // first ones.
  std::optional<uint64_t> seed{};

  // An Error if there are too few.
  std::string before(const TaskItem& question, int64_t place) const;
};

struct Scored {
  std::vector<int32_t> ids;  // bos, context, continuation
  int64_t first = 0;         // of the continuation
};
// Blanks at the end of the context count to the continuation, where tokenizers have them. Tokens
// at the start of a context that is too long are left out, after bos.
Scored encode_pair(const io::Tokenizer& tokenizer, int32_t bos, std::string context,
                   std::string continuation, int64_t max_tokens);

}  // namespace hadal::eval
