// Answers to generated tasks: which part of a text is the answer, and when two are the same.
//
// As lm-evaluation-harness has it: its regex filter (findall, one match of them, its group) and the
// options of its exact_match. Regular expressions are in the syntax of PCRE2, which is that of
// Python where both have a thing.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/regex.h"

namespace hadal::eval {

struct AnswerOptions {
  std::string pattern{};               // empty: all of the text is the answer
  bool last = false;                   // of several matches, the last one counts
  std::vector<std::string> ignored{};  // what they match is removed before comparing
  bool ignore_case = false;            // of ASCII letters
};

class AnswerRule {
 public:
  // An Error names the option whose expression is invalid.
  explicit AnswerRule(const AnswerOptions& options);
  // Without blanks around it. The group that took part in the match, if the pattern has groups;
  // kNoAnswer without a match.
  std::string extract(std::string_view text) const;
  // Of an extracted answer and an accepted one.
  bool same(const std::string& answer, const std::string& accepted) const;

  static constexpr const char* kNoAnswer = "[invalid]";

 private:
  std::string plain(std::string text) const;

  std::vector<io::Regex> pattern_;  // none or one
  std::vector<io::Regex> ignored_;
  bool last_, ignore_case_;
};

}  // namespace hadal::eval
