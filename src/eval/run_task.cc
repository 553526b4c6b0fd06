// Scoring, and the file of results.
// SPDX-License-Identifier: Apache-2.0
#include "eval/run_task.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/rng.h"
#include "io/atomic.h"
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

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  return begin == text.npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

int64_t best(const std::vector<double>& scores) {
  return std::max_element(scores.begin(), scores.end()) - scores.begin();
}

std::string settings_hash(const std::vector<TaskItem>& items, const TaskOptions& o) {
  Json all = {o.few_shot, o.max_answer_tokens, o.identity};
  for (const TaskItem& item : items)
    all.push_back({item.prompt, item.choices, item.gold, item.answers, item.until});
  char text[17];
  std::snprintf(text, sizeof text, "%016llx",
                static_cast<unsigned long long>(
                    stream_id(all.dump(-1, ' ', true, Json::error_handler_t::replace))));
  return text;
}

Json to_json(const ItemResult& r) {
  if (!r.is_choice) return {{"match", r.right}, {"output", r.output}};
  return {{"acc", r.right}, {"acc_norm", r.right_by_length}, {"log_probs", r.log_probs}};
}

ItemResult from_json(const JsonObject& line) {
  ItemResult r;
  r.is_choice = line.has("acc");
  r.right = line.boolean(r.is_choice ? "acc" : "match");
  if (r.is_choice) r.right_by_length = line.boolean("acc_norm");
  if (r.is_choice) r.log_probs = line.numbers("log_probs");
  if (!r.is_choice) r.output = line.string("output");
  return r;
}

// The results that are in the file; the rest of a line that was cut off is removed.
std::vector<ItemResult> read_results(const std::string& path, const std::string& settings,
                                     size_t num_items) {
  std::vector<ItemResult> results;
  if (!std::filesystem::exists(path)) return results;
  const std::string text = io::read_file(path, std::numeric_limits<size_t>::max());
  const size_t whole = text.rfind('\n') == text.npos ? 0 : text.rfind('\n') + 1;
  int64_t number = 0;
  for (size_t begin = 0; begin < whole;) {
    const size_t end = text.find('\n', begin);
    const JsonObject line = JsonObject::parse(std::string_view(text).substr(begin, end - begin),
                                              concat(path, ":", ++number));
    begin = end + 1;
    if (number > 1) {
      results.push_back(from_json(line));
      continue;
    }
    HADAL_CHECK(line.has("settings") && line.string("settings") == settings, path,
                " holds results of another model, task or options; remove it or give another "
                "--output");
  }
  HADAL_CHECK(results.size() <= num_items, path, " has ", results.size(), " results for ",
              num_items, " items; remove it");
  std::filesystem::resize_file(path, whole);
  return results;
}

// Appends lines; each is in the system's hands when add() returns.
class ResultFile {
 public:
  explicit ResultFile(const std::string& path) : path_(path) {
    if (!path.empty()) file_.open(path, std::ios::app | std::ios::binary);
    check();
  }
  void add(const Json& line) {
    if (path_.empty()) return;
    file_ << line.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n' << std::flush;
    check();
  }

 private:
  void check() {
    HADAL_CHECK(path_.empty() || file_.good(), "cannot write ", path_, ": ", io::errno_text(),
                "; check the path and the space left");
  }
  std::string path_;
  std::ofstream file_;
};

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
  ItemResult result{.is_choice = true, .log_probs = {}, .output = {}};
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

ItemResult TaskRunner::generate(const TaskItem& item, const TaskOptions& options) {
  std::vector<int32_t> ids = tokenizer_.encode(options.few_shot + item.prompt);
  // The start of a prompt that is too long is left out, but for bos.
  const int64_t room = runner_.max_tokens() - options.max_answer_tokens - 1;
  HADAL_CHECK(room >= 1, "--max-answer-tokens ", options.max_answer_tokens,
              " leaves no room in the context of ", runner_.max_tokens(), "; give fewer");
  const auto n = static_cast<int64_t>(ids.size());
  if (n > room) ids.erase(ids.begin(), ids.begin() + (n - room));
  ids.insert(ids.begin(), bos_);
  io::StreamDecoder decoder(tokenizer_);
  io::StopScanner scanner(item.until);
  ItemResult result{.log_probs = {}, .output = {}};
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
  for (const std::string& answer : item.answers)
    result.right = result.right || trimmed(result.output) == trimmed(answer);
  return result;
}

ItemResult TaskRunner::run(const TaskItem& item, const TaskOptions& options) {
  return item.is_choice() ? choose(item, options.few_shot) : generate(item, options);
}

TaskScore TaskRunner::run(const std::vector<TaskItem>& items, const TaskOptions& options) {
  const std::string settings = settings_hash(items, options);
  std::vector<ItemResult> results;
  if (!options.output.empty()) results = read_results(options.output, settings, items.size());
  const bool is_new = options.output.empty() || !std::filesystem::exists(options.output) ||
                      std::filesystem::file_size(options.output) == 0;
  ResultFile file(options.output);
  if (is_new) file.add({{"settings", settings}, {"items", items.size()}});
  const auto resumed = static_cast<int64_t>(results.size());
  TaskScore score;
  for (size_t i = 0; i < items.size(); ++i) {
    const bool known = i < results.size();
    const ItemResult result = known ? results[i] : run(items[i], options);
    if (!known) file.add(to_json(result));
    (result.is_choice ? score.num_choice : score.num_generated) += 1;
    (result.is_choice ? score.right : score.matches) += result.right ? 1 : 0;
    score.right_by_length += result.right_by_length ? 1 : 0;
    if (options.progress && !known)
      options.progress(static_cast<int64_t>(i) + 1, static_cast<int64_t>(items.size()), resumed);
  }
  return score;
}

}  // namespace hadal::eval
