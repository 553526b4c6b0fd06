// hadal data and hadal report: shards that survive kill -9, refusals, training from them.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>

#include "tests/cli/run.h"

namespace hadal::test {
namespace {

namespace fs = std::filesystem;

// A text of 3,000 paragraphs and a tokenizer of it.
class Data : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    uint32_t state = 7;
    for (int i = 0; i < 3000; ++i) {
      for (int word = 0; word < 12; ++word) {
        state = state * 1664525U + 1013904223U;
        text +=
            std::string(1 + (state >> 24) % 3, static_cast<char>('a' + (state >> 16) % 9)) + " ";
      }
      text += ".\n\n";
    }
    write_text(dir_ / "text.txt", text);
    const Result r = run({"tokenizer", "train", "--input", dir_ / "text.txt", "--vocab-size", "290",
                          "--output", dir_ / "tok"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  Arguments prepare(const std::string& output) const {
    return {"data",        "prepare",     dir_ / "text.txt",
            "--tokenizer", dir_ / "tok",  "--output",
            dir_ / output, "--documents", "paragraph",
            "--held-out",  "0.1",         "--part-megabytes",
            "0.01",        "--threads",   "1"};
  }
  Arguments train(const Arguments& more = {}) const {
    Arguments all = {"train", "configs/resume_check.json"};
    for (const std::string& assignment :
         {"data.sources=[{\"shards\": \"" + dir_ / "d\", \"cross_document_attention\": false}]",
          "data.tokenizer=\"" + dir_ / "tok\"", "train.output=\"" + dir_ / "out\"",
          std::string("train.sequence_length=16"), std::string("train.batch_sequences=2"),
          std::string("train.micro_batch_sequences=1"), std::string("train.threads=1"),
          std::string("train.steps=3")})
      all.insert(all.end(), {"--set", assignment});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  static std::string content(const std::string& dir) {
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(dir))
      if (!entry.path().filename().string().starts_with("."))
        files.push_back(entry.path().filename().string() + read_text(entry.path()));
    std::sort(files.begin(), files.end());
    std::string all;
    for (const std::string& file : files) all += file;
    return all;
  }
  const TempDir dir_;
};

TEST_F(Data, GoesOnAfterKill) {
  const Result whole = run(prepare("whole"));
  ASSERT_EQ(whole.status, 0) << whole.err;
  EXPECT_TRUE(whole.out.starts_with(dir_ / "whole" + ": ")) << whole.out;
  {
    Child child(prepare("killed"), dir_ / "log");
    ASSERT_TRUE(wait_until([&] { return fs::exists(dir_ / "killed/train-000002.tokens"); }));
    child.kill(SIGKILL);
    child.wait();
  }
  EXPECT_EQ(run(prepare("killed")).status, 0);
  EXPECT_TRUE(content(dir_ / "killed") == content(dir_ / "whole"));
  EXPECT_EQ(run({"data", "check", dir_ / "killed", "--json"}).status, 0);
}

TEST_F(Data, RefusesWhatItCannotDo) {
  const auto prepare_with = [&](const std::string& flag, const std::string& value) {
    return Arguments{"data",        "prepare",    dir_ / "text.txt",
                     "--tokenizer", dir_ / "tok", "--output",
                     dir_ / "d",    flag,         value};
  };
  expect_refused(prepare_with("--documents", "page"),
                 "--documents is page; allowed: file, line, paragraph");
  expect_refused(prepare_with("--fim-rate", "2"), "--fim-rate is 2; allowed: 0 to 1");
  expect_refused(prepare_with("--part-megabytes", "0"),
                 "--part-megabytes is 0; allowed: 1e-06 to 100000");
  expect_refused(
      {"data", "prepare", "/absent.txt", "--tokenizer", dir_ / "tok", "--output", dir_ / "d"},
      "cannot open /absent.txt: No such file or directory; check the path");
  expect_refused(
      {"data", "check", dir_ / "none"},
      dir_ / "none" + " holds no dataset.json: make one with hadal data prepare, or let it finish");
  expect_refused({"report", dir_ / "none"}, "cannot open " + dir_ / "none/metrics.jsonl" +
                                                ": No such file or directory; check the path");
  EXPECT_FALSE(fs::exists(dir_ / "d"));
}

TEST_F(Data, TrainsFromShardsAndRefusesDamagedOnes) {
  ASSERT_EQ(run(prepare("d")).status, 0);
  const Result r = run(train());
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("data: " + dir_ / "d" + ": 100.0% of sequences; "), std::string::npos)
      << r.out;
  EXPECT_TRUE(fs::exists(dir_ / "out/report.html"));
  fs::remove(dir_ / "out/report.html");
  EXPECT_EQ(run({"report", dir_ / "out"}).status, 0);
  EXPECT_TRUE(fs::exists(dir_ / "out/report.html"));

  const std::string shard = dir_ / "d/train-000001.tokens";
  const auto size = fs::file_size(shard);
  fs::resize_file(shard, size - 2);
  const std::string message =
      concat(shard, " has ", size - 2, " bytes where its header says ", size,
             ": it is cut short or damaged; make it again with hadal data "
             "prepare");
  expect_refused(train({"--resume"}), message);
  expect_refused({"data", "check", dir_ / "d"}, message);
  // And those of another tokenizer.
  ASSERT_EQ(run({"tokenizer", "train", "--input", dir_ / "text.txt", "--vocab-size", "280",
                 "--output", dir_ / "tok"})
                .status,
            0);
  const Result foreign = run(train({"--resume"}));
  EXPECT_EQ(foreign.status, 1);
  EXPECT_NE(foreign.err.find("was made with another tokenizer (290 tokens, hash "),
            std::string::npos)
      << foreign.err;
}

// While it runs, a signal makes the page; training goes on.
TEST_F(Data, ReportsOnSigusr1) {
  ASSERT_EQ(run(prepare("d")).status, 0);
  Child child(train({"--set", "train.steps=1000000"}), dir_ / "log");
  ASSERT_TRUE(wait_until([&] { return fs::exists(dir_ / "out/metrics.jsonl"); }));
  EXPECT_FALSE(fs::exists(dir_ / "out/report.html"));
  child.kill(SIGUSR1);
  ASSERT_TRUE(wait_until([&] { return fs::exists(dir_ / "out/report.html"); }));
  child.kill(SIGTERM);
  EXPECT_EQ(child.wait(), 0) << read_text(dir_ / "log.err");
}

}  // namespace
}  // namespace hadal::test
