// hadal train on several ranks: refusals, equal losses, checkpoints that any mesh reads, killed
// ranks that are named and runs that go on as if nothing had happened.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "tests/cli/train_fixture.h"

namespace hadal::test {
namespace {

constexpr const char* kWhere = "configs/resume_check.json: ";

class Parallel : public TrainFixture {
 protected:
  // Six steps of 8 sequences to OUTPUT/NAME on the ranks that `mesh` says ("pp=2 dp=2").
  Arguments on(const std::string& name, const std::string& mesh, const Arguments& more = {}) const {
    Arguments all = train({"--set", "train.output=\"" + output() + "/" + name + "\"", "--set",
                           "train.batch_sequences=8", "--set", "train.steps=6", "--set",
                           "train.keep_checkpoints=0", "--set", "model.num_hidden_layers=4"});
    std::stringstream words(mesh);
    for (std::string word; words >> word;) all.insert(all.end(), {"--set", "parallel." + word});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  std::string path(const std::string& name, const std::string& file) const {
    return output() + "/" + name + "/checkpoints/" + file;
  }
  // Losses of the run's steps, gradient norms after them.
  std::vector<double> losses(const std::string& name) const {
    std::vector<double> values;
    std::stringstream lines(read_text(output() + "/" + name + "/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto json = nlohmann::json::parse(line);
      if (json.contains("loss")) values.push_back(json["loss"]);
      if (json.contains("grad_norm")) values.push_back(json["grad_norm"]);
      if (json.contains("held_out_loss")) values.push_back(json["held_out_loss"]);
    }
    return values;
  }
  void expect_same_losses(const std::string& got, const std::string& want) const {
    const std::vector<double> a = losses(got), b = losses(want);
    ASSERT_EQ(a.size(), b.size());
    ASSERT_EQ(a.size(), 13u);
    for (size_t i = 0; i < a.size(); ++i)
      EXPECT_NEAR(a[i], b[i], 2e-5 * b[i]) << got << ", value " << i;
  }
  // Goes on from step 2 of the run `from` on another mesh.
  void expect_goes_on(const std::string& from, const std::string& mesh, Arguments more = {}) {
    const std::string name = from + " to " + mesh;
    fs::copy(output() + "/" + from, output() + "/" + name,
             fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    for (const char* step : {"step_00000004", "step_00000006"}) fs::remove_all(path(name, step));
    fs::remove(path(name, "latest"));
    fs::create_symlink("step_00000002", path(name, "latest"));
    more.emplace_back("--resume");
    const Result r = run(on(name, mesh, more));
    ASSERT_EQ(r.status, 0) << name << ": " << r.err;
    expect_same_losses(name, "one");
  }
  // Weights and optimizer state of a step, byte for byte.
  void expect_same_files(const std::string& got, const std::string& want,
                         const std::string& step = "step_00000006", int fewest = 4) const {
    int files = 0;
    for (const auto& entry : fs::directory_iterator(path(want, step))) {
      const std::string file = entry.path().filename();
      if (!file.ends_with(".safetensors")) continue;
      ++files;
      EXPECT_TRUE(read_text(path(got, step + "/" + file)) == read_text(entry.path())) << file;
    }
    EXPECT_GE(files, fewest);
  }
};

TEST_F(Parallel, RefusesNumbersThatDoNotFit) {
  expect_refused(on("x", "dp=3"), "mesh: dp = 3 does not divide batch_sequences = 8");
  expect_refused(on("x", "dp=4 ep=3"), "mesh: ep = 3 does not divide dp = 4");
  expect_refused(on("x", "pp=8"),
                 "mesh: pp = 8 makes 8 stages, but the model has 4 layers; lower pp");
  expect_refused(on("x", "tp=3"), "mesh: tp = 3 does not divide num_attention_heads = 4");
  expect_refused(on("x", "tp=2", set("model.intermediate_size=129")),
                 "mesh: tp = 2 does not divide intermediate_size = 129");
  expect_refused(on("x", "dp=2 ep=2 tp=2 ranks_per_node=1"),
                 "mesh: tp = 2 does not divide parallel.ranks_per_node = 1: a tensor group stays "
                 "within a node");
  expect_refused(on("x", "pp=4 dp=2 schedule=dualpipe"),
                 "dualpipe: 4 micro-batches; at least 2 * pp = 8 are needed");
  expect_refused(on("x", "pp=2 schedule=gpipe"),
                 "there is no schedule gpipe; choose one of: 1f1b, interleaved, zb1p, dualpipe, "
                 "dualpipev");
  expect_refused(on("x", "pp=2 layers=[1,2]"),
                 "parallel.layers add up to 3, and the model has 4 layers");
  expect_refused(on("x", "comm_sms=65"),
                 std::string(kWhere) + "parallel: comm_sms is 65; allowed: 0 to 64");
  expect_refused(on("x", "dp=2 ep=2 exchange=windows"),
                 std::string(kWhere) +
                     "parallel.exchange = windows is for ranks on GPUs: set "
                     "train.device to cuda, or the exchange to messages");
  expect_refused(on("x", "exchange=pigeons"),
                 "there is no exchange pigeons; choose one of: messages, windows");
  expect_refused(on("x", "pq=2"),
                 std::string(kWhere) + "parallel: unknown key \"pq\"; did you mean \"pp\"?");
  EXPECT_FALSE(fs::exists(output()));
}

TEST_F(Parallel, LossesAreThoseOfOneRank) {
  ASSERT_EQ(run(on("one", "dp=1")).status, 0);
  for (const std::string mesh : {"dp=4 ep=2", "pp=2 dp=2 ep=2 schedule=dualpipe",
                                 "pp=2 schedule=zb1p layers=[1,3]", "dp=2 ep=2 tp=2"}) {
    const Result r = run(on(mesh, mesh));
    ASSERT_EQ(r.status, 0) << mesh << ": " << r.err;
    expect_same_losses(mesh, "one");
  }
}

// Fewer rows than an even share needs: each step is done again with halves, and nothing is lost.
TEST_F(Parallel, StepsThatNeedMoreRowsAreSplit) {
  const Arguments large = {"--set", "train.sequence_length=256", "--set",
                           "train.micro_batch_sequences=2"};
  ASSERT_EQ(run(on("one", "dp=1", large)).status, 0);
  for (const std::string mesh : {"dp=2 ep=2", "pp=2 dp=2 ep=2 schedule=1f1b"}) {
    const Result r = run(on(mesh, mesh + " row_capacity=0.6", large));
    ASSERT_EQ(r.status, 0) << mesh << ": " << r.err;
    expect_same_losses(mesh, "one");
    const std::string metrics = read_text(output() + "/" + mesh + "/metrics.jsonl");
    EXPECT_NE(metrics.find("\"splits\":1"), std::string::npos) << mesh;
  }
  const Result r = run(on("x", "dp=2 ep=2 row_capacity=0.05", large));
  EXPECT_NE(r.status, 0);
  EXPECT_NE(r.err.find("parallel.row_capacity is 0.05, and a rank's experts need more rows than "
                       "that for one sequence of each rank; raise it, or use 0"),
            std::string::npos)
      << r.err;
}

TEST_F(Parallel, PairsSideBySideHaveTheBitsOfPairsInTurn) {
  for (const std::string mesh :
       {"dp=2 ep=2 schedule=dualpipev", "pp=2 dp=2 ep=2 schedule=dualpipe"}) {
    ASSERT_EQ(run(on(mesh, mesh)).status, 0);
    ASSERT_EQ(run(on(mesh + " in turn", mesh + " overlap=false")).status, 0);
    expect_same_files(mesh + " in turn", mesh);
  }
}

TEST_F(Parallel, ARankAloneRunsItsSchedule) {
  ASSERT_EQ(run(on("one", "dp=1")).status, 0);
  for (const std::string schedule : {"dualpipev", "interleaved"}) {
    const Result r = run(on(schedule, "dp=1 record=false schedule=" + schedule));
    ASSERT_EQ(r.status, 0) << r.err;
    EXPECT_NE(r.out.find("\"record\": false"), std::string::npos);
    expect_same_losses(schedule, "one");
  }
}

TEST_F(Parallel, SumsOfLayersHaveTheBitsOfSumsOfRegions) {
  for (const std::string mesh :
       {"dp=4", "dp=4 ep=2", "dp=2 tp=2", "pp=2 dp=2 schedule=zb1p", "pp=2 dp=2 schedule=1f1b"}) {
    ASSERT_EQ(run(on(mesh, mesh)).status, 0);
    ASSERT_EQ(run(on(mesh + " at the end", mesh + " overlap=false")).status, 0);
    expect_same_files(mesh + " at the end", mesh);
  }
}

TEST_F(Parallel, AnyMeshReadsACheckpointOfAnyMesh) {
  ASSERT_EQ(run(on("one", "dp=1")).status, 0);
  // The learning rate falls over train.steps, so the first run is stopped by removing what is
  // later.
  const Result first = run(on("many", "pp=4 dp=2 ep=2 schedule=1f1b"));
  ASSERT_EQ(first.status, 0) << first.err;
  expect_same_losses("many", "one");
  for (const std::string mesh :
       {"dp=8 ep=4", "dp=1", "pp=2 dp=2 schedule=dualpipev", "pp=2 dp=2 ep=2 tp=2"})
    expect_goes_on("many", mesh);
}

TEST_F(Parallel, AnyMeshReadsACheckpointOfATensorGroup) {
  const std::string average = "train.ema_decay=0.9";
  ASSERT_EQ(run(on("one", "dp=1", set(average))).status, 0);
  const Result first = run(on("split", "pp=2 tp=2 schedule=dualpipe", set(average)));
  ASSERT_EQ(first.status, 0) << first.err;
  expect_same_losses("split", "one");
  for (const std::string mesh : {"dp=1", "dp=2 ep=2", "dp=1 tp=4", "dp=2 tp=2"})
    expect_goes_on("split", mesh, set(average));
}

TEST_F(Parallel, AKilledRankIsNamedAndTheRunGoesOn) {
  const std::string mesh = "pp=2 dp=2 ep=2 schedule=dualpipe";
  ASSERT_EQ(run(on("straight", mesh)).status, 0);
  for (const std::string fault : {"die_in_step", "die_in_collective", "die_in_checkpoint"}) {
    setenv("HADAL_SABOTAGE", fault.c_str(), 1);
    const auto begin = std::chrono::steady_clock::now();
    // So that the checkpoint of step 2 is there at step 4 whatever the disk does.
    const Result killed = run(on(fault, mesh, set("train.background_checkpoints=false")));
    unsetenv("HADAL_SABOTAGE");
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
    EXPECT_EQ(killed.status, 1);
    EXPECT_TRUE(killed.err.starts_with("hadal: rank 1 failed at step 4, in ")) << killed.err;
    EXPECT_TRUE(killed.err.ends_with("it was killed by signal 9 (Killed)\n")) << killed.err;
    EXPECT_EQ(fs::read_symlink(path(fault, "latest")), "step_00000002");
    const Result resumed = run(on(fault, mesh, {"--resume"}));
    ASSERT_EQ(resumed.status, 0) << resumed.err;
    expect_same_files(fault, "straight");
  }
}

// Copied by the writer's thread beside the step, by the step before it changes the state, or not at
// all: the same bytes of a checkpoint whose steps went on.
TEST_F(Parallel, CheckpointsBesideStepsHoldTheirOwnStep) {
  const Arguments average = set("train.ema_decay=0.9");
  const auto train_on = [&](const std::string& name, Arguments more) {
    more.insert(more.end(), average.begin(), average.end());
    more.insert(more.end(), {"--set", "train.checkpoint_every=1"});
    const Result r = run(on(name, "dp=2 tp=2", more));
    ASSERT_EQ(r.status, 0) << r.err;
  };
  train_on("within", set("train.background_checkpoints=false"));
  train_on("beside", {});
  setenv("HADAL_SABOTAGE", "late_copy", 1);
  train_on("late", {});
  unsetenv("HADAL_SABOTAGE");
  for (const std::string name : {"beside", "late"})
    for (const std::string step : {"step_00000003", "step_00000006"}) {
      expect_same_files(name, "within", step);
      expect_same_files(name, "within", step + "/ema", 1);
    }
}

// The steps go on while a checkpoint is written; the rank that is killed then is named with the
// step that it had come to.
TEST_F(Parallel, AKillBehindACheckpointCostsNothing) {
  const std::string mesh = "dp=2 ep=2";
  ASSERT_EQ(run(on("straight", mesh)).status, 0);
  setenv("HADAL_SABOTAGE", "die_in_checkpoint", 1);
  const Result killed = run(on("killed", mesh));
  unsetenv("HADAL_SABOTAGE");
  EXPECT_EQ(killed.status, 1);
  EXPECT_TRUE(killed.err.starts_with("hadal: rank 1 failed at step ")) << killed.err;
  EXPECT_TRUE(killed.err.ends_with("it was killed by signal 9 (Killed)\n")) << killed.err;
  EXPECT_EQ(fs::read_symlink(path("killed", "latest")), "step_00000002");
  const Result resumed = run(on("killed", mesh, {"--resume"}));
  ASSERT_EQ(resumed.status, 0) << resumed.err;
  expect_same_files("killed", "straight");
}

// Processes that a script started, two of them on each of two "hosts": the bits of one host; a rank
// that is killed is named on both, and the run goes on.
TEST_F(Parallel, TwoHostsAreOne) {
  const std::string mesh = "pp=2 dp=2 ep=2 schedule=dualpipe";
  setenv("HADAL_RENDEZVOUS", (dir_ / "ranks").c_str(), 1);
  setenv("HADAL_WORLD_SIZE", "4", 1);
  const auto on_hosts = [&](const Arguments& arguments) {
    std::vector<std::unique_ptr<Child>> ranks;
    for (int r = 0; r < 4; ++r) {
      setenv("HADAL_RANK", std::to_string(r).c_str(), 1);
      setenv("HADAL_HOST", r < 2 ? "a" : "b", 1);
      ranks.push_back(std::make_unique<Child>(arguments, dir_ / ("log" + std::to_string(r))));
    }
    unsetenv("HADAL_RANK");
    unsetenv("HADAL_HOST");
    std::vector<Result> results;
    for (int r = 0; r < 4; ++r) {
      const int status = ranks[static_cast<size_t>(r)]->wait();
      const std::string log = dir_ / ("log" + std::to_string(r));
      results.push_back({status, read_text(log + ".out"), read_text(log + ".err")});
    }
    return results;
  };
  ASSERT_EQ(run(on("one host", mesh)).status, 0);
  const auto good = on_hosts(on("two hosts", mesh));
  for (const Result& r : good) ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(good[0].out.find("2 hosts: a (ranks 0 1), b (ranks 2 3)\n"), std::string::npos);
  EXPECT_EQ(good[3].out, "");
  expect_same_files("two hosts", "one host");

  setenv("HADAL_SABOTAGE", "die_in_step", 1);
  const auto killed = on_hosts(on("killed", mesh, set("train.background_checkpoints=false")));
  unsetenv("HADAL_SABOTAGE");
  EXPECT_EQ(killed[1].status, 128 + SIGKILL);
  for (const size_t r : {0, 2, 3}) {
    EXPECT_EQ(killed[r].status, 1);
    EXPECT_TRUE(killed[r].err.starts_with("hadal: rank 1 failed at step 4, in ")) << killed[r].err;
  }
  EXPECT_EQ(fs::read_symlink(path("killed", "latest")), "step_00000002");
  for (const Result& r : on_hosts(on("killed", mesh, {"--resume"})))
    ASSERT_EQ(r.status, 0) << r.err;
  expect_same_files("killed", "one host");

  const auto check = on_hosts({"check", "--heartbeat", "5"});
  // Four ranks share few cores, so some pair may well be slow.
  for (const size_t r : {1, 2, 3}) EXPECT_EQ(check[r].status, 0) << check[r].err;
  EXPECT_NE(check[0].out.find("\n2 - 3 "), std::string::npos) << check[0].out;
  EXPECT_TRUE(check[0].status == 0 || check[0].err.find(" slow") != std::string::npos)
      << check[0].err;
  EXPECT_EQ(check[0].err.find("arrived otherwise"), std::string::npos) << check[0].err;
  EXPECT_EQ(check[2].out, "");
  EXPECT_NE(on_hosts(on("x", "dp=2"))[0].err.find(
                "mesh: pp * dp * tp = 2, but 4 processes were started; start 2, or change"),
            std::string::npos);
  unsetenv("HADAL_RENDEZVOUS");
  unsetenv("HADAL_WORLD_SIZE");
}

TEST_F(Parallel, CheckNamesWhatIsWrong) {
  const auto check = [&](const std::string& fault, const Arguments& more = {}) {
    Arguments all = {"check", "--ranks", "4", "--heartbeat", "2"};
    all.insert(all.end(), more.begin(), more.end());
    setenv("HADAL_SABOTAGE", fault.c_str(), 1);
    const Result r = run(all);
    unsetenv("HADAL_SABOTAGE");
    return r;
  };
  const Result good = check("", {"--json"});
  EXPECT_EQ(good.status, 0) << good.err;
  const auto json = nlohmann::json::parse(good.out);
  EXPECT_EQ(json["links"].size(), 6u);
  EXPECT_EQ(json["links"][5]["ranks"], (nlohmann::json{2, 3}));
  EXPECT_GT(json["links"][5]["gigabytes_per_second"], 0.01);

  const Result garbled = check("flip_bit");
  EXPECT_EQ(garbled.status, 1);
  EXPECT_NE(garbled.err.find("ranks 1 and 3: 1 bytes arrived otherwise than they were sent"),
            std::string::npos)
      << garbled.err;
  EXPECT_EQ(garbled.err.find("ranks 0 and 2"), std::string::npos) << garbled.err;
  EXPECT_NE(check("other_build").err.find("rank 1 runs another build of hadal than the others"),
            std::string::npos);
  EXPECT_NE(check("slow_rank").err.find("rank 1: all its links are slow"), std::string::npos);
  const Result mute = check("mute_rank");
  EXPECT_EQ(mute.status, 1);
  EXPECT_NE(mute.err.find("rank 1 has not beaten for 2 s and counts as hung"), std::string::npos)
      << mute.err;
}

TEST_F(Parallel, StopsCleanlyOnSigterm) {
  Child child(on("run", "dp=2", {"--set", "train.steps=1000000"}), dir_ / "log");
  ASSERT_TRUE(wait_until([&] { return lines_of(output() + "/run/metrics.jsonl") >= 3; }));
  child.kill(SIGTERM);
  EXPECT_EQ(child.wait(), 0) << read_text(dir_ / "log.err");
  const std::string last = last_line(read_text(dir_ / "log.out"));
  EXPECT_TRUE(last.starts_with("stopped after step ")) << last;
  const Result r =
      run({"generate", "--model", output() + "/run", "--prompt-ids", "5", "--max-tokens", "2"});
  EXPECT_EQ(r.status, 0) << r.err;
}

// hadal bench train on the ranks of a config: a row, and of a pipeline its steps.
TEST_F(Parallel, BenchTimesEveryStepOfAPipeline) {
  const auto bench = [&](const std::string& mesh, Arguments more) {
    Arguments all = on("x", mesh, more);
    all[0] = "--config";
    all.insert(all.begin(), {"bench", "train", "--samples", "1"});
    return all;
  };
  const std::string picture = dir_ / "steps.svg";
  const Result r = run(bench("pp=2 dp=2 ep=2 schedule=dualpipev", {"--timeline", picture}));
  ASSERT_EQ(r.status, 0) << r.err;
  const auto row = nlohmann::json::parse(r.out);
  EXPECT_EQ(row["mesh"], "pp 2, dp 2, ep 2, tp 1");
  EXPECT_EQ(row["micro_batches"], 4);
  EXPECT_EQ(row["tokens_per_step"], 8 * 16);
  EXPECT_GT(row["tokens_per_s_of_rank"], 0.0);
  EXPECT_GT(row["loss"], 1.0);
  EXPECT_GT(row["grad_norm"], 0.0);
  EXPECT_GE(row["load_of_busiest_rank"], 1.0);
  EXPECT_LE(row["load_of_busiest_rank"], 2.0);  // of two
  const auto& pipeline = row["pipeline"];
  EXPECT_GE(pipeline["makespan_ms"], pipeline["largest_bubble_ms"].get<double>());
  EXPECT_GT(pipeline["overlap_ms"], 0.0);
  EXPECT_TRUE(pipeline.contains("formula_bubble_ms"));
  EXPECT_NE(read_text(picture).find("dualpipev, 2 ranks, 4 micro-batches, measured"),
            std::string::npos);
  const Result flat = run(bench("dp=2", {}));
  ASSERT_EQ(flat.status, 0) << flat.err;
  EXPECT_FALSE(nlohmann::json::parse(flat.out).contains("pipeline"));
  EXPECT_FALSE(nlohmann::json::parse(flat.out).contains("load_of_busiest_rank"));
  expect_refused(bench("dp=2", {"--warm-up", "1"}), "--warm-up is 1; allowed: 2 to 10000");
  expect_refused(bench("dp=2", {"--timeline", picture}),
                 "--timeline is of a pipeline, and parallel.pp is 1: leave it out, or set "
                 "parallel.pp");
}

// --pace: copies of a known size behind every transfer, which change nothing else.
TEST_F(Parallel, BenchPacesTheExchange) {
  const auto bench = [&](const std::string& mesh) {
    Arguments all = on("x", mesh, {"--pace", "2.5"});
    all[0] = "--config";
    all.insert(all.begin(), {"bench", "train", "--samples", "1"});
    return run(all);
  };
  const Result r = bench("pp=2 dp=2 ep=2 schedule=dualpipev");
  ASSERT_EQ(r.status, 0) << r.err;
  const auto row = nlohmann::json::parse(r.out);
  EXPECT_EQ(row["link_GBps"], 2.5);
  EXPECT_GT(row["sent_GB"], 0.0);
  EXPECT_DOUBLE_EQ(row["transfers_s"], row["sent_GB"].get<double>() / 2.5);
  EXPECT_GT(row["seconds"], row["transfers_s"]);  // on CPU ranks nothing runs beside
  const Result none = bench("dp=2");
  EXPECT_EQ(none.status, 1);
  EXPECT_NE(none.err.find("--pace is of transfers between experts, and parallel.ep is 1"),
            std::string::npos)
      << none.err;
  const Result no_sms = bench("dp=2 ep=2 comm_sms=0");
  EXPECT_EQ(no_sms.status, 1);
  EXPECT_NE(no_sms.err.find("--pace copies with parallel.comm_sms SMs, and that is 0: set it"),
            std::string::npos)
      << no_sms.err;
}

}  // namespace
}  // namespace hadal::test
