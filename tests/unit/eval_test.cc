// Perplexity and tasks with a random model, against likelihoods that are computed naively.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <numeric>

#include "eval/corpus.h"
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
    const TextScore score =
        score_texts(f.runner, {{ids, static_cast<int64_t>(text.size())}}, 0,
                    {.windows = w,
                     .output = {},
                     .identity = {},
                     .progress = [&](int64_t done, int64_t, int64_t) { last = done; }});
    EXPECT_EQ(last, n);
    EXPECT_EQ(score.num_tokens, n);
    EXPECT_NEAR(score.nats, nats, 1e-4);
    EXPECT_NEAR(score.perplexity(), std::exp(nats / static_cast<double>(n)), 1e-3);
    EXPECT_NEAR(score.bits_per_token(), nats / static_cast<double>(n) / std::log(2.0), 1e-5);
    EXPECT_NEAR(score.bits_per_byte(), nats / std::log(2.0) / static_cast<double>(text.size()),
                1e-5);
    double sum = 0.0;
    for (const Block& block : score.blocks) sum += block.nats;
    EXPECT_NEAR(sum, nats, 1e-4);
  }
}

TEST(Perplexity, HasAStandardErrorFromBlocks) {
  const TextScore score{.num_documents = 1,
                        .num_tokens = 300,
                        .num_bytes = 900,
                        .nats = 1000.0,
                        .blocks = {{500.0, 128}, {400.0, 128}, {100.0, 44}}};
  // Deviations of each block from its share: 128, 128 and 44 tokens of 10/3.
  const double a = 500 - 128 / 0.3, b = 400 - 128 / 0.3, c = 100 - 44 / 0.3;
  EXPECT_NEAR(*score.standard_error(), std::sqrt((a * a + b * b + c * c) * 1.5) / 300, 1e-12);
  EXPECT_FALSE((TextScore{.num_tokens = 5, .num_bytes = 5, .nats = 1.0, .blocks = {{1.0, 5}}})
                   .standard_error());
}

TEST(Perplexity, NamesItsErrors) {
  Fixture f;
  const auto score = [&](const Ids& ids, Windows w) {
    return score_texts(f.runner, {{ids, 1}}, 0,
                       {.windows = w, .output = {}, .identity = {}, .progress = {}});
  };
  EXPECT_ERROR(score({5}, {1, 1}), "--window is 1; allowed: 2 to the context of 512");
  EXPECT_ERROR(score({5}, {513, 1}), "--window is 513; allowed: 2 to the context of 512");
  EXPECT_ERROR(score({5}, {8, 8}), "--stride is 8; allowed: 1 to --window - 1 = 7");
  EXPECT_ERROR(score({}, {8, 4}), "the text has no tokens; give more text");
}

// Documents do not see each other; a run that was stopped anywhere ends with the same bits.
TEST(Perplexity, GoesOnWithAFileOfResults) {
  Fixture f;
  const TempDir dir;
  const std::string path = dir / "results.jsonl", text = repeated_text(2);
  const auto document = [&](const std::string& words) {
    return Document{f.tokenizer.encode(words), static_cast<int64_t>(words.size())};
  };
  const std::vector<Document> documents = {document(text), document(""), document("the dog")};
  TextOptions options{.windows = {20, 7}, .output = path, .identity = "model", .progress = {}};
  const TextScore whole = score_texts(f.runner, documents, 0, options);
  EXPECT_EQ(whole.num_documents, 3);
  options.output = "";
  const TextScore first = score_texts(f.runner, {documents[0]}, 0, options);
  const TextScore last = score_texts(f.runner, {documents[2]}, 0, options);
  EXPECT_NEAR(whole.nats, first.nats + last.nats, 1e-9);
  EXPECT_EQ(whole.blocks.back().nats, last.nats);
  EXPECT_EQ(whole.num_tokens, first.num_tokens + last.num_tokens);
  const std::string lines = io::read_file(path, 1 << 20);
  for (size_t cut : {size_t{0}, size_t{30}, lines.size() / 2, lines.size() - 1, lines.size()}) {
    io::write_file_atomic(path, lines.substr(0, cut));
    options.output = path;
    const TextScore again = score_texts(f.runner, documents, 0, options);
    EXPECT_EQ(again.nats, whole.nats) << cut;
    EXPECT_EQ(*again.standard_error(), *whole.standard_error()) << cut;
    EXPECT_EQ(io::read_file(path, 1 << 20), lines) << cut;
  }
  options.identity = "another";
  EXPECT_ERROR(score_texts(f.runner, documents, 0, options),
               path +
                   " holds results of another model, task or options; remove it or give another "
                   "--output");
}

TEST(Corpus, IsAFileOrJsonLines) {
  const TempDir dir;
  const std::string text = dir / "a.txt", lines = dir / "b.jsonl";
  io::write_file_atomic(text, "one\ntwo\n");
  EXPECT_EQ(read_documents(text), (std::vector<std::string>{"one\ntwo\n"}));
  io::write_file_atomic(lines, "{\"text\": \"a\\nb\", \"id\": 3}\n\n{\"text\": \"\"}");
  EXPECT_EQ(read_documents(lines), (std::vector<std::string>{"a\nb", ""}));
  io::write_file_atomic(lines, "\n");
  EXPECT_ERROR(read_documents(lines),
               lines + " has no documents; give a text, or one JSON object a line");
  io::write_file_atomic(lines, "{\"text\": \"a\"}\n{\"txt\": 1}");
  EXPECT_ERROR(read_documents(lines), lines + ":2: text is missing; add it");
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
}

TEST(Task, ShowsExamplesButNotTheQuestion) {
  std::vector<TaskItem> examples;
  for (const char* name : {"a", "b", "c", "d", "e"})
    examples.push_back({.prompt = std::string(name) + ":",
                        .choices = {},
                        .answers = {name, "other"},
                        .until = {}});
  const TaskItem question{.prompt = "q", .choices = {"x", "y"}, .answers = {}, .until = {}};
  FewShot few_shot{.examples = examples, .count = 2, .seed = {}};
  EXPECT_EQ(few_shot.before(question, 0), "a: a\n\nb: b\n\n");
  EXPECT_EQ(few_shot.before(question, 7), "a: a\n\nb: b\n\n");
  EXPECT_EQ(few_shot.before(examples[0], 0), "b: b\n\nc: c\n\n");
  few_shot.seed = 1;
  std::map<std::string, int> seen;
  for (int64_t place = 0; place < 2000; ++place) {
    const std::string text = few_shot.before(examples[2], place);
    EXPECT_EQ(text, few_shot.before(examples[2], place));
    ++seen[text];
  }
  // Each ordered pair of the other four about as often.
  EXPECT_EQ(seen.size(), 12u);
  for (const auto& [text, count] : seen) {
    EXPECT_EQ(text.find('c'), text.npos);
    EXPECT_NEAR(count, 2000.0 / 12, 60) << text;
  }
  const auto three = [&](uint64_t seed) {
    few_shot.seed = seed;
    return few_shot.before(question, 0) + few_shot.before(question, 1) +
           few_shot.before(question, 2);
  };
  EXPECT_NE(three(1), three(2));
  few_shot.count = 5;
  EXPECT_ERROR(few_shot.before(examples[0], 0),
               "--num-fewshot is 5; --fewshot-file has 4 examples besides the question");
}

// As Python's re.findall and re.sub give them.
TEST(Answer, IsWhatThePatternFinds) {
  const std::string text = "First 12, then $1,300.50 and -7. Done\n#### 42\n";
  const auto extract = [&](const std::string& pattern, bool last) {
    return AnswerRule({.pattern = pattern, .last = last}).extract(text);
  };
  EXPECT_EQ(extract("", false), "First 12, then $1,300.50 and -7. Done\n#### 42");
  EXPECT_EQ(extract(R"(#### (\-?[0-9\.\,]+))", false), "42");
  EXPECT_EQ(extract(R"((-?[$0-9.,]{2,})|(-?[0-9]+))", false), "12,");
  EXPECT_EQ(extract(R"((-?[$0-9.,]{2,})|(-?[0-9]+))", true), "42");
  EXPECT_EQ(extract("[a-z]+ ", true), "and");
  EXPECT_EQ(extract("x*", false), "");
  EXPECT_EQ(extract("no such thing", false), AnswerRule::kNoAnswer);
  EXPECT_EQ(AnswerRule({.pattern = "\u4F60*"}).extract("\u4F60\u4F60"), "\u4F60\u4F60");
  const AnswerRule plain({}),
      rule({.ignored = {",", R"(\$)", "(?s).*#### ", R"(\.$)"}, .ignore_case = true});
  EXPECT_TRUE(plain.same("a", "a "));
  EXPECT_FALSE(plain.same("a", "A"));
  EXPECT_TRUE(rule.same("$1,300.", "So.\nHence\n#### 1300"));
  EXPECT_TRUE(rule.same("Yes", "yES"));
  EXPECT_FALSE(rule.same("1.5", "15"));
  EXPECT_ERROR(AnswerRule({.pattern = "(a"}),
               "--answer-pattern: the regular expression \"(a\" is invalid at byte 2: missing "
               "closing parenthesis");
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
  const TaskItem example{.prompt = "the dog:", .choices = {}, .answers = {"brown"}, .until = {}};
  TaskOptions options{.few_shot = {.examples = {example}, .count = 1, .seed = {}},
                      .output = {},
                      .identity = {},
                      .progress = {}};
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
    const ItemResult result = tasks.run(item, 0, options);
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
  const TaskOptions options{.max_answer_tokens = 30, .output = {}, .identity = {}, .progress = {}};
  TaskItem item{.prompt = "the quick", .choices = {}, .answers = {"?"}, .until = {}};
  const std::string whole = tasks.run(item, 0, options).output;
  ASSERT_GT(whole.size(), 8u);
  EXPECT_FALSE(tasks.run(item, 0, options).right);
  // An ASCII character from the middle of it.
  const auto at =
      std::find_if(whole.begin() + 3, whole.end(), [](char c) { return c > ' ' && c < 0x7F; });
  ASSERT_NE(at, whole.end());
  const std::string stop(1, *at), head = whole.substr(0, whole.find(stop));
  item.until = {stop};
  item.answers = {"wrong", " " + head + "\n"};
  const ItemResult result = tasks.run(item, 0, options);
  EXPECT_EQ(result.output, head);
  EXPECT_TRUE(result.right);
  EXPECT_FALSE(result.is_choice);
  EXPECT_EQ(result.answer, AnswerRule({}).extract(head));
  TaskOptions with_pattern = options;
  with_pattern.answer.pattern = "^.{3}";
  item.answers = {head.substr(0, 3)};
  const ItemResult part = tasks.run(item, 0, with_pattern);
  EXPECT_EQ(part.output, head);
  EXPECT_EQ(part.right, part.answer == item.answers[0]);
}

TEST(Task, GoesOnWithAFileOfResults) {
  Fixture f;
  const TempDir dir;
  const std::string path = dir / "results.jsonl";
  std::vector<TaskItem> items = choice_items();
  items.push_back({.prompt = "dog", .choices = {}, .answers = {"x"}, .until = {"\n"}});
  TaskRunner tasks = f.tasks();
  std::vector<int64_t> done;
  TaskOptions options{.max_answer_tokens = 4,
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
