// Whole runs: stopping and going on gives the same bits, and each wrong start is one sentence.
// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/atomic.h"
#include "io/bpe_train.h"
#include "io/hf.h"
#include "tests/unit/train.h"
#include "train/prepare.h"

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
  // 60 steps with a guard.
  RunConfig guarded(const std::string& name, int64_t checkpoint_every) const {
    RunConfig r = run(name);
    r.train.steps = 60;
    r.train.lr = Schedule(1e-2);
    r.train.guard = {.enabled = true, .spike_sigma = 6.0, .window = 24, .max_skips = 2};
    r.train.checkpoint_every = checkpoint_every;
    return r;
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
  next.train.lr = Schedule(0.0);
  next.train.bias_gamma = Schedule(0.0);
  train(next);
  EXPECT_TRUE(file(next, "model.safetensors") == file(base, "model.safetensors"));
  RunConfig other = run("other");
  other.train.init_from = next.train.init_from;
  other.model.rms_norm_eps = 1e-5;
  EXPECT_ERROR(train(other),
               "train.init_from: " + other.train.init_from +
                   " has another model config than this run; copy its config.json "
                   "into \"model\" (only rope and max_position_embeddings may differ)");
}

TEST_F(TrainerTest, WrongStartsAreSentences) {
  RunConfig r = run("r");
  r.data.text = "";
  EXPECT_ERROR(train(r), "data.text is empty; name a text file, or list data.sources");
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

// The extension of the context (report, 4.3): the same weights, positions turned by YaRN.
TEST_F(TrainerTest, InitFromMayExtendTheContext) {
  const RunConfig base = run("base");
  train(base);
  RunConfig next = run("next");
  next.train.init_from = base.train.output + "/checkpoints/latest";
  next.model.rope.rope_type = "yarn";
  next.model.rope.factor = 4.0;
  next.model.rope.original_max_position_embeddings = base.model.max_position_embeddings;
  next.model.max_position_embeddings = 4 * base.model.max_position_embeddings;
  next.train.sequence_length = 33;
  EXPECT_TRUE(train(next).finished);
}

TEST_F(TrainerTest, WritesAReportWhenAskedAndAtTheEnd) {
  RunConfig r = run("r");
  int asked = 0;
  const TrainOptions options{.resume = false,
                             .should_stop =
                                 [&] {
                                   if (asked < 4) {
                                     EXPECT_FALSE(fs::exists(r.train.output + "/report.html"));
                                   }
                                   return false;
                                 },
                             .should_report = [&] { return ++asked == 4; }};
  train(r, options);
  EXPECT_TRUE(fs::exists(r.train.output + "/report.html"));
  EXPECT_TRUE(fs::exists(r.train.output + "/tensorboard/events.out.tfevents.0.hadal"));
}

// All of the procedure at once, stopped at every step.
TEST_F(TrainerTest, AScheduledRunFromAMixtureGoesOnExactly) {
  const auto make = [&](const std::string& name, io::DocumentSplit split) {
    PrepareConfig c;
    c.inputs = {dir_ / "text.txt"};
    c.tokenizer = dir_.path();
    c.output = dir_ / name;
    c.split = split;
    c.held_out = 0.2;
    c.part_bytes = 200;
    prepare(machine_.ctx, c, [](const PrepareProgress&) {});
  };
  std::string lines;
  for (int i = 0; i < 40; ++i) lines += concat("line ", i * i % 17, " of the text; \n");
  io::write_file_atomic(dir_ / "text.txt", lines);
  make("a", io::DocumentSplit::kLine);
  make("b", io::DocumentSplit::kFile);
  const auto configured = [&](const std::string& name) {
    RunConfig r = run(name);
    r.data.text.clear();
    r.data.sources = {{.shards = dir_ / "a",
                       .weight = 2.0,
                       .packing = Packing::kWhole,
                       .cross_document_attention = false},
                      {.shards = dir_ / "a", .weight = 1.0}};
    TrainConfig& t = r.train;
    t.steps = 0, t.tokens = 500;
    t.batch_sequences.start = 2;
    t.batch_sequences.pieces = {{.shape = Schedule::Shape::kLinear,
                                 .to = 8,
                                 .unit = Schedule::Unit::kTokens,
                                 .until = 300}};
    t.lr = Schedule(0.0);
    t.lr.pieces = {{.shape = Schedule::Shape::kLinear, .to = 1e-2, .until = 4},
                   {.keeps = true, .unit = Schedule::Unit::kTokens, .until = 250},
                   {.shape = Schedule::Shape::kCosine,
                    .to = 1e-3,
                    .unit = Schedule::Unit::kTokens,
                    .until = 450},
                   {.to = 1e-4, .until = Schedule::kForever}};
    t.moments = DType::kBF16;
    t.ema_decay = 0.9;
    t.guard = {.enabled = true, .spike_sigma = 50.0, .window = 8};
    t.checkpoint_every = 3;
    t.eval_every = 4;
    return r;
  };
  const RunConfig straight = configured("straight"), broken = configured("broken");
  const TrainReport report = train(straight);
  EXPECT_TRUE(report.finished);
  EXPECT_GT(report.steps, 8);
  EXPECT_GT(report.held_out_bits_per_byte, 0.1);
  bool resume = false;
  for (TrainReport r; !r.finished; resume = true) {
    int steps = 0;
    r = train(broken, {.resume = resume, .should_stop = [&] { return ++steps == 2; }});
  }
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "ema/model.safetensors"})
    EXPECT_TRUE(file(broken, name) == file(straight, name)) << name;
  EXPECT_EQ(metrics(broken), metrics(straight));
  // The batch grew, and the last rate is the tail's.
  const std::vector<io::Json> lines_of_run = metrics(straight);
  EXPECT_EQ(lines_of_run.front()["sequences"], 2);
  const io::Json& last = *(lines_of_run.end() - 2);
  EXPECT_EQ(last["sequences"], 8);
  EXPECT_EQ(last["lr"], 1e-4);
  EXPECT_GE(last["total_tokens"], 500);
  // The average is a checkpoint of its own, and not the weights.
  EXPECT_FALSE(file(straight, "ema/model.safetensors") == file(straight, "model.safetensors"));
  const io::HfCheckpoint average =
      io::open_checkpoint(straight.train.output + "/checkpoints/latest/ema");
  EXPECT_EQ(average.config.hidden_size, straight.model.hidden_size);
}

// Twelve sequences whose targets are wrong: skipped, then undone, then left behind. Going on from a
// stop inside, before and after the roll-back gives the same run.
TEST_F(TrainerTest, ASpikeIsSkippedAndUndone) {
  ASSERT_EQ(setenv("HADAL_SABOTAGE", "spike", 1), 0);
  const RunConfig straight = guarded("straight", 10), broken = guarded("broken", 10);
  const TrainReport report = train(straight);
  EXPECT_EQ(report.steps, 60);
  // Sequences 64 to 75 are those of steps 33 to 38: three of these steps are bad, then again three
  // after the checkpoint of step 30. Their lines are cut off, those of the roll-backs stay.
  std::vector<io::Json> events;
  for (const io::Json& line : metrics(straight)) {
    EXPECT_FALSE(line.contains("skipped"));
    if (line.contains("event")) events.push_back(line);
  }
  EXPECT_EQ(events, (std::vector<io::Json>{{{"step", 31}, {"event", "roll_back"}, {"from", 35}},
                                           {{"step", 31}, {"event", "roll_back"}, {"from", 33}}}));
  bool resume = false;
  for (TrainReport r; !r.finished; resume = true) {
    int steps = 0;
    r = train(broken, {.resume = resume, .should_stop = [&] { return ++steps == 17; }});
  }
  unsetenv("HADAL_SABOTAGE");
  EXPECT_TRUE(file(broken, "model.safetensors") == file(straight, "model.safetensors"));
  EXPECT_EQ(metrics(broken), metrics(straight));
}

// The start is a checkpoint, so that a spike before the first one of `checkpoint_every` ends no
// run.
TEST_F(TrainerTest, AnEarlySpikeGoesBackToTheStart) {
  const RunConfig r = guarded("r", 50);
  ASSERT_EQ(setenv("HADAL_SABOTAGE", "spike", 1), 0);
  const TrainReport report = train(r);
  unsetenv("HADAL_SABOTAGE");
  EXPECT_TRUE(report.finished);
  const std::vector<io::Json> lines = metrics(r);
  EXPECT_EQ(lines.front(), (io::Json{{"step", 1}, {"event", "roll_back"}, {"from", 35}}));
  EXPECT_EQ(lines[1]["step"], 1);
}

TEST_F(TrainerTest, ASpikeAfterTheLastCheckpointThatIsKeptIsASentence) {
  RunConfig r = guarded("r", 1);
  r.train.keep_checkpoints = 1;
  ASSERT_EQ(setenv("HADAL_SABOTAGE", "spike", 1), 0);
  EXPECT_ERROR(
      train(r),
      "the loss spiked at step 33 and " + r.train.output +
          " keeps no checkpoint from before it to go back to; raise train.keep_checkpoints");
  unsetenv("HADAL_SABOTAGE");
}

TEST(RecipeOf, FollowsItsSchedules) {
  TrainConfig t;
  t.lr = warmup_cosine({.peak = 1e-3, .warmup_steps = 10}, 100);
  t.mtp_weight = Schedule(0.3);
  t.mtp_weight.pieces = {{.keeps = true, .until = 49}, {.to = 0.1, .until = Schedule::kForever}};
  t.bias_gamma = Schedule(0.001);
  t.bias_gamma.pieces = {{.keeps = true, .unit = Schedule::Unit::kTokens, .until = 890},
                         {.to = 0.0, .until = Schedule::kForever}};
  t.weight_decay = 0.2, t.clip_norm = 0.5, t.balance_alpha = Schedule(0.7);
  const auto at = [&](int64_t step) {
    return recipe_of(t, {.steps = step - 1, .tokens = 10 * (step - 1)},
                     {.steps = step, .tokens = 10 * step});
  };
  EXPECT_EQ(at(49).mtp_weight, 0.3);
  EXPECT_EQ(at(50).mtp_weight, 0.1);
  EXPECT_EQ(at(89).bias_gamma, 0.001);
  EXPECT_EQ(at(90).bias_gamma, 0.0);
  EXPECT_EQ(at(1).lr, 1e-4);
  EXPECT_EQ(at(1).weight_decay, 0.2);
  EXPECT_EQ(at(1).clip_norm, 0.5);
  EXPECT_EQ(at(1).balance_alpha, 0.7);
}

}  // namespace
}  // namespace hadal::train
