// Perplexity and tasks with a random model, against likelihoods that are computed naively.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "eval/perplexity.h"
#include "eval/run_task.h"
#include "io/atomic.h"
#include "tests/unit/base_model.h"
#include "tests/unit/expect_error.h"

namespace hadal::eval {
namespace {

using testing::BaseModel;
using testing::TempDir;
using Ids = std::vector<int32_t>;

constexpr const char* kText =
    "the quick brown fox jumps over the lazy dog; some more words are here\nthe lazy dog sleeps. ";

struct Fixture {
  Fixture() : decoder(model.decoder(32)), runner(model.ctx, decoder) {}
  TaskRunner tasks() { return {runner, tokenizer, 0, {1}}; }
  BaseModel model;
  Decoder decoder;
  serve::PrefixRunner runner;
  io::Tokenizer tokenizer = testing::chat_tokenizer();
};

std::string repeated_text(int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += kText;
  return text;
}

TEST(Perplexity, ScoresEachTokenOnceBehindItsContext) {
  Fixture f;
  const std::string text = repeated_text(4);
  const Ids ids = f.tokenizer.encode(text);
  const auto n = static_cast<int64_t>(ids.size());
  ASSERT_GT(n, 60);
  for (const Windows w : {Windows{512, 256}, Windows{20, 7}, Windows{2, 1}, Windows{16, 15}}) {
    double nats = 0.0;
    for (int64_t done = 0; done < n;) {
      const int64_t room = w.window - 1;
      const int64_t end = std::min(n, done == 0 ? room : done + w.stride);
      Ids window = {0};
      window.insert(window.end(), ids.begin() + std::max<int64_t>(0, end - room),
                    ids.begin() + end);
      const std::vector<double> log_probs = f.model.naive_log_probs(window);
      for (; done < end; ++done)
        nats -= log_probs[log_probs.size() - static_cast<size_t>(end - done)];
    }
    int64_t last = 0;
    const TextScore score = score_text(f.runner, ids, static_cast<int64_t>(text.size()), 0, w,
                                       [&](int64_t done) { last = done; });
    EXPECT_EQ(last, n);
    EXPECT_EQ(score.num_tokens, n);
    EXPECT_NEAR(score.nats, nats, 1e-4);
    EXPECT_NEAR(score.perplexity(), std::exp(nats / static_cast<double>(n)), 1e-3);
    EXPECT_NEAR(score.bits_per_token(), nats / static_cast<double>(n) / std::log(2.0), 1e-5);
    EXPECT_NEAR(score.bits_per_byte(), nats / std::log(2.0) / static_cast<double>(text.size()),
                1e-5);
    EXPECT_NEAR(std::accumulate(score.block_nats.begin(), score.block_nats.end(), 0.0), nats, 1e-4);
  }
}

TEST(Perplexity, HasAStandardErrorFromBlocks) {
  const TextScore score{
      .num_tokens = 300, .num_bytes = 900, .nats = 1000.0, .block_nats = {500.0, 400.0, 100.0}};
  // Deviations of each block from its share: 128, 128 and 44 tokens of 10/3.
  const double a = 500 - 128 / 0.3, b = 400 - 128 / 0.3, c = 100 - 44 / 0.3;
  EXPECT_NEAR(*score.standard_error(), std::sqrt((a * a + b * b + c * c) * 1.5) / 300, 1e-12);
  EXPECT_FALSE((TextScore{.num_tokens = 5, .num_bytes = 5, .nats = 1.0, .block_nats = {1.0}})
                   .standard_error());
}

TEST(Perplexity, NamesItsErrors) {
  Fixture f;
  const auto score = [&](const Ids& ids, Windows w) {
    return score_text(f.runner, ids, 1, 0, w, nullptr);
  };
  EXPECT_ERROR(score({5}, {1, 1}), "--window is 1; allowed: 2 to the context of 512");
  EXPECT_ERROR(score({5}, {513, 1}), "--window is 513; allowed: 2 to the context of 512");
  EXPECT_ERROR(score({5}, {8, 8}), "--stride is 8; allowed: 1 to --window - 1 = 7");
  EXPECT_ERROR(score({}, {8, 4}), "the text has no tokens; give more text");
}

TEST(Task, ReadsTheUsualFields) {
  const TempDir dir;
  const std::string path = dir / "task.jsonl";
  io::write_file_atomic(path, R"({"query": "a:", "choices": ["x", "y"], "gold": 1, "id": 7}

{"ctx": "b", "endings": ["x", "y", "z"], "label": "2"}
{"question": "c?", "choices": ["no", "yes"], "answer": "yes"}
{"question": "d?", "answer": ["4", "four"], "until": ["\n", "."]}
{"context": "e ", "answer": "5"}
)");
  const std::vector<TaskItem> items = read_task(path);
  ASSERT_EQ(items.size(), 5u);
  EXPECT_EQ(items[0].prompt, "a:");
  EXPECT_EQ(items[0].gold, 1);
  EXPECT_EQ(items[0].with("y"), "a: y");
  EXPECT_EQ(items[1].gold, 2);
  EXPECT_EQ(items[1].with(" y"), "b y");
  EXPECT_EQ(items[2].prompt, "Question: c?\nAnswer:");
  EXPECT_EQ(items[2].gold, 1);
  EXPECT_FALSE(items[3].is_choice());
  EXPECT_EQ(items[3].answers, (std::vector<std::string>{"4", "four"}));
  EXPECT_EQ(items[3].until, (std::vector<std::string>{"\n", "."}));
  EXPECT_EQ(items[4].until, (std::vector<std::string>{"\n"}));
  EXPECT_EQ(items[4].with("5"), "e 5");
  EXPECT_EQ(few_shot_text(items, 2), "a: y\n\nb z\n\n");
  EXPECT_ERROR(few_shot_text(items, 6), "--num-fewshot is 6; --fewshot-file has 5 examples");
}

TEST(Task, NamesFileAndLineInErrors) {
  const TempDir dir;
  const std::string path = dir / "task.jsonl";
  const auto read = [&](const std::string& text) {
    io::write_file_atomic(path, text);
    return read_task(path);
  };
  EXPECT_ERROR(read(""), path + " has no items; give one JSON object a line");
  EXPECT_ERROR(read("\n{}"), path + ":2: context is missing; add it, or query or question");
  EXPECT_ERROR(read(R"({"query": "a"})"),
               path + ":1: answer is missing; add it, or choices with gold");
  EXPECT_ERROR(read(R"({"query": "a", "choices": ["x"], "gold": 0})"),
               path + ":1: choices has 1; give two or more");
  EXPECT_ERROR(read(R"({"query": "a", "choices": ["x", "y"]})"),
               path + ":1: gold is missing; add it, or label");
  EXPECT_ERROR(read(R"({"query": "a", "choices": ["x", "y"], "gold": 2})"),
               path + ":1: gold is 2; allowed: 0 to 1, or the text of a choice");
  EXPECT_ERROR(read(R"({"query": "a", "choices": ["x", "y"], "label": "z"})"),
               path + ":1: label is \"z\"; allowed: 0 to 1, or the text of a choice");
  EXPECT_ERROR(read(R"({"query": "a", "answer": []})"),
               path + ":1: answer is empty; give one or more");
}

TEST(Task, SplitsTokensBetweenContextAndAnswer) {
  const io::Tokenizer tokenizer = testing::chat_tokenizer();
  const Scored pair = encode_pair(tokenizer, 0, "the quick  ", "brown fox", 512);
  Ids all = tokenizer.encode("the quick  brown fox");
  EXPECT_EQ(pair.first, 1 + static_cast<int64_t>(tokenizer.encode("the quick").size()));
  all.insert(all.begin(), 0);
  EXPECT_EQ(pair.ids, all);
  const Scored cut = encode_pair(tokenizer, 0, "the quick", " brown fox", 4);
  EXPECT_EQ(cut.ids.size(), 4u);
  EXPECT_EQ(cut.ids[0], 0);
  EXPECT_EQ(cut.ids.back(), all.back());
  EXPECT_EQ(encode_pair(tokenizer, 0, "", "fox", 512).first, 1);
  EXPECT_ERROR(encode_pair(tokenizer, 0, "", "", 512),
               "an answer without any text cannot be scored; give it one");
  EXPECT_ERROR(encode_pair(tokenizer, 0, "a", "\u4F60\u4F60", 3),
               "an answer has 6 tokens; at most 2 fit the context");
}

std::vector<TaskItem> choice_items() {
  std::vector<TaskItem> items;
  for (const char* prompt : {"the quick", "some more", "here:", "dog", "lazy words"})
    items.push_back({.prompt = prompt,
                     .choices = {"brown fox jumps", "a", "over the lazy dog; \u4F60", "words are"},
                     .gold = static_cast<int64_t>(items.size()) % 4,
                     .answers = {},
                     .until = {}});
  return items;
}

TEST(Task, ChoosesByLikelihood) {
  Fixture f;
  const std::string few_shot = "the dog: brown\n\n";
  TaskRunner tasks = f.tasks();
  TaskOptions options{.few_shot = few_shot, .output = {}, .identity = {}, .progress = {}};
  int64_t right = 0, right_by_length = 0;
  const std::vector<TaskItem> items = choice_items();
  for (const TaskItem& item : items) {
    std::vector<double> sums, by_length;
    for (const std::string& choice : item.choices) {
      Ids ids = f.tokenizer.encode(few_shot + item.prompt + " " + choice);
      const size_t context = f.tokenizer.encode(few_shot + item.prompt).size();
      ids.insert(ids.begin(), 0);
      const std::vector<double> log_probs = f.model.naive_log_probs(ids);
      sums.push_back(
          std::accumulate(log_probs.begin() + static_cast<int64_t>(context), log_probs.end(), 0.0));
      const double characters = choice.size() > 18 ? 20.0 : static_cast<double>(choice.size());
      by_length.push_back(sums.back() / characters);
    }
    const ItemResult result = tasks.run(item, options);
    ASSERT_EQ(result.log_probs.size(), sums.size());
    for (size_t i = 0; i < sums.size(); ++i) EXPECT_NEAR(result.log_probs[i], sums[i], 2e-5);
    const auto best = [](const std::vector<double>& v) {
      return std::max_element(v.begin(), v.end()) - v.begin();
    };
    EXPECT_EQ(result.right, best(sums) == item.gold);
    EXPECT_EQ(result.right_by_length, best(by_length) == item.gold);
    right += best(sums) == item.gold;
    right_by_length += best(by_length) == item.gold;
  }
  const TaskScore score = tasks.run(items, options);
  EXPECT_EQ(score.num_choice, 5);
  EXPECT_EQ(score.num_generated, 0);
  EXPECT_EQ(score.right, right);
  EXPECT_EQ(score.right_by_length, right_by_length);
  EXPECT_EQ(score.acc(), static_cast<double>(right) / 5);
}

TEST(Task, StandardErrorIsThatOfAMean) {
  // Sample standard deviation of {1, 1, 1, 0} over the root of 4.
  EXPECT_NEAR(*TaskScore::standard_error(0.75, 4), 0.25, 1e-12);
  EXPECT_EQ(*TaskScore::standard_error(1.0, 10), 0.0);
  EXPECT_FALSE(TaskScore::standard_error(1.0, 1));
}

TEST(Task, GeneratesUntilAStopString) {
  Fixture f;
  TaskRunner tasks = f.tasks();
  const TaskOptions options{
      .few_shot = {}, .max_answer_tokens = 30, .output = {}, .identity = {}, .progress = {}};
  TaskItem item{.prompt = "the quick", .choices = {}, .answers = {"?"}, .until = {}};
  const std::string whole = tasks.run(item, options).output;
  ASSERT_GT(whole.size(), 8u);
  EXPECT_FALSE(tasks.run(item, options).right);
  // An ASCII character from the middle of it.
  const auto at =
      std::find_if(whole.begin() + 3, whole.end(), [](char c) { return c > ' ' && c < 0x7F; });
  ASSERT_NE(at, whole.end());
  const std::string stop(1, *at), head = whole.substr(0, whole.find(stop));
  item.until = {stop};
  item.answers = {"wrong", " " + head + "\n"};
  const ItemResult result = tasks.run(item, options);
  EXPECT_EQ(result.output, head);
  EXPECT_TRUE(result.right);
  EXPECT_FALSE(result.is_choice);
}

TEST(Task, GoesOnWithAFileOfResults) {
  Fixture f;
  const TempDir dir;
  const std::string path = dir / "results.jsonl";
  std::vector<TaskItem> items = choice_items();
  items.push_back({.prompt = "dog", .choices = {}, .answers = {"x"}, .until = {"\n"}});
  TaskRunner tasks = f.tasks();
  std::vector<int64_t> done;
  TaskOptions options{.few_shot = {},
                      .max_answer_tokens = 4,
                      .output = path,
                      .identity = "model",
                      .progress = [&](int64_t i, int64_t, int64_t) { done.push_back(i); }};
  const TaskScore whole = tasks.run(items, options);
  const std::string text = io::read_file(path, 1 << 20);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 7);
  EXPECT_EQ(done.size(), 6u);
  // Cut inside the line of the fourth item.
  size_t cut = 0;
  for (int line = 0; line < 4; ++line) cut = text.find('\n', cut) + 1;
  io::write_file_atomic(path, text.substr(0, cut + 9));
  done.clear();
  const TaskScore again = tasks.run(items, options);
  EXPECT_EQ(io::read_file(path, 1 << 20), text);
  EXPECT_EQ(done, (std::vector<int64_t>{4, 5, 6}));
  EXPECT_EQ(again.right, whole.right);
  EXPECT_EQ(again.right_by_length, whole.right_by_length);
  EXPECT_EQ(again.matches, whole.matches);
  EXPECT_EQ(again.num_generated, 1);
  options.identity = "another";
  EXPECT_ERROR(tasks.run(items, options),
               path +
                   " holds results of another model, task or options; remove it or give another "
                   "--output");
}

}  // namespace
}  // namespace hadal::eval
