// hadal eval: what it prints, and what it refuses.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "tests/cli/base_copy.h"
#include "tests/unit/base_model.h"

namespace hadal::test {
namespace {

using nlohmann::json;

std::string model_in(const TempDir& dir) {
  const std::string model = copy_of_base(dir);
  testing::chat_tokenizer().save(model + "/tokenizer.json");
  return model;
}

TEST(Eval, PrintsThePerplexityOfAText) {
  const TempDir dir;
  const std::string model = model_in(dir), text = dir / "text.txt";
  std::string words;
  for (int i = 0; i < 40; ++i) words += "the quick brown fox jumps over the lazy dog\n";
  write_text(text, words);
  const Arguments arguments = {"eval",     "--model", model,      "--text", text,
                               "--window", "64",      "--stride", "32"};
  Arguments as_json = arguments;
  as_json.emplace_back("--json");
  const Result j = run(as_json);
  ASSERT_EQ(j.status, 0) << j.err;
  const json root = json::parse(j.out);
  EXPECT_EQ(root["bytes"], words.size());
  EXPECT_EQ(root["window"], 64);
  EXPECT_EQ(root["stride"], 32);
  const double nats = root["nats_per_token"], tokens = root["tokens"];
  EXPECT_GT(nats, 1.0);
  EXPECT_NEAR(root["perplexity"], std::exp(nats), 1e-6 * std::exp(nats));
  EXPECT_NEAR(root["bits_per_byte"],
              nats * tokens / std::log(2.0) / static_cast<double>(words.size()), 1e-9);
  EXPECT_TRUE(root["nats_per_token_stderr"].is_number());
  const Result r = run(arguments);
  EXPECT_NE(r.out.find("bits per byte"), std::string::npos);
  EXPECT_EQ(r.err, "");
}

TEST(Eval, RunsATaskAndGoesOn) {
  const TempDir dir;
  const std::string model = model_in(dir), task = dir / "task.jsonl", output = dir / "out.jsonl";
  write_text(task,
             "{\"query\": \"the\", \"choices\": [\"quick\", \"dog\"], \"gold\": 0}\n"
             "{\"context\": \"some\", \"endings\": [\"more\", \"words\"], \"label\": \"1\"}\n"
             "{\"question\": \"who?\", \"answer\": \"fox\", \"until\": [\"\\n\"]}\n");
  const Arguments arguments = {
      "eval",          "--model", model,      "--task", task,     "--fewshot-file",      task,
      "--num-fewshot", "1",       "--output", output,   "--json", "--max-answer-tokens", "5"};
  const Result r = run(arguments);
  ASSERT_EQ(r.status, 0) << r.err;
  const json root = json::parse(r.out);
  EXPECT_EQ(root["items"], 3);
  for (const char* name : {"acc", "acc_norm", "exact_match"}) EXPECT_TRUE(root[name].is_number());
  EXPECT_TRUE(root["acc_stderr"].is_number());
  EXPECT_TRUE(root["exact_match_stderr"].is_null());  // of one item
  const std::string lines = read_text(output);
  EXPECT_EQ(run(arguments).out, r.out);
  EXPECT_EQ(read_text(output), lines);
}

// Killed in the middle, and started again: the numbers of a run that nobody disturbed.
TEST(Eval, GoesOnAfterBeingKilled) {
  const TempDir dir;
  const std::string model = model_in(dir), text = dir / "text.jsonl", output = dir / "out.jsonl";
  std::string lines;
  for (int i = 0; i < 10; ++i) {
    lines += "{\"text\": \"";
    for (int j = 0; j < 12; ++j) lines += "the quick brown fox jumps over the lazy dog; ";
    lines += "\"}\n";
  }
  write_text(text, lines);
  Arguments arguments = {"eval", "--model",  model, "--text",    text, "--window",
                         "16",   "--stride", "2",   "--threads", "1",  "--json"};
  const Result whole = run(arguments);
  ASSERT_EQ(whole.status, 0) << whole.err;
  EXPECT_EQ(json::parse(whole.out)["documents"], 10);
  arguments.insert(arguments.end(), {"--output", output});
  const auto num_lines = [&] {
    const std::string written = read_text(output);
    return std::count(written.begin(), written.end(), '\n');
  };
  for (int64_t least : {2, 30}) {
    Child child(arguments, dir / "log");
    EXPECT_TRUE(wait_until([&] { return num_lines() >= least; }));
    child.kill(SIGKILL);
    EXPECT_EQ(child.wait(), 128 + SIGKILL);
    EXPECT_GE(num_lines(), least);
  }
  const Result resumed = run(arguments);
  EXPECT_EQ(resumed.out, whole.out);
  EXPECT_EQ(run(arguments).out, whole.out);
  // Scores over another cache are others; they do not go into this file.
  arguments.insert(arguments.end(), {"--kv-cache", "fp8"});
  const Result other = run(arguments);
  EXPECT_EQ(other.status, 1);
  EXPECT_TRUE(other.err.starts_with("hadal: " + output)) << other.err;
}

TEST(Eval, RefusesWhatItCannotDo) {
  const TempDir dir;
  const std::string model = model_in(dir);
  expect_refused({"eval", "--model", model}, "give either --text FILE or --task FILE.jsonl");
  expect_refused({"eval", "--model", model, "--task", "x", "--window", "5"},
                 "--window and --stride are for --text");
  expect_refused({"eval", "--model", model, "--text", "x", "--limit", "3"},
                 "--fewshot-file and --limit are for --task");
  expect_refused({"eval", "--model", model, "--text", "x", "--answer-pattern", "y"},
                 "--answer-pattern and --ignore-pattern are for --task");
  expect_refused({"eval", "--model", model, "--task", "x", "--fewshot-seed", "1"},
                 "--fewshot-seed needs --num-fewshot");
  expect_refused({"eval", "--model", model, "--task", "x", "--answer-match", "best"},
                 "--answer-match is best; allowed: first, last");
  expect_refused({"eval", "--model", model, "--task", "x", "--num-fewshot", "2"},
                 "give --fewshot-file and --num-fewshot together");
  expect_refused({"eval", "--model", model, "--text", "x", "--window", "513"},
                 "--window is 513; allowed: 2 to max_position_embeddings = 512");
}

}  // namespace
}  // namespace hadal::test
