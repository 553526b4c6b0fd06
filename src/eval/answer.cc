// Finding answers, and comparing them.
// SPDX-License-Identifier: Apache-2.0
#include "eval/answer.h"

#include <algorithm>
#include <functional>

#include "io/utf8.h"

namespace hadal::eval {
namespace {

using io::Regex;

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  return begin == text.npos ? std::string_view()
                            : text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

// Every match in turn, as Python's finditer: after an empty one it goes on behind a character.
void each_match(const Regex& regex, std::string_view text,
                const std::function<void(const Regex::Matches&)>& visit) {
  Regex::Matches matches(regex);
  for (size_t from = 0; from <= text.size() && regex.search(text, from, matches);) {
    visit(matches);
    const auto [begin, end] = *matches.group(0);
    from = end > begin ? end : std::max(from, begin);
    if (end <= begin) from += from < text.size() ? io::utf8_length(text, from) : 1;
  }
}

// The first group that is not empty; all of the match if the pattern has no groups.
std::string_view group_of(const Regex::Matches& matches, std::string_view text) {
  const size_t groups = matches.num_groups();
  for (size_t i = groups > 1 ? 1 : 0; i < groups; ++i) {
    const std::optional<Regex::Range> range = matches.group(i);
    if (range && range->end > range->begin)
      return text.substr(range->begin, range->end - range->begin);
  }
  return {};
}

}  // namespace

AnswerRule::AnswerRule(const AnswerOptions& options)
    : last_(options.last), ignore_case_(options.ignore_case) {
  if (!options.pattern.empty())
    pattern_.emplace_back(options.pattern, Regex::Syntax::kText, "--answer-pattern");
  for (const std::string& pattern : options.ignored)
    ignored_.emplace_back(pattern, Regex::Syntax::kText, "--ignore-pattern");
}

std::string AnswerRule::extract(std::string_view text) const {
  if (pattern_.empty()) return std::string(trimmed(text));
  std::string answer = kNoAnswer;
  bool found = false;
  each_match(pattern_[0], text, [&](const Regex::Matches& matches) {
    if (!found || last_) answer = trimmed(group_of(matches, text));
    found = true;
  });
  return answer;
}

std::string AnswerRule::plain(std::string text) const {
  for (const Regex& regex : ignored_) {
    std::string rest;
    size_t done = 0;
    each_match(regex, text, [&](const Regex::Matches& matches) {
      const auto [begin, end] = *matches.group(0);
      if (end <= begin || begin < done) return;
      rest.append(text, done, begin - done);
      done = end;
    });
    rest.append(text, done);
    text = std::move(rest);
  }
  if (ignore_case_)
    for (char& c : text)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return std::string(trimmed(text));
}

bool AnswerRule::same(const std::string& answer, const std::string& accepted) const {
  return plain(answer) == plain(accepted);
}

}  // namespace hadal::eval
