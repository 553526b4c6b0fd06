// hadal train: refusals, a clean stop on SIGTERM, and checkpoints that survive kill -9 and a full
// disk.
// SPDX-License-Identifier: Apache-2.0
#include "tests/cli/train_fixture.h"

namespace hadal::test {
namespace {

constexpr const char* kConfig = kTrainConfig;

class Train : public TrainFixture {};

TEST_F(Train, RefusesUnknownKeysAndImpossibleValues) {
  const std::string where = std::string(kConfig) + ": ";
  expect_refused(train(set("train.step=1")),
                 where + "train: unknown key \"step\"; did you mean \"steps\"?");
  expect_refused(train(set("model.hidden_sise=64")),
                 where + "model: unknown key \"hidden_sise\"; did you mean \"hidden_size\"?");
  expect_refused(train(set("sead=1")), where + "unknown key \"sead\"; did you mean \"data\"?");
  expect_refused(train(set("train.steps=0")),
                 where + "train: steps is 0; allowed: 1 to 1099511627776");
  expect_refused(train(set("train.sequence_length=257")),
                 where +
                     "train.sequence_length is 257, more than model.max_position_embeddings = "
                     "256");
  expect_refused(train(set("train.dtype=f16")),
                 where + "train: dtype is \"f16\"; allowed: f32, bf16");
  expect_refused(train(set("model.num_attention_heads=0")),
                 where +
                     "model: num_key_value_heads is 4; hadal reads 0 only "
                     "(num_attention_heads: the latent is shared by all heads); choose another "
                     "checkpoint");
  expect_refused(train(set("train")),
                 "--set train: write it as key=value, for example train.steps=100");
  expect_refused({"train", "/absent.json"},
                 "cannot open /absent.json: No such file or directory; check the path");
  EXPECT_FALSE(fs::exists(output()));
}

TEST_F(Train, RefusesAnEmptyText) {
  const std::string empty = dir_ / "empty.txt";
  write_text(empty, "");
  const std::string message = empty + " is empty; give a text to train on";
  expect_refused(train(set("data.text=\"" + empty + "\"")), message);
  expect_refused(
      {"tokenizer", "train", "--input", empty, "--vocab-size", "280", "--output", dir_ / "t"},
      message);
  expect_refused(train(set("data.text=\"\"")),
                 "data.text is empty; name a text file, or list data.sources");
  write_text(empty, "abc");
  expect_refused(train(set("data.text=\"" + empty + "\"")),
                 "the training text has 3 tokens, fewer than one sequence of 16; give more text or "
                 "lower train.sequence_length");
}

TEST_F(Train, GoesOnOnlyWhenAskedTo) {
  ASSERT_EQ(run(train(set("train.steps=2"))).status, 0);
  expect_refused(train(set("train.steps=4")),
                 output() + " already holds a run (" + output() +
                     "/checkpoints/step_00000002); add --resume to go on with it, or choose "
                     "another train.output");
  expect_refused(train({"--resume", "--set", "model.n_group=1", "--set", "model.topk_group=1"}),
                 output() +
                     "/checkpoints/step_00000002 was written with another model config; "
                     "resume with that config, or start a new run with train.init_from");
}

TEST_F(Train, StopsCleanlyOnSigtermAndGoesOn) {
  const Arguments arguments = train(set("train.steps=1000000"));
  Child child(arguments, dir_ / "log");
  ASSERT_TRUE(wait_until([&] { return lines_of(output() + "/metrics.jsonl") >= 3; }));
  child.kill(SIGTERM);
  EXPECT_EQ(child.wait(), 0) << read_text(dir_ / "log.err");
  const int64_t steps = lines_of(output() + "/metrics.jsonl");
  std::string command = std::string("hadal train ") + kConfig;
  for (size_t i = 2; i < arguments.size(); ++i)
    command += arguments[i] == "--set" ? " --set" : " '" + arguments[i] + "'";
  EXPECT_EQ(last_line(read_text(dir_ / "log.out")),
            concat("stopped after step ", steps, "; go on with: ", command, " --resume"));
  EXPECT_TRUE(latest().ends_with(std::to_string(steps))) << latest();

  const Result r = run(train({"--resume", "--set", concat("train.steps=", steps + 2)}));
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("resuming from " + output() + "/checkpoints/step_"), std::string::npos);
  EXPECT_TRUE(last_line(r.out).starts_with(concat("trained ", steps + 2, " steps in "))) << r.out;
}

TEST_F(Train, SurvivesKillDuringCheckpoints) {
  ASSERT_EQ(run(train(set("train.steps=1"))).status, 0);
  for (int round = 0; round < 8; ++round) {
    Child child(
        train({"--set", "train.steps=1000000", "--set", "train.checkpoint_every=1", "--resume"}),
        dir_ / "log");
    const std::string before = latest();
    ASSERT_TRUE(wait_until([&] { return latest() != before; })) << read_text(dir_ / "log.err");
    std::this_thread::sleep_for(std::chrono::milliseconds(3 * round));
    child.kill(SIGKILL);
    ASSERT_EQ(child.wait(), 128 + SIGKILL);
    EXPECT_EQ(error_of_generate(), "") << "after round " << round;
  }
}

TEST_F(Train, SurvivesAFullDisk) {
  ASSERT_EQ(run(train(set("train.steps=2"))).status, 0);
  const std::string before = read_text(output() + "/checkpoints/latest/model.safetensors");
  Child child(train({"--resume", "--set", "train.steps=4"}), dir_ / "log", rlim_t{1} << 16);
  EXPECT_EQ(child.wait(), 1);
  EXPECT_EQ(read_text(dir_ / "log.err"),
            "hadal: cannot write " + output() +
                "/checkpoints/.step_00000004.tmp/model.safetensors: File too large; nothing was "
                "replaced: free space on that disk and try again\n");
  EXPECT_EQ(latest(), "step_00000002");
  EXPECT_EQ(read_text(output() + "/checkpoints/latest/model.safetensors"), before);
  EXPECT_EQ(error_of_generate(), "");
  EXPECT_FALSE(fs::exists(output() + "/checkpoints/.step_00000004.tmp"));
  EXPECT_EQ(run(train({"--resume", "--set", "train.steps=4"})).status, 0);
}

TEST_F(Train, RefusesADamagedCheckpoint) {
  ASSERT_EQ(run(train(set("train.steps=2"))).status, 0);
  const std::string file = output() + "/checkpoints/step_00000002/optimizer.safetensors";
  fs::resize_file(file, fs::file_size(file) - 4);
  const Result r = run(train({"--resume", "--set", "train.steps=4"}));
  EXPECT_EQ(r.status, 1);
  EXPECT_TRUE(r.err.starts_with("hadal: " + file)) << r.err;
  EXPECT_TRUE(r.err.ends_with("the file is damaged: download or write it again\n")) << r.err;
}

}  // namespace
}  // namespace hadal::test
