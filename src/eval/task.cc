// Reading items, and how they become text and tokens.
// SPDX-License-Identifier: Apache-2.0
#include "eval/task.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/rng.h"
#include "io/atomic.h"
#include "io/json.h"

namespace hadal::eval {
namespace {

using io::JsonObject;

// The first of the keys that is there; null without any.
const char* first_of(const JsonObject& item, std::initializer_list<const char*> keys) {
  for (const char* key : keys)
    if (item.has(key)) return key;
  return nullptr;
}

// One text or a list of them.
std::vector<std::string> texts(const JsonObject& item, const char* key) {
  if (item.json()[key].is_array()) return item.strings(key);
  return {item.string(key)};
}

// An index, its digits, or the text of a choice.
int64_t read_gold(const JsonObject& item, const char* key,
                  const std::vector<std::string>& choices) {
  int64_t gold = -1;
  if (item.json()[key].is_string()) {
    const std::string text = item.string(key);
    const auto at = std::find(choices.begin(), choices.end(), text);
    if (at != choices.end())
      gold = at - choices.begin();
    else if (!text.empty() && text.size() < 9 && text.find_first_not_of("0123456789") == text.npos)
      gold = std::stoll(text);
  } else {
    gold = item.integer(key);
  }
  HADAL_CHECK(gold >= 0 && gold < static_cast<int64_t>(choices.size()), item.where(), ": ", key,
              " is ", item.json()[key].dump(), "; allowed: 0 to ", choices.size() - 1,
              ", or the text of a choice");
  return gold;
}

TaskItem read_item(const JsonObject& item) {
  TaskItem result;
  const char* prompt = first_of(item, {"context", "query", "ctx", "question"});
  HADAL_CHECK(prompt != nullptr, item.where(),
              ": context is missing; add it, or query or question");
  result.prompt = item.string(prompt);
  if (std::string_view(prompt) == "question")
    result.prompt = concat("Question: ", result.prompt, "\nAnswer:");
  if (const char* choices = first_of(item, {"choices", "endings"})) {
    result.choices = item.strings(choices);
    HADAL_CHECK(result.choices.size() >= 2, item.where(), ": ", choices, " has ",
                result.choices.size(), "; give two or more");
    const char* gold = first_of(item, {"gold", "label", "answer"});
    HADAL_CHECK(gold != nullptr, item.where(), ": gold is missing; add it, or label");
    result.gold = read_gold(item, gold, result.choices);
    return result;
  }
  HADAL_CHECK(item.has("answer"), item.where(),
              ": answer is missing; add it, or choices with gold");
  result.answers = texts(item, "answer");
  HADAL_CHECK(!result.answers.empty(), item.where(), ": answer is empty; give one or more");
  result.until = item.has("until") ? texts(item, "until") : std::vector<std::string>{"\n"};
  return result;
}

bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

}  // namespace

std::string TaskItem::with(const std::string& answer) const {
  const bool apart =
      prompt.empty() || is_blank(prompt.back()) || (!answer.empty() && is_blank(answer[0]));
  return concat(prompt, apart ? "" : " ", answer);
}

std::vector<TaskItem> read_task(const std::string& path) {
  std::vector<TaskItem> items;
  const std::string text = io::read_file(path, std::numeric_limits<size_t>::max());
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view row = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (std::all_of(row.begin(), row.end(), is_blank)) continue;
    items.push_back(read_item(JsonObject::parse(row, concat(path, ":", number))));
  }
  HADAL_CHECK(!items.empty(), path, " has no items; give one JSON object a line");
  return items;
}

std::string FewShot::before(const TaskItem& question, int64_t place) const {
  std::vector<const TaskItem*> others;
  for (const TaskItem& example : examples)
    if (example.prompt != question.prompt || example.right_answer() != question.right_answer())
      others.push_back(&example);
  const auto n = static_cast<int64_t>(others.size());
  HADAL_CHECK(count >= 0 && count <= n, "--num-fewshot is ", count, "; --fewshot-file has ", n,
              " examples besides the question");
  std::string text;
  const Rng rng(seed.value_or(0), stream_id(concat("few-shot ", place)));
  for (int64_t i = 0; i < count; ++i) {
    // The beginning of a Fisher-Yates shuffle.
    if (seed)
      std::swap(others[static_cast<size_t>(i)],
                others[static_cast<size_t>(i) +
                       rng.u64(static_cast<uint64_t>(i)) % static_cast<uint64_t>(n - i)]);
    const TaskItem& example = *others[static_cast<size_t>(i)];
    text += concat(example.with(example.right_answer()), "\n\n");
  }
  return text;
}

Scored encode_pair(const io::Tokenizer& tokenizer, int32_t bos, std::string context,
                   std::string continuation, int64_t max_tokens) {
  size_t keep = context.size();
  while (keep > 0 && is_blank(context[keep - 1])) --keep;
  continuation.insert(0, context, keep);
  context.resize(keep);
  Scored pair;
  pair.ids = tokenizer.encode(concat(context, continuation));
  HADAL_CHECK(!pair.ids.empty(), "an answer without any text cannot be scored; give it one");
  const auto n = static_cast<int64_t>(pair.ids.size());
  // Merging over the border may leave nothing to the continuation; it keeps the last token then.
  pair.first = std::min(static_cast<int64_t>(tokenizer.encode(context).size()), n - 1);
  const int64_t cut = std::max<int64_t>(0, n + 1 - max_tokens);
  HADAL_CHECK(cut <= pair.first, "an answer has ", n - pair.first, " tokens; at most ",
              max_tokens - 1, " fit the context");
  pair.ids.erase(pair.ids.begin(), pair.ids.begin() + cut);
  pair.ids.insert(pair.ids.begin(), bos);
  pair.first += 1 - cut;
  return pair;
}

}  // namespace hadal::eval
