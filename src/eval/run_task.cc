// Scoring of items.
// SPDX-License-Identifier: Apache-2.0
#include "eval/run_task.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "eval/result_file.h"
#include "io/json.h"
#include "io/stream_decoder.h"

namespace hadal::eval {
namespace {

using io::Json;
using io::JsonObject;

// Characters, as Python counts them.
double num_characters(const std::string& text) {
  return static_cast<double>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

int64_t best(const std::vector<double>& scores) {
  return std::max_element(scores.begin(), scores.end()) - scores.begin();
}

// All that decides about results.
Json settings_of(const std::vector<TaskItem>& items, const TaskOptions& o) {
  const auto to_json = [](const TaskItem& item) -> Json {
    return {item.prompt, item.choices, item.gold, item.answers, item.until};
  };
  Json all = {o.few_shot.count, o.max_answer_tokens, o.identity};
  all.push_back(o.few_shot.seed ? Json(*o.few_shot.seed) : Json(nullptr));
  all.push_back({o.answer.pattern, o.answer.last, o.answer.ignored, o.answer.ignore_case});
  for (const TaskItem& example : o.few_shot.examples) all.push_back(to_json(example));
  for (const TaskItem& item : items) all.push_back(to_json(item));
  return all;
}

Json to_json(const ItemResult& r) {
  if (!r.is_choice) return {{"match", r.right}, {"answer", r.answer}, {"output", r.output}};
  return {{"acc", r.right}, {"acc_norm", r.right_by_length}, {"log_probs", r.log_probs}};
}

ItemResult from_json(const JsonObject& line) {
  ItemResult r;
  r.is_choice = line.has("acc");
  r.right = line.boolean(r.is_choice ? "acc" : "match");
  if (r.is_choice) r.right_by_length = line.boolean("acc_norm");
  if (r.is_choice) r.log_probs = line.numbers("log_probs");
  if (!r.is_choice) r.output = line.string("output");
  if (!r.is_choice) r.answer = line.string("answer");
  return r;
}

}  // namespace

std::optional<double> TaskScore::standard_error(double share, int64_t n) {
  if (n < 2) return std::nullopt;
  return std::sqrt(share * (1.0 - share) / static_cast<double>(n - 1));
}

TaskRunner::TaskRunner(serve::PrefixRunner& runner, io::Tokenizer tokenizer, int32_t bos,
                       std::vector<int64_t> stop_ids)
    : runner_(runner),
      tokenizer_(std::move(tokenizer)),
      bos_(bos),
      stop_ids_(std::move(stop_ids)) {}

ItemResult TaskRunner::choose(const TaskItem& item, const std::string& few_shot) {
  ItemResult result{.is_choice = true, .log_probs = {}, .output = {}, .answer = {}};
  std::vector<double> by_length;
  for (const std::string& choice : item.choices) {
    const std::string text = item.with(choice).substr(item.prompt.size());
    const Scored pair =
        encode_pair(tokenizer_, bos_, few_shot + item.prompt, text, runner_.max_tokens());
    double sum = 0.0;
    for (double log_prob : runner_.log_probs(pair.ids, pair.first)) sum += log_prob;
    result.log_probs.push_back(sum);
    by_length.push_back(sum / std::max(1.0, num_characters(choice)));
  }
  result.right = best(result.log_probs) == item.gold;
  result.right_by_length = best(by_length) == item.gold;
  return result;
}

ItemResult TaskRunner::generate(const TaskItem& item, const std::string& few_shot,
                                const TaskOptions& options) {
  const AnswerRule rule(options.answer);
  std::vector<int32_t> ids = tokenizer_.encode(few_shot + item.prompt);
  // The start of a prompt that is too long is left out, but for bos.
  const int64_t room = runner_.max_tokens() - options.max_answer_tokens - 1;
  HADAL_CHECK(room >= 1, "--max-answer-tokens ", options.max_answer_tokens,
              " leaves no room in the context of ", runner_.max_tokens(), "; give fewer");
  const auto n = static_cast<int64_t>(ids.size());
  if (n > room) ids.erase(ids.begin(), ids.begin() + (n - room));
  ids.insert(ids.begin(), bos_);
  io::StreamDecoder decoder(tokenizer_);
  io::StopScanner scanner(item.until);
  ItemResult result{.log_probs = {}, .output = {}, .answer = {}};
  for (int64_t i = 0; i < options.max_answer_tokens && !scanner.stopped(); ++i) {
    const int32_t token = *runner_.next(ids, {});  // greedy
    if (std::find(stop_ids_.begin(), stop_ids_.end(), token) != stop_ids_.end()) break;
    ids.push_back(token);
    result.output += scanner.push(decoder.push(token));
  }
  if (!scanner.stopped()) {
    result.output += scanner.push(decoder.finish());
    result.output += scanner.finish();
  }
  result.answer = rule.extract(result.output);
  for (const std::string& accepted : item.answers)
    result.right = result.right || rule.same(result.answer, accepted);
  return result;
}

ItemResult TaskRunner::run(const TaskItem& item, int64_t place, const TaskOptions& options) {
  const std::string few_shot = options.few_shot.before(item, place);
  return item.is_choice() ? choose(item, few_shot) : generate(item, few_shot, options);
}

TaskScore TaskRunner::run(const std::vector<TaskItem>& items, const TaskOptions& options) {
  const AnswerRule checked(
      options.answer);  // before the first item, not at the first generated one
  ResultFile file(options.output, settings_of(items, options), {{"items", items.size()}});
  HADAL_CHECK(file.lines().size() <= items.size(), options.output, " has ", file.lines().size(),
              " results for ", items.size(), " items; remove it");
  const auto resumed = static_cast<int64_t>(file.lines().size());
  const auto total = static_cast<int64_t>(items.size());
  TaskScore score;
  for (int64_t i = 0; i < total; ++i) {
    const auto index = static_cast<size_t>(i);
    const bool known = i < resumed;
    const ItemResult result =
        known ? from_json(file.lines()[index]) : run(items[index], i, options);
    if (!known) file.add(to_json(result));
    (result.is_choice ? score.num_choice : score.num_generated) += 1;
    (result.is_choice ? score.right : score.matches) += result.right ? 1 : 0;
    score.right_by_length += result.right_by_length ? 1 : 0;
    if (options.progress && !known) options.progress(i + 1, total, resumed);
  }
  return score;
}

}  // namespace hadal::eval
