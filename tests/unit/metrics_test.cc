// metrics.jsonl: what a line holds, and what a resumed run keeps.
// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/atomic.h"
#include "tests/unit/expect_error.h"

namespace hadal::train {
namespace {

using hadal::testing::TempDir;

std::vector<io::Json> lines_of(const std::string& path) {
  std::istringstream text(io::read_file(path, 1 << 20));
  std::vector<io::Json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(io::parse_json(line, path));
  return lines;
}

StepResult result_of(int64_t step) {
  StepResult r;
  r.main = 2.0 / static_cast<double>(step);
  r.mtp = {3.0};
  r.balance = 1.25;
  r.grad_norm = 0.5;
  r.counts = {{3, 1, 0, 0}, {1, 1, 1, 1}};
  r.num_targets = 4;
  return r;
}

Metrics::StepLine line_of(int64_t step) {
  return {.done = {.steps = step, .tokens = 64 * step},
          .progress = static_cast<double>(step) / 5.0,
          .tokens = 64,
          .sequences = 2,
          .bytes_per_target = 4.0};
}

// Steps [first, last] and one evaluation at the end.
void write(const std::string& dir, int64_t first, int64_t last) {
  Metrics metrics(dir, first - 1);
  for (int64_t step = first; step <= last; ++step)
    metrics.step(line_of(step), result_of(step), {.lr = 0.01});
  metrics.evaluation(last, 2.0, 0.75, {2.5}, 0.5);
}

TEST(Metrics, ALineHoldsTheStep) {
  const TempDir dir;
  write(dir.path(), 1, 2);
  const std::vector<io::Json> lines = lines_of(dir / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 3u);
  const io::Json& line = lines[1];
  EXPECT_EQ(line["step"], 2);
  EXPECT_EQ(line["loss"], 1.0);
  EXPECT_NEAR(line["bits_per_byte"].get<double>(), 1.0 / std::log(2.0) / 4.0, 1e-15);
  EXPECT_EQ(line["mtp_loss"], io::Json({3.0}));
  EXPECT_EQ(line["balance_loss"], 1.25);
  EXPECT_EQ(line["grad_norm"], 0.5);
  EXPECT_EQ(line["lr"], 0.01);
  EXPECT_EQ(line["tokens"], 64);
  EXPECT_EQ(line["total_tokens"], 128);
  EXPECT_EQ(line["sequences"], 2);
  EXPECT_EQ(line["mtp_weight"], 0.3);
  EXPECT_FALSE(line.contains("skipped"));
  EXPECT_EQ(line["max_violation"], 1.0);  // the mean of 3 / 1 - 1 and 1 / 1 - 1
  EXPECT_EQ(line["expert_counts"], io::Json({{3, 1, 0, 0}, {1, 1, 1, 1}}));
  EXPECT_TRUE(line["time"].contains("tokens_per_second"));
  EXPECT_EQ(lines[2]["held_out_loss"], 2.0);
  EXPECT_EQ(lines[2]["held_out_bits_per_byte"], 0.75);
}

// Apart from the time, a run that went on from step 2 leaves the lines of a run without a break.
TEST(Metrics, ResumeCutsOffWhatCameAfterTheCheckpoint) {
  const TempDir dir;
  const auto all = [&](const std::string& name) {
    std::vector<io::Json> lines = lines_of(dir / (name + "/metrics.jsonl"));
    for (io::Json& line : lines) line.erase("time");
    return lines;
  };
  {
    std::filesystem::create_directory(dir / "cut");
    std::filesystem::create_directory(dir / "straight");
    Metrics metrics(dir / "cut", 0);
    for (int64_t step = 1; step <= 4; ++step)
      metrics.step(line_of(step), result_of(step), {.lr = 0.01});
  }
  std::ofstream(dir / "cut/metrics.jsonl", std::ios::app)
      << R"({"step": 5, "loss": 1)";  // half a line
  write(dir / "cut", 3, 5);
  write(dir / "straight", 1, 5);
  EXPECT_EQ(all("cut"), all("straight"));
}

// Both go back from step 4 to step 2; one is resumed there.
TEST(Metrics, ARollBackCutsOffAndTellsSo) {
  const TempDir dir;
  const auto first_try = [&] {
    Metrics metrics(dir.path(), 0);
    for (int64_t step = 1; step <= 4; ++step)
      metrics.step(line_of(step), result_of(step), {.lr = 0.01});
    metrics.rolled_back(4, 2);
  };
  first_try();
  const std::vector<io::Json> lines = lines_of(dir / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[1]["step"], 2);
  EXPECT_EQ(lines[2], io::Json({{"step", 3}, {"event", "roll_back"}, {"from", 4}}));
  { const Metrics resumed(dir.path(), 2); }
  EXPECT_EQ(lines_of(dir / "metrics.jsonl").size(), 2u);
}

TEST(Metrics, ANewRunCutsOffEverything) {
  const TempDir dir;
  write(dir.path(), 1, 3);
  std::ofstream(dir / "metrics.jsonl", std::ios::app) << "no JSON\n{}\n[1]\n";
  { const Metrics metrics(dir.path(), 0); }
  EXPECT_EQ(io::read_file(dir / "metrics.jsonl", 10), "");
}

TEST(Metrics, AMissingDirectoryIsASentence) {
  const TempDir dir;
  EXPECT_ERROR(Metrics(dir / "none", 0),
               "cannot write " + dir / "none/metrics.jsonl" + ": No such file or directory");
}

TEST(StepResult, MaxViolation) {
  StepResult r;
  EXPECT_EQ(r.max_violation(), 0.0);
  r.counts = {{0, 0}, {5, 5}};
  EXPECT_EQ(r.max_violation(), 0.0);
  r.counts = {{0, 10}, {5, 5}};
  EXPECT_EQ(r.max_violation(), 0.5);
}

}  // namespace
}  // namespace hadal::train
