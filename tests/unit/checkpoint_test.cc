// Checkpoints of a run: the same bits come back, damage is one sentence, and nothing that happens
// while one is written costs the one before.
// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "io/atomic.h"
#include "io/safetensors.h"
#include "tests/unit/train.h"
#include "train/checkpoint_writer.h"

namespace hadal::train {
namespace {

using hadal::testing::TempDir;
namespace fs = std::filesystem;

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest()
      : run_(test::tiny_run(dir_.path())), learner_(machine_.ctx, run_.model, DType::kF32, 32) {}

  // A checkpoint of `step` with the values that tell so.
  void save(int64_t step) {
    test::set_state(learner_, step);
    write(learner_, step);
  }
  void write(Learner& learner, int64_t step) {
    CheckpointWriter writer(run_, learner);
    writer.save(state_of(step));
    writer.finish();
  }
  TrainerState load(const std::string& dir) {
    return load_run_checkpoint(machine_.ctx, dir, run_, learner_);
  }
  // Loads what `latest` points to and checks every number of it.
  int64_t load_latest() {
    test::set_state(learner_, 999);
    const auto latest = latest_checkpoint(run_.train.output);
    HADAL_CHECK(latest.has_value(), "no checkpoint");
    const TrainerState state = load(*latest);
    EXPECT_EQ(state.position, state_of(state.step).position);
    EXPECT_EQ(state.tokens, state_of(state.step).tokens);
    EXPECT_EQ(test::damaged_tensor(learner_, state.step), "") << "step " << state.step;
    return state.step;
  }
  static TrainerState state_of(int64_t step) {
    return {.step = step, .position = 3 * step, .tokens = 24 * step};
  }
  std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_ / "checkpoints"))
      names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
  std::string at(int64_t step) const {
    return dir_ / concat("checkpoints/step_", step < 10 ? "0000000" : "000000", step);
  }

  // Runs fn in a child; returns how it ended.
  static int in_child(const std::function<void()>& fn) {
    const pid_t child = fork();
    if (child == 0) {
      const rlimit no_core{0, 0};
      setrlimit(RLIMIT_CORE, &no_core);
      try {
        fn();
      } catch (...) {
        _exit(1);
      }
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
  }

  const TempDir dir_;
  test::Machine machine_{1};
  RunConfig run_;
  Learner learner_;
};

using Names = std::vector<std::string>;

TEST_F(CheckpointTest, TheSameBitsComeBack) {
  EXPECT_EQ(latest_checkpoint(run_.train.output), std::nullopt);
  save(7);
  EXPECT_EQ(latest_checkpoint(run_.train.output), at(7));
  EXPECT_EQ(load_latest(), 7);
  EXPECT_EQ(entries(), (Names{"latest", "step_00000007"}));
}

// The state changes while the checkpoint is under way, whoever has copied it until then: the
// writer's thread (some of it), or the step alone.
TEST_F(CheckpointTest, HoldsTheStateThatItWasSavedWith) {
  for (const char* fault : {"", "late_copy"}) {
    setenv("HADAL_SABOTAGE", fault, 1);
    CheckpointWriter writer(run_, learner_);
    for (int64_t step = 1; step <= 5; ++step) {
      test::set_state(learner_, step);
      writer.save(state_of(step));
      EXPECT_GE(writer.release_state(), 0.0);
      test::set_state(learner_, 500);
      writer.finish();
      EXPECT_EQ(load_latest(), step) << fault;
    }
    unsetenv("HADAL_SABOTAGE");
  }
}

TEST_F(CheckpointTest, Bf16LearnersKeepF32Masters) {
  Learner learner(machine_.ctx, run_.model, DType::kBF16, 32);
  test::set_state(learner, 3);
  write(learner, 3);
  Learner other(machine_.ctx, run_.model, DType::kBF16, 32);
  load_run_checkpoint(machine_.ctx, at(3), run_, other);
  EXPECT_EQ(test::bits_of(other), test::bits_of(learner));
  const Tensor copy = other.weights().layers[0].attn.wo.data,
               want = learner.weights().layers[0].attn.wo.data;
  EXPECT_EQ(copy.dtype(), DType::kBF16);
  test::expect_bits_equal("the bf16 copy", copy, want);  // made again from the masters
}

TEST_F(CheckpointTest, KeepsTheNewest) {
  for (int64_t step : {1, 2, 3, 10}) save(step);
  EXPECT_EQ(entries(), (Names{"latest", "step_00000003", "step_00000010"}));
  run_.train.keep_checkpoints = 0;
  for (int64_t step : {11, 12}) save(step);
  EXPECT_EQ(entries().size(), 5u);
  run_.train.keep_checkpoints = 1;
  save(13);
  EXPECT_EQ(entries(), (Names{"latest", "step_00000013"}));
}

TEST_F(CheckpointTest, AStepCanBeWrittenAgain) {
  save(4);
  save(4);
  EXPECT_EQ(load_latest(), 4);
  EXPECT_EQ(entries(), (Names{"latest", "step_00000004"}));
}

// A process killed between the rename and the link leaves a later checkpoint that `latest` does not
// name. The run goes on before it, and its own checkpoints must not be removed as the older ones.
TEST_F(CheckpointTest, ALaterOneThatLatestDoesNotNameCostsNothing) {
  run_.train.keep_checkpoints = 1;
  save(10);
  fs::copy(at(10), at(20), fs::copy_options::recursive);
  save(15);
  EXPECT_EQ(load_latest(), 15);
  save(20);
  EXPECT_EQ(load_latest(), 20);
  EXPECT_EQ(entries(), (Names{"latest", "step_00000020"}));
}

TEST_F(CheckpointTest, TokenizerGoesWithTheWeights) {
  fs::create_directory(dir_ / "tok");
  io::write_file_atomic(dir_ / "tok/tokenizer.json", "{\"a\": 1}");
  run_.data.tokenizer = dir_ / "tok";
  save(1);
  EXPECT_EQ(io::read_file(at(1) + "/tokenizer.json", 100), "{\"a\": 1}");
  EXPECT_FALSE(fs::exists(at(1) + "/tokenizer_config.json"));
}

// A limit on file sizes stands for a full disk. The larger it is, the later the writing fails: in
// config.json, in the weights, in the moments.
TEST_F(CheckpointTest, FullDiskLeavesThePreviousOne) {
  save(1);
  save(2);
  const Names before = entries();
  const auto weights = fs::file_size(at(2) + "/model.safetensors");
  const auto moments = fs::file_size(at(2) + "/optimizer.safetensors");
  ASSERT_GT(moments, weights + 1000);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, SIG_IGN);
  const struct {
    rlim_t bytes;
    const char* file;
  } cases[] = {{1, "model.safetensors"},
               {weights - 1, "model.safetensors"},
               {moments - 1, "optimizer.safetensors"}};
  for (const auto& c : cases) {
    const rlimit low{c.bytes, limit.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
    EXPECT_ERROR(save(3), "cannot write " + dir_ / "checkpoints/.step_00000003.tmp/" + c.file +
                              ": File too large; nothing was replaced: free space on that disk "
                              "and try again");
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    EXPECT_EQ(entries(), before);
    EXPECT_EQ(load_latest(), 2);
  }
  save(3);  // once there is space again
  EXPECT_EQ(load_latest(), 3);
}

// The process dies at the write that passes the limit: inside each file in turn.
TEST_F(CheckpointTest, KilledInsideAnyFileLatestIsComplete) {
  save(1);
  const auto largest = static_cast<int64_t>(fs::file_size(at(1) + "/optimizer.safetensors"));
  int killed = 0;
  for (int64_t bytes = 1; bytes < 2 * largest; bytes = bytes * 2 + 100) {
    const int status = in_child([&] {
      std::signal(SIGXFSZ, SIG_DFL);
      const rlimit low{static_cast<rlim_t>(bytes), static_cast<rlim_t>(bytes)};
      setrlimit(RLIMIT_FSIZE, &low);
      save(2);
    });
    killed += WIFSIGNALED(status) ? 1 : 0;
    ASSERT_EQ(load_latest(), WIFSIGNALED(status) ? 1 : 2);
  }
  EXPECT_GT(killed, 4);
  EXPECT_EQ(load_latest(), 2);
}

// kill -9 at random moments of a loop of checkpoints: what `latest` names is complete and loads,
// and it is one of the last that were begun.
TEST_F(CheckpointTest, KillAtRandomMomentsLeavesLatestComplete) {
  save(1);
  const auto start = std::chrono::steady_clock::now();
  save(1);
  const auto one_save = std::chrono::steady_clock::now() - start;
  const Rng rng(1, stream_id("kill"));
  // A forked child is slower than its parent was, several times so under sanitizers.
  constexpr double kSavesWaited = 10.0;
  int64_t step = 1, progress = 0;
  for (uint64_t round = 0; round < 16; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      for (int64_t next = step + 1;; ++next) save(next);
    }
    const auto wait = std::chrono::duration<double>(one_save) * (kSavesWaited * rng.uniform(round));
    std::this_thread::sleep_for(wait);
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    const int64_t now = load_latest();
    ASSERT_GE(now, step);
    progress += now - step;
    step = now;
  }
  EXPECT_GT(progress, 3);
  save(step + 1);
  EXPECT_EQ(load_latest(), step + 1);
}

TEST_F(CheckpointTest, DamagedTrainerJson) {
  save(2);
  const std::string path = at(2) + "/trainer.json";
  const io::Json good = io::read_json(path);
  const auto damage = [&](const std::function<void(io::Json&)>& change) {
    io::Json root = good;
    change(root);
    io::write_json(path, root);
    load(at(2));
  };
  EXPECT_ERROR(damage([](io::Json& r) { r["format"] = 1; }),
               path + " has format 1; this hadal reads format 2");
  EXPECT_ERROR(damage([](io::Json& r) { r.erase("step"); }), path + ": step is missing; add it");
  EXPECT_ERROR(damage([](io::Json& r) { r["position"] = "x"; }),
               path + ": position is \"x\"; an integer is needed");
  EXPECT_ERROR(damage([](io::Json& r) { r["position"] = -1; }),
               path + ": position is -1; it cannot be negative: resume from another checkpoint");
  EXPECT_ERROR(damage([](io::Json& r) { r.erase("run"); }), path + ": run is missing; add it");
  EXPECT_ERROR(damage([](io::Json& r) { r["run"]["train"]["stepz"] = 1; }),
               path + ": run: train: unknown key \"stepz\"; did you mean \"steps\"?");
  EXPECT_ERROR(damage([](io::Json& r) { r["run"]["model"]["hidden_size"] = 12; }),
               at(2) +
                   " was written with another model config; resume with that config, or start "
                   "a new run with train.init_from");
  io::write_file_atomic(path, "{\"format\": 1,");
  EXPECT_ERROR(load(at(2)), path +
                                ", line 1, column 13: invalid JSON, unexpected end of input; "
                                "expected string literal; correct it there");
  io::write_json(path, good);
  EXPECT_EQ(load_latest(), 2);
  fs::remove(path);
  EXPECT_EQ(latest_checkpoint(run_.train.output), std::nullopt);
}

TEST_F(CheckpointTest, ResumeNeedsTheSameModel) {
  save(2);
  RunConfig other = run_;
  other.model.rms_norm_eps = 1e-5;
  Learner learner(machine_.ctx, other.model, DType::kF32, 32);
  EXPECT_ERROR(load_run_checkpoint(machine_.ctx, at(2), other, learner),
               at(2) +
                   " was written with another model config; resume with that config, or start "
                   "a new run with train.init_from");
  other = run_;
  other.train.steps = 1000;  // a longer run is the same model
  EXPECT_EQ(load_run_checkpoint(machine_.ctx, at(2), other, learner_).step, 2);
}

TEST_F(CheckpointTest, DamagedMoments) {
  save(2);
  const std::string path = at(2) + "/optimizer.safetensors";
  const std::string good = io::read_file(path, 1 << 22);
  const auto damage = [&](const std::function<void(std::vector<io::TensorSource>&)>& change) {
    io::write_file_atomic(path, good);
    const io::SafetensorsFile file(path);
    std::vector<io::TensorSource> sources;
    for (const auto& [name, t] : file.tensors())
      sources.push_back({.name = name, .type = t.type, .shape = t.shape, .data = t.data});
    change(sources);
    io::write_safetensors(path, sources);
    load(at(2));
  };
  const auto named = [](std::vector<io::TensorSource>& sources, const std::string& name) {
    return std::find_if(sources.begin(), sources.end(),
                        [&](const io::TensorSource& s) { return s.name == name; });
  };
  EXPECT_ERROR(damage([&](auto& s) { s.erase(named(s, "v.norm")); }),
               path + ": tensor v.norm is missing; write the file again with it");
  EXPECT_ERROR(damage([&](auto& s) {
                 named(s, "m.embed")->shape = {10, 13};
               }),
               path +
                   ": tensor m.embed is F32 [10, 13], this run needs f32 [13, 10]; resume with "
                   "the config that wrote it");
  EXPECT_ERROR(damage([&](auto& s) {
                 named(s, "m.embed")->shape = {13, 9};
               }),
               path +
                   ": tensor m.embed is F32 [13, 9], this run needs f32 [13, 10]; resume with "
                   "the config that wrote it");
  EXPECT_ERROR(damage([&](auto& s) { named(s, "m.embed")->type = io::StoredType::kI32; }),
               path +
                   ": tensor m.embed is I32 [13, 10], this run needs f32 [13, 10]; resume with "
                   "the config that wrote it");
  EXPECT_ERROR(damage([&](auto& s) {
                 s.push_back(*named(s, "m.norm"));
                 s.back().name = "m.extra";
               }),
               path +
                   ": tensor m.extra is not of this run's model; resume with the config that "
                   "wrote it");
  io::write_file_atomic(path, good.substr(0, good.size() - 4));
  EXPECT_THROW(load(at(2)), Error);
  fs::remove(path);
  EXPECT_ERROR(load(at(2)), "cannot open " + path + ": No such file or directory; check the path");
}

TEST_F(CheckpointTest, DamagedWeights) {
  save(2);
  const std::string path = at(2) + "/model.safetensors";
  const std::string good = io::read_file(path, 1 << 22);
  for (size_t size : {size_t{0}, size_t{7}, size_t{100}, good.size() - 1}) {
    io::write_file_atomic(path, good.substr(0, size));
    EXPECT_THROW(load(at(2)), Error) << size;
  }
}

}  // namespace
}  // namespace hadal::train
