// hadal eval: perplexity of a text, or a task in JSON lines.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/model_run.h"
#include "core/check.h"
#include "core/timer.h"
#include "eval/corpus.h"
#include "eval/perplexity.h"
#include "eval/run_task.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

struct Options {
  ModelOptions model;
  std::vector<std::string> texts;
  std::string task, few_shot_file, output;
  int64_t window = 0, stride = 0, num_few_shot = 0, max_answer_tokens = 256, context = 0;
  int64_t limit = 0;
  std::optional<uint64_t> few_shot_seed;
  eval::AnswerOptions answer;
  std::string answer_match = "first";
  bool json = false;
};

// A line that is written over, on a terminal only.
class Progress {
 public:
  explicit Progress(bool quiet) : shown_(!quiet && ::isatty(STDERR_FILENO) != 0) {}
  ~Progress() {
    if (shown_) fmt::print(stderr, "\r\x1b[K");
  }
  void show(int64_t done, int64_t total, int64_t from, const char* what) {
    if (!shown_ || done == from) return;
    const double left =
        timer_.seconds() / static_cast<double>(done - from) * static_cast<double>(total - done);
    fmt::print(stderr, "\r\x1b[K{} of {} {}, {:.0f} s left", done, total, what, left);
    std::fflush(stderr);
  }

 private:
  bool shown_;
  Timer timer_;
};

json or_null(std::optional<double> value) { return value ? json(*value) : json(nullptr); }

std::string plus_minus(std::optional<double> error) {
  return error ? fmt::format(" +- {:.4f}", *error) : "";
}

void check(const Options& o) {
  HADAL_CHECK(o.texts.empty() != o.task.empty(), "give either --text FILE or --task FILE.jsonl");
  HADAL_CHECK(o.task.empty() || (o.window == 0 && o.stride == 0),
              "--window and --stride are for --text");
  HADAL_CHECK(!o.task.empty() || (o.few_shot_file.empty() && o.limit == 0),
              "--fewshot-file and --limit are for --task");
  HADAL_CHECK(!o.task.empty() || (o.answer.pattern.empty() && o.answer.ignored.empty()),
              "--answer-pattern and --ignore-pattern are for --task");
  HADAL_CHECK(!o.few_shot_seed || o.num_few_shot > 0, "--fewshot-seed needs --num-fewshot");
  HADAL_CHECK(o.answer_match == "first" || o.answer_match == "last", "--answer-match is ",
              o.answer_match, "; allowed: first, last");
  HADAL_CHECK(o.few_shot_file.empty() == (o.num_few_shot == 0),
              "give --fewshot-file and --num-fewshot together");
  HADAL_CHECK(o.max_answer_tokens >= 1, "--max-answer-tokens is ", o.max_answer_tokens,
              "; give 1 or more");
  o.model.check();
  HADAL_CHECK(o.limit >= 0, "--limit is ", o.limit, "; give 0 (all) or more");
}

// Tokens of the longest sequence.
int64_t context_of(const Options& o, const Config& c) {
  const int64_t context = o.context > 0  ? o.context
                          : o.window > 0 ? o.window
                                         : std::min<int64_t>(c.max_position_embeddings, 2048);
  HADAL_CHECK(context >= 2 && context <= c.max_position_embeddings,
              o.context > 0 ? "--context is " : "--window is ", context,
              "; allowed: 2 to max_position_embeddings = ", c.max_position_embeddings);
  return context;
}

// All that decides about scores besides the text.
std::string identity_of(const Options& o, const OpenedModel& model, int64_t max_tokens) {
  std::string all = fmt::format("{} {} {} {}", std::filesystem::canonical(model.dir).string(),
                                o.model.dtype, o.model.cache.kv_cache, max_tokens);
  if (o.model.ranks > 1) all += fmt::format(" {} ranks", o.model.ranks);
  return all;
}

std::vector<eval::Document> read_documents(const Options& o, const io::Tokenizer& tokenizer) {
  std::vector<eval::Document> documents;
  for (const std::string& path : o.texts)
    for (const std::string& text : eval::read_documents(path))
      documents.push_back(
          {.ids = tokenizer.encode(text), .num_bytes = static_cast<int64_t>(text.size())});
  return documents;
}

void eval_text(const Options& o, const OpenedModel& model, serve::PrefixRunner& runner) {
  const std::vector<eval::Document> documents = read_documents(o, model.tokenizer());
  const int64_t window = o.window > 0 ? o.window : runner.max_tokens();
  const eval::Windows windows{.window = window,
                              .stride = o.stride > 0 ? o.stride : std::max<int64_t>(1, window / 2)};
  const Timer timer;
  eval::TextScore score;
  {
    Progress progress(o.json);
    score = eval::score_texts(runner, documents, model.bos(),
                              {.windows = windows,
                               .output = o.output,
                               .identity = identity_of(o, model, runner.max_tokens()),
                               .progress = [&](int64_t done, int64_t total, int64_t resumed) {
                                 progress.show(done, total, resumed, "tokens");
                               }});
  }
  const double speed = static_cast<double>(runner.num_run()) / timer.seconds();
  const std::optional<double> error = score.standard_error();
  if (o.json) {
    const json root = {{"text", o.texts.size() == 1 ? json(o.texts[0]) : json(o.texts)},
                       {"documents", score.num_documents},
                       {"tokens", score.num_tokens},
                       {"bytes", score.num_bytes},
                       {"window", windows.window},
                       {"stride", windows.stride},
                       {"nats_per_token", score.nats_per_token()},
                       {"nats_per_token_stderr", or_null(error)},
                       {"perplexity", score.perplexity()},
                       {"bits_per_token", score.bits_per_token()},
                       {"bits_per_byte", score.bits_per_byte()}};
    fmt::print("{}\n", root.dump(2));
    return;
  }
  const double per_bit = 1.0 / std::log(2.0);
  const auto scaled = [&](double factor) {
    return plus_minus(error ? std::optional(*error * factor) : std::nullopt);
  };
  fmt::print("perplexity       {:.4f}{}\n", score.perplexity(), scaled(score.perplexity()));
  fmt::print("bits per token   {:.4f}{}\n", score.bits_per_token(), scaled(per_bit));
  fmt::print("bits per byte    {:.4f}{}\n", score.bits_per_byte(),
             scaled(per_bit * static_cast<double>(score.num_tokens) /
                    static_cast<double>(score.num_bytes)));
  fmt::print("{} tokens of {} bytes in {} document{}, window {}, stride {}, {:.0f} tokens/s\n",
             score.num_tokens, score.num_bytes, score.num_documents,
             score.num_documents == 1 ? "" : "s", windows.window, windows.stride, speed);
}

void eval_task(const Options& o, const OpenedModel& model, serve::PrefixRunner& runner) {
  std::vector<eval::TaskItem> items = eval::read_task(o.task);
  if (o.limit > 0 && static_cast<size_t>(o.limit) < items.size())
    items.resize(static_cast<size_t>(o.limit));
  Progress progress(o.json);
  eval::TaskOptions options{.few_shot = {.examples = {}, .count = o.num_few_shot, .seed = {}},
                            .max_answer_tokens = o.max_answer_tokens,
                            .answer = o.answer,
                            .output = o.output,
                            .identity = identity_of(o, model, runner.max_tokens()),
                            .progress = {}};
  options.answer.last = o.answer_match == "last";
  options.few_shot.seed = o.few_shot_seed;
  if (o.num_few_shot > 0) options.few_shot.examples = eval::read_task(o.few_shot_file);
  options.progress = [&](int64_t done, int64_t total, int64_t resumed) {
    progress.show(done, total, resumed, "items");
  };
  const eval::TaskScore s =
      eval::TaskRunner(runner, model.tokenizer(), model.bos(), model.config().eos_token_ids)
          .run(items, options);
  const auto error = [](double share, int64_t n) {
    return eval::TaskScore::standard_error(share, n);
  };
  if (o.json) {
    json root = {{"task", o.task}, {"items", items.size()}, {"num_fewshot", o.num_few_shot}};
    const auto put = [&](const char* name, double value, int64_t n) {
      root[name] = value;
      root[std::string(name) + "_stderr"] = or_null(error(value, n));
    };
    if (s.num_choice > 0) {
      put("acc", s.acc(), s.num_choice);
      put("acc_norm", s.acc_norm(), s.num_choice);
    }
    if (s.num_generated > 0) put("exact_match", s.exact_match(), s.num_generated);
    fmt::print("{}\n", root.dump(2));
    return;
  }
  const auto print = [&](const char* name, double value, int64_t n) {
    fmt::print("{:<12} {:.4f}{}  ({} items)\n", name, value, plus_minus(error(value, n)), n);
  };
  if (s.num_choice > 0) {
    print("acc", s.acc(), s.num_choice);
    print("acc_norm", s.acc_norm(), s.num_choice);
  }
  if (s.num_generated > 0) print("exact_match", s.exact_match(), s.num_generated);
}

void run(const Options& o) {
  check(o);
  const OpenedModel model(o.model.model, o.model.dtype);
  const Decoder::Limits limits = limits_of_one(model, o.model, context_of(o, model.config()), 0);
  const PlanInput plan{
      .model = model, .options = o.model, .limits = limits, .num_logits = limits.max_step_tokens};
  check_ranks_of(plan);
  run_model(plan, [&](ModelLead& lead) {
    Decoder decoder = lead.decoder(limits);
    serve::PrefixRunner runner(lead.ctx, decoder);
    o.texts.empty() ? eval_task(o, model, runner) : eval_text(o, model, runner);
  });
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("eval", "perplexity of a text, or a task");
  o->model.add_to(*command);
  command->add_option("--text", o->texts,
                      "text file to predict, or .jsonl with a document in each line's \"text\"; "
                      "may be repeated");
  command->add_option("--window", o->window, "tokens of a window; 0 is the context, at most 2048");
  command->add_option("--stride", o->stride, "tokens that a window scores; 0 is half of it");
  command->add_option("--task", o->task,
                      "JSON lines: context, choices and gold, or question, answer and until");
  command->add_option("--fewshot-file", o->few_shot_file, "solved examples, as a task");
  command->add_option("--num-fewshot", o->num_few_shot, "how many of them to show")
      ->capture_default_str();
  command->add_option("--fewshot-seed", o->few_shot_seed,
                      "draw them anew for each question; without it they are the first ones");
  command->add_option("--answer-pattern", o->answer.pattern,
                      "regular expression of the answer in a generated text; its group, if it has "
                      "one");
  command->add_option("--answer-match", o->answer_match, "which of several matches: first or last")
      ->capture_default_str();
  command->add_option("--ignore-pattern", o->answer.ignored,
                      "remove what it matches before answers are compared; may be repeated");
  command->add_flag("--ignore-case", o->answer.ignore_case, "compare ASCII letters without case");
  command->add_option("--max-answer-tokens", o->max_answer_tokens, "of a generated answer")
      ->capture_default_str();
  command->add_option("--limit", o->limit, "only the first items; 0 is all")->capture_default_str();
  command->add_option("--output", o->output,
                      "file for a JSON line per item or window; a stopped run goes on with it");
  command->add_option("--context", o->context, "tokens of the longest sequence; 0 is 2048");
  command->add_flag("--json", o->json, "print JSON");
  command->footer("Example: hadal eval --model runs/quickstart --text data/kjv.txt --stride 512");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
