// Run configs: what is read, what is written, and one sentence for each mistake.
// SPDX-License-Identifier: Apache-2.0
#include "train/run_config.h"

#include <nlohmann/json.hpp>

#include "io/atomic.h"
#include "tests/unit/expect_error.h"

namespace hadal::train {
namespace {

using hadal::testing::TempDir;

class RunConfigTest : public ::testing::Test {
 protected:
  RunConfigTest() {
    io::Json root = io::read_json("configs/resume_check.json");
    io::write_json(path_, root);
  }
  RunConfig with(const std::vector<std::string>& assignments) const {
    return read_run_config(path_, assignments);
  }
  std::string at(const std::string& what) const { return path_ + ": " + what; }

  const TempDir dir_;
  const std::string path_ = dir_ / "run.json";
};

TEST_F(RunConfigTest, ReadsAndFillsIn) {
  const RunConfig run = with({});
  EXPECT_EQ(run.model.hidden_size, 64);
  EXPECT_EQ(run.data.held_out, 0.05);
  EXPECT_EQ(run.train.steps, 40);
  EXPECT_EQ(run.train.micro_batch_sequences, 4);
  EXPECT_EQ(run.train.lr.largest(), 2e-3);
  EXPECT_EQ(run.train.mtp_weight.start, 0.3);
  EXPECT_FALSE(run.train.guard.enabled);
  EXPECT_EQ(run.train.beta2, 0.95);  // by default
}

TEST_F(RunConfigTest, AssignmentsApplyInOrder) {
  const RunConfig run = with({"train.steps=5", "train.lr.peak=0.5", "data.text=a b.txt",
                              "train.steps=7", "model.rms_norm_eps=1e-5", "train.dtype=bf16"});
  EXPECT_EQ(run.train.steps, 7);
  EXPECT_EQ(run.train.lr.largest(), 0.5);
  EXPECT_EQ(run.data.text, "a b.txt");
  EXPECT_EQ(run.model.rms_norm_eps, 1e-5);
  EXPECT_EQ(run.train.dtype, DType::kBF16);
}

// 0 and leaving it out both mean the whole batch at once.
TEST_F(RunConfigTest, MicroBatchIsTheBatchByDefault) {
  EXPECT_EQ(with({"train.micro_batch_sequences=0"}).train.micro_batch_sequences, 16);
  EXPECT_EQ(with({"train.micro_batch_sequences=null"}).train.micro_batch_sequences, 16);
}

TEST_F(RunConfigTest, WhatIsWrittenReadsBack) {
  const RunConfig run =
      with({"train.lr.constant_steps=3", "train.seed=123456789012", "train.clip_norm=0",
            "train.bias_gamma={\"start\": 1e-3, \"pieces\": [{\"until_steps\": 30}, {\"to\": 0}]}",
            "train.batch_sequences={\"start\": 4, \"pieces\": [{\"shape\": \"linear\", \"to\": 16, "
            "\"until_tokens\": 9e4}]}",
            "train.guard={\"window\": 32}", "train.checkpoint_every=5", "train.moments=bf16",
            "train.ema_decay=0.99", "data.sources=[{\"shards\": \"s\", \"packing\": \"whole\"}]",
            "train.dtype=bf16", "data.tokenizer=t", "train.init_from=d", "train.eval_tokens=77"});
  const io::Json text = to_json(run);
  const RunConfig again = run_config_of(io::JsonObject(text, "again"));
  EXPECT_EQ(to_json(again), text);
  EXPECT_EQ(again.train.seed, 123456789012u);
  EXPECT_EQ(again.train.dtype, DType::kBF16);
  EXPECT_EQ(again.train.lr.pieces.size(), 3u);
  EXPECT_EQ(again.train.guard.window, 32);
  EXPECT_EQ(again.train.moments, DType::kBF16);
  EXPECT_EQ(again.data.sources.at(0).packing, Packing::kWhole);
  // And every key of the file is in it.
  const io::Json file = io::read_json(path_);
  for (const auto& [key, value] : file["train"].items()) EXPECT_TRUE(text["train"].contains(key));
}

TEST_F(RunConfigTest, UnknownKeysSuggestTheNearest) {
  EXPECT_ERROR(with({"train.step=5"}), at("train: unknown key \"step\"; did you mean \"steps\"?"));
  EXPECT_ERROR(with({"train.lr.peek=1"}),
               at("train: lr: unknown key \"peek\"; did you mean \"peak\"?"));
  EXPECT_ERROR(with({"data.heldout=0.1"}),
               at("data: unknown key \"heldout\"; did you mean \"held_out\"?"));
  EXPECT_ERROR(with({"trian.steps=5"}), at("unknown key \"trian\"; did you mean \"train\"?"));
  EXPECT_ERROR(with({"model.hiden_size=64"}),
               at("model: unknown key \"hiden_size\"; did you mean \"hidden_size\"?"));
}

TEST_F(RunConfigTest, BadAssignments) {
  EXPECT_ERROR(with({"train.steps"}),
               "--set train.steps: write it as key=value, for example train.steps=100");
  EXPECT_ERROR(with({"=5"}), "--set =5: write it as key=value, for example train.steps=100");
  EXPECT_ERROR(with({"train.=5"}), "--set train.=5: an empty key; write train.steps=100");
  EXPECT_ERROR(with({"train.steps.more=5"}),
               "--set train.steps.more=5: train.steps. leads to 40, which has no keys");
  EXPECT_ERROR(with({"train=5"}), at("train is 5; an object { } is needed"));
  EXPECT_ERROR(with({"train.steps=many"}), at("train: steps is \"many\"; an integer is needed"));
  EXPECT_ERROR(with({"train.steps="}), at("train: steps is \"\"; an integer is needed"));
  EXPECT_ERROR(with({"train.output=3"}), at("train: output is 3; a string is needed"));
}

TEST_F(RunConfigTest, BadLearningRates) {
  EXPECT_ERROR(with({"train.lr.peak=-1"}), at("train: lr: peak is -1; allowed: 0 to 10"));
  EXPECT_ERROR(with({"train.lr.peak=11"}), at("train: lr: peak is 11; allowed: 0 to 10"));
  EXPECT_ERROR(with({"train.lr.final=1"}), at("train: lr: final is 1; allowed: 0 to 0.002"));
  EXPECT_ERROR(with({"train.lr.peak=nan"}), at("train: lr: peak is \"nan\"; a number is needed"));
  EXPECT_ERROR(with({"train.lr.warmup_steps=-1"}),
               at("train: lr: warmup_steps is -1; allowed: 0 to 1099511627776"));
  EXPECT_EQ(with({"train.lr=1e-3"}).train.lr.largest(), 1e-3);
  EXPECT_ERROR(with({"train.lr=11"}), at("train: lr is 11; allowed: 0 to 10"));
}

// Each out of its range by as little as possible.
TEST_F(RunConfigTest, ValuesOutOfRange) {
  const struct {
    const char *assignment, *message;
  } cases[] = {
      {"train.steps=0", "train: steps is 0; allowed: 1 to 1099511627776"},
      {"train.sequence_length=1", "train: sequence_length is 1; allowed: 2 to 1048576"},
      {"train.batch_sequences=0", "train: batch_sequences is 0; allowed: 1 to 100000"},
      {"train.micro_batch_sequences=17", "train: micro_batch_sequences is 17; allowed: 1 to 16"},
      {"train.micro_batch_sequences=-1", "train: micro_batch_sequences is -1; allowed: 1 to 16"},
      {"train.threads=1025", "train: threads is 1025; allowed: 0 to 1024"},
      {"train.seed=-1", "train: seed is -1; allowed: 0 to 9223372036854775807"},
      {"train.beta1=1", "train: beta1 is 1; allowed: 0 to 0.999999"},
      {"train.beta2=-0.1", "train: beta2 is -0.1; allowed: 0 to 0.999999"},
      {"train.eps=0", "train: eps is 0; allowed: 1e-30 to 1"},
      {"train.weight_decay=-1", "train: weight_decay is -1; allowed: 0 to 100"},
      {"train.clip_norm=-1", "train: clip_norm is -1; allowed: 0 to 1e+09"},
      {"train.mtp_weight=-1", "train: mtp_weight is -1; allowed: 0 to 100"},
      {"train.balance_alpha=-1", "train: balance_alpha is -1; allowed: 0 to 100"},
      {"train.bias_gamma=2", "train: bias_gamma is 2; allowed: 0 to 1"},
      {"train.eval_every=-1", "train: eval_every is -1; allowed: 0 to 1099511627776"},
      {"train.checkpoint_every=-1", "train: checkpoint_every is -1; allowed: 0 to 1099511627776"},
      {"train.keep_checkpoints=-1", "train: keep_checkpoints is -1; allowed: 0 to 1048576"},
      {"train.dtype=f16", "train: dtype is \"f16\"; allowed: f32, bf16"},
      {"data.held_out=1", "data: held_out is 1; allowed: 0 to 0.9"},
      {"model.num_attention_heads=0", ""},
  };
  for (const auto& c : cases) {
    if (*c.message == '\0') {
      EXPECT_THROW(with({c.assignment}), Error);
    } else {
      EXPECT_ERROR(with({c.assignment}), at(c.message));
    }
  }
}

TEST_F(RunConfigTest, SequencesMustFitTheModel) {
  EXPECT_ERROR(with({"train.sequence_length=257"}),
               at("train.sequence_length is 257, more than model.max_position_embeddings = 256"));
  EXPECT_ERROR(with({"train.sequence_length=2", "model.num_nextn_predict_layers=2"}),
               at("train.sequence_length is 2; it must be above model.num_nextn_predict_layers = "
                  "2"));
}

TEST_F(RunConfigTest, LengthInTokens) {
  const std::string lr = "train.lr={\"start\": 1e-3, \"pieces\": []}";
  const RunConfig run = with({"train.steps=null", "train.tokens=3e6", lr});
  EXPECT_EQ(run.train.tokens, 3000000);
  EXPECT_FALSE(run.train.is_over({.steps = 1 << 30, .tokens = 2999999}));
  EXPECT_TRUE(run.train.is_over({.steps = 1, .tokens = 3000000}));
  EXPECT_ERROR(with({"train.tokens=5", lr}),
               at("train: the run has a length in steps and in tokens; give one of them"));
  EXPECT_ERROR(
      with({"train.steps=null", "train.tokens=5"}),
      at("train: lr decays over train.steps, and this run is measured in tokens; give lr as "
         "start and pieces"));
}

// The report's ramp, 3,072 to 15,360 over 469 B tokens, in whole micro-batches.
TEST_F(RunConfigTest, TheBatchGrows) {
  TrainConfig t;
  t.batch_sequences = Schedule(3072);
  t.batch_sequences.pieces = {{.shape = Schedule::Shape::kLinear,
                               .to = 15360,
                               .unit = Schedule::Unit::kTokens,
                               .until = 469000000000}};
  t.micro_batch_sequences = 16;
  EXPECT_EQ(t.batch_of({.steps = 0, .tokens = 0}), 3072);
  EXPECT_EQ(t.batch_of({.steps = 9, .tokens = 234500000000}), 9216);
  EXPECT_EQ(t.batch_of({.steps = 9, .tokens = 235000000000}), 9216);  // 9,229 sequences, cut
  EXPECT_EQ(t.batch_of({.steps = 9, .tokens = 469000000000}), 15360);
  EXPECT_EQ(t.batch_of({.steps = 9, .tokens = 999000000000}), 15360);
}

TEST_F(RunConfigTest, MixturesAndGuards) {
  const RunConfig run =
      with({"data.sources=[{\"shards\": \"a\", \"weight\": 2}, {\"shards\": \"b\", "
            "\"cross_document_attention\": false}]"});
  ASSERT_EQ(run.data.sources.size(), 2u);
  EXPECT_EQ(run.data.sources[0].weight, 2.0);
  EXPECT_TRUE(run.data.sources[0].cross_document_attention);
  EXPECT_FALSE(run.data.sources[1].cross_document_attention);
  const std::string first = "data: sources[0]: ";
  EXPECT_ERROR(with({"data.sources=[{\"weight\": 1}]"}), at(first + "shards is missing; add it"));
  EXPECT_ERROR(with({"data.sources=[{\"shards\": \"a\", \"weight\": 0}]"}),
               at(first + "weight is 0; allowed: 1e-09 to 1e+09"));
  EXPECT_ERROR(with({"data.sources=[{\"shards\": \"a\", \"packing\": \"tight\"}]"}),
               at(first + "packing is \"tight\"; allowed: stream, whole"));
  EXPECT_ERROR(with({"data.text=t", "data.sources=[{\"shards\": \"a\"}]"}),
               at("data: there are a text and sources; give one of them"));
  EXPECT_ERROR(with({"train.guard={}", "train.checkpoint_every=0"}),
               at("train: guard rolls back to checkpoints, and checkpoint_every is 0; set it"));
  EXPECT_ERROR(with({"train.guard={\"window\": 3}"}),
               at("train: guard: window is 3; allowed: 4 to 1048576"));
  EXPECT_ERROR(with({"train.ema_decay=1"}), at("train: ema_decay is 1; allowed: 0 to 0.999999"));
  EXPECT_ERROR(with({"train.moments=f64"}), at("train: moments is \"f64\"; allowed: f32, bf16"));
  EXPECT_ERROR(with({"train.batch_sequences=1.5"}),
               at("train: batch_sequences is 1.5; it must be a whole number"));
}

// Pre-training at 128 tokens, then two extensions as in the report, 4.3.
TEST_F(RunConfigTest, Phases) {
  io::Json root = io::read_json(path_);
  const io::Json yarn = {{"rope_type", "yarn"},
                         {"rope_theta", 10000},
                         {"factor", 4},
                         {"original_max_position_embeddings", 256}};
  root["train"]["output"] = "runs/p";
  root["phases"] = {
      {{"name", "short"}},
      {{"name", "long"},
       {"model",
        {{"rope_parameters", yarn}, {"rope_theta", nullptr}, {"max_position_embeddings", 1024}}},
       {"train", {{"steps", 5}, {"sequence_length", 1024}, {"lr", 1e-4}}}}};
  io::write_json(path_, root);
  const std::vector<Phase> phases = read_phases(path_, {"train.seed=9"});
  ASSERT_EQ(phases.size(), 2u);
  EXPECT_EQ(phases[0].run.train.output, "runs/p/short");
  EXPECT_EQ(phases[0].run.train.init_from, "");
  EXPECT_EQ(phases[1].name, "long");
  EXPECT_EQ(phases[1].run.train.init_from, "runs/p/short/checkpoints/latest");
  EXPECT_EQ(phases[1].run.train.seed, 9u);
  EXPECT_EQ(phases[1].run.train.steps, 5);
  EXPECT_EQ(phases[1].run.train.lr.largest(), 1e-4);
  EXPECT_EQ(phases[1].run.model.rope.rope_type, "yarn");
  EXPECT_EQ(phases[0].run.model.rope.rope_type, "default");
  EXPECT_ERROR(with({}), path_ + " has phases where one run is needed");
  root["phases"][1]["train"]["stepz"] = 1;
  io::write_json(path_, root);
  EXPECT_ERROR(read_phases(path_, {}),
               at("phases[1]: train: unknown key \"stepz\"; did you mean \"steps\"?"));
  root["phases"] = {{{"name", "a/b"}}};
  io::write_json(path_, root);
  EXPECT_ERROR(read_phases(path_, {}),
               at("phases[0]: name is \"a/b\"; it must be the name of a directory"));
}

// configs/deepseek_v3_pretrain.json says what the report does, 4.2 and 4.3.
TEST(ReportsProcedure, IsAConfig) {
  const std::vector<Phase> phases = read_phases("configs/deepseek_v3_pretrain.json", {});
  ASSERT_EQ(phases.size(), 3u);
  const TrainConfig &first = phases[0].run.train, &second = phases[1].run.train,
                    &third = phases[2].run.train;
  EXPECT_EQ(first.tokens, 14800000000000);
  const Moment late{.steps = 230000, .tokens = 14700000000000};
  EXPECT_EQ(first.lr.at(late, late), 7.3e-6);
  EXPECT_EQ(first.mtp_weight.at(late, late), 0.1);
  EXPECT_EQ(first.bias_gamma.at(late, late), 0.0);
  EXPECT_EQ(first.batch_of({}), 3072);
  EXPECT_EQ(first.batch_of(late), 15360);
  EXPECT_EQ(phases[0].run.model.rope.rope_type, "default");
  EXPECT_EQ(phases[1].run.model.rope.factor, 40.0);
  // Each phase of an extension has the tokens of a step before it, about 62.9 M.
  EXPECT_EQ(second.sequence_length * second.batch_of({}), 62914560);
  EXPECT_EQ(third.sequence_length * third.batch_of({}), 62914560);
  EXPECT_EQ(first.sequence_length * first.batch_of(late), 62914560);
  EXPECT_EQ(third.steps, 1000);
  EXPECT_EQ(third.lr.largest(), 7.3e-6);
}

TEST_F(RunConfigTest, MissingParts) {
  io::write_file_atomic(path_, "{}");
  EXPECT_ERROR(with({}), at("model is missing; add it"));
  io::write_file_atomic(path_, "{\"model\": {}, \"train\": {");
  EXPECT_THROW(with({}), Error);
  EXPECT_ERROR(read_run_config(dir_ / "none.json", {}),
               "cannot open " + dir_ / "none.json" + ": No such file or directory; check the path");
  io::Json root = io::read_json("configs/resume_check.json");
  root["train"].erase("output");
  io::write_json(path_, root);
  EXPECT_ERROR(with({}), at("train: output is missing; add it"));
}

}  // namespace
}  // namespace hadal::train
