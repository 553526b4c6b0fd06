// Whole runs: stopping and going on gives the same bits, and each wrong start is one sentence.
// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/atomic.h"
#include "io/bpe_train.h"
#include "io/hf.h"
#include "tests/unit/train.h"

namespace hadal::train {
namespace {

using hadal::testing::TempDir;
namespace fs = std::filesystem;

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() {
    std::string text;
    for (int i = 0; i < 60; ++i) text += concat("line ", i * i % 17, " of the text; ");
    io::write_file_atomic(dir_ / "text.txt", text);
    io::train_bpe(text, 270).save(dir_ / "tokenizer.json");
  }
  RunConfig run(const std::string& name) const {
    RunConfig run = test::tiny_run(dir_ / name);
    run.model.vocab_size = 270;
    run.data = {.text = dir_ / "text.txt", .tokenizer = dir_.path(), .held_out = 0.1};
    return run;
  }
  TrainReport train(const RunConfig& run, const TrainOptions& options = {}) {
    return run_training(machine_.ctx, run, options);
  }
  // The lines of metrics.jsonl without their times.
  static std::vector<io::Json> metrics(const RunConfig& run) {
    std::istringstream text(io::read_file(run.train.output + "/metrics.jsonl", 1 << 20));
    std::vector<io::Json> lines;
    for (std::string line; std::getline(text, line);) {
      lines.push_back(io::parse_json(line, "metrics.jsonl"));
      lines.back().erase("time");
    }
    return lines;
  }
  static std::string file(const RunConfig& run, const std::string& name) {
    return io::read_file(run.train.output + "/checkpoints/latest/" + name, 1 << 24);
  }

  const TempDir dir_;
  test::Machine machine_{1};
};

TEST_F(TrainerTest, StoppedAndResumedIsTheSameRun) {
  RunConfig straight = run("straight"), broken = run("broken");
  straight.train.eval_every = broken.train.eval_every = 3;
  const TrainReport report = train(straight);
  EXPECT_TRUE(report.finished);
  EXPECT_EQ(report.steps, 6);
  EXPECT_GT(report.held_out_loss, 1.0);
  EXPECT_GT(report.held_out_bits_per_byte, 0.5);
  int steps = 0;
  const TrainOptions stop{.resume = false, .should_stop = [&] { return ++steps == 4; }};
  const TrainReport first = train(broken, stop);
  EXPECT_FALSE(first.finished);
  EXPECT_EQ(first.steps, 4);
  const TrainReport second = train(broken, {.resume = true, .should_stop = {}});
  EXPECT_TRUE(second.finished);
  EXPECT_EQ(second.held_out_loss, report.held_out_loss);
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "tokenizer.json"})
    EXPECT_TRUE(file(broken, name) == file(straight, name)) << name;
  EXPECT_EQ(metrics(broken), metrics(straight));
}

TEST_F(TrainerTest, ResumingAFinishedRunOnlyEvaluates) {
  const RunConfig r = run("r");
  const TrainReport report = train(r);
  const std::string weights = file(r, "model.safetensors");
  const TrainReport again = train(r, {.resume = true, .should_stop = {}});
  EXPECT_EQ(again.steps, 6);
  EXPECT_EQ(again.held_out_loss, report.held_out_loss);
  EXPECT_EQ(file(r, "model.safetensors"), weights);
}

TEST_F(TrainerTest, InitFromTakesTheWeightsOnly) {
  const RunConfig base = run("base");
  train(base);
  RunConfig next = run("next");
  next.train.init_from = base.train.output + "/checkpoints/latest";
  next.train.steps = 1;
  next.train.lr.peak = 0.0, next.train.lr.final = 0.0;
  next.train.bias_gamma = 0.0;
  train(next);
  EXPECT_TRUE(file(next, "model.safetensors") == file(base, "model.safetensors"));
  RunConfig other = run("other");
  other.train.init_from = next.train.init_from;
  other.model.rms_norm_eps = 1e-5;
  EXPECT_ERROR(train(other), "train.init_from: " + other.train.init_from +
                                 " has another model config than this run; copy its config.json "
                                 "into \"model\"");
}

TEST_F(TrainerTest, WrongStartsAreSentences) {
  RunConfig r = run("r");
  r.data.text = "";
  EXPECT_ERROR(train(r), "data.text is empty; name a text file");
  r = run("r");
  r.data.tokenizer = "";
  EXPECT_ERROR(train(r), "data.tokenizer is empty; make one with: hadal tokenizer train");
  r = run("r");
  r.model.vocab_size = 269;
  EXPECT_ERROR(train(r), dir_.path() + " has 270 tokens, more than model.vocab_size = 269");
  r = run("r");
  r.data.text = dir_ / "empty.txt";
  io::write_file_atomic(r.data.text, "");
  EXPECT_ERROR(train(r), dir_ / "empty.txt" + " is empty; give a text to train on");
  io::write_file_atomic(r.data.text, "short");
  r.data.held_out = 0.0;
  r.train.sequence_length = 30;
  EXPECT_ERROR(train(r),
               "the training text has 5 tokens, fewer than one sequence of 30; give more text or "
               "lower train.sequence_length");
  // None of them left anything behind.
  EXPECT_FALSE(fs::exists(r.train.output));
}

TEST_F(TrainerTest, ResumingNeedsACheckpoint) {
  const RunConfig r = run("r");
  EXPECT_ERROR(
      train(r, {.resume = true, .should_stop = {}}),
      r.train.output + " has no checkpoint to resume from; start the run without --resume");
}

TEST_F(TrainerTest, ARunIsNotOverwritten) {
  RunConfig r = run("r");
  r.train.steps = 1;
  train(r);
  const std::string newest = r.train.output + "/checkpoints/step_00000001";
  EXPECT_ERROR(train(r), r.train.output + " already holds a run (" + newest +
                             "); add --resume to go on with it, or choose another train.output");
}

// Weights that give no finite gradient: the run ends, and writes no checkpoint of it.
TEST_F(TrainerTest, ANonFiniteGradientEndsTheRun) {
  const RunConfig base = run("base");
  ParamStore store(machine_.ctx, base.model, DType::kF32, ParamStore::Extent::kAll);
  init_params(machine_.ctx, base.model, 1, store.tree);
  store.tree.norm.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  fs::create_directory(dir_ / "bad");
  io::save_checkpoint(dir_ / "bad", base.model, store.tree, {});
  RunConfig r = run("r");
  r.train.init_from = dir_ / "bad";
  std::string message;
  try {
    train(r);
  } catch (const Error& error) {
    message = error.what();
  }
  EXPECT_EQ(message.rfind("step 1: the gradient norm is ", 0), 0u) << message;
  EXPECT_FALSE(fs::exists(r.train.output + "/checkpoints"));
  EXPECT_TRUE(metrics(r).empty());
}

TEST_F(TrainerTest, NoHeldOutTextIsNoEvaluation) {
  RunConfig r = run("r");
  r.data.held_out = 0.0;
  r.train.eval_every = 1;
  EXPECT_EQ(train(r).held_out_loss, 0.0);
  EXPECT_EQ(metrics(r).size(), 6u);
}

TEST(RecipeOf, SwitchesAtItsSteps) {
  TrainConfig t;
  t.steps = 100;
  t.mtp_weight = 0.3, t.mtp_weight_final = 0.1, t.mtp_weight_final_step = 50;
  t.bias_gamma = 0.001, t.bias_gamma_zero_step = 90;
  t.weight_decay = 0.2, t.clip_norm = 0.5, t.balance_alpha = 0.7;
  EXPECT_EQ(recipe_of(t, 49).mtp_weight, 0.3);
  EXPECT_EQ(recipe_of(t, 50).mtp_weight, 0.1);
  EXPECT_EQ(recipe_of(t, 89).bias_gamma, 0.001);
  EXPECT_EQ(recipe_of(t, 90).bias_gamma, 0.0);
  EXPECT_EQ(recipe_of(t, 1).lr, learning_rate(t.lr, 1, 100));
  EXPECT_EQ(recipe_of(t, 1).weight_decay, 0.2);
  EXPECT_EQ(recipe_of(t, 1).clip_norm, 0.5);
  EXPECT_EQ(recipe_of(t, 1).balance_alpha, 0.7);
  t.mtp_weight_final_step = t.bias_gamma_zero_step = 0;  // never
  EXPECT_EQ(recipe_of(t, 100).mtp_weight, 0.3);
  EXPECT_EQ(recipe_of(t, 100).bias_gamma, 0.001);
}

}  // namespace
}  // namespace hadal::train
