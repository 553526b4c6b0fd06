// hadal plan: its figures, its pictures, and what it refuses.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/cli/run.h"

namespace hadal::test {
namespace {

using nlohmann::json;

json schedule(const std::string& kind, int pp, int microbatches) {
  const Result r = run({"plan", "schedule", "--kind", kind, "--pp", std::to_string(pp),
                        "--microbatches", std::to_string(microbatches), "--json"});
  EXPECT_EQ(r.status, 0) << r.err;
  return json::parse(r.out);
}

TEST(PlanSchedule, GivesMakespanBubbleAndEachRanksSteps) {
  const json s = schedule("dualpipe", 8, 20);
  EXPECT_EQ(s["makespan"], 66);
  EXPECT_EQ(s["bubble"], 6);
  ASSERT_EQ(s["ranks"].size(), 8u);
  EXPECT_EQ(s["ranks"][0][0], (json{{"op", "F0.0"}, {"start", 0}, {"finish", 1}}));
  EXPECT_EQ(schedule("dualpipe", 16, 120)["makespan"], 374);
  EXPECT_EQ(schedule("dualpipe", 4, 8)["makespan"], 26);
  EXPECT_EQ(schedule("zb1p", 16, 120)["bubble"], 15);
  EXPECT_EQ(schedule("1f1b", 16, 120)["bubble"], 45);
}

TEST(PlanSchedule, DrawsATimeline) {
  const TempDir dir;
  const std::string path = dir / "timeline.svg";
  const Result r = run({"plan", "schedule", "--kind", "dualpipe", "--pp", "8", "--microbatches",
                        "20", "--out", path});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("makespan 66, bubble 6"), std::string::npos) << r.out;
  const std::string svg = read_text(path);
  EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
  EXPECT_NE(svg.find("xmlns=\"http://www.w3.org/2000/svg\""), std::string::npos);
  EXPECT_NE(svg.find("prefers-color-scheme:dark"), std::string::npos);
  for (const char* text : {">rank 0<", ">rank 7<", "F1.9&amp;B0.5", "</svg>"})
    EXPECT_NE(svg.find(text), std::string::npos) << text;
}

TEST(PlanSchedule, RefusesBadInputInOneSentence) {
  expect_refused({"plan", "schedule", "--kind", "dualpipe", "--pp", "7"},
                 "dualpipe: pp is 7; it has to be even");
  expect_refused({"plan", "schedule", "--kind", "gpipe"},
                 "there is no schedule gpipe; choose one of: 1f1b, interleaved, zb1p, dualpipe, "
                 "dualpipev");
  expect_refused({"plan", "schedule", "--overlap", "0"}, "--overlap is 0; it has to be above 0");
  expect_refused(
      {"plan", "schedule", "--out", "/nonexistent/x.svg"},
      "cannot write /nonexistent/x.svg: No such file or directory; make its directory and "
      "give yourself the right to write there");
}

constexpr const char* kV3 = "configs/plans/v3_h800.json";

TEST(PlanTrain, PrintsAStepAndWritesAReport) {
  const TempDir dir;
  const std::string path = dir / "report.html";
  const Result r = run({"plan", "train", kV3, "--report", path});
  EXPECT_EQ(r.status, 0) << r.err;
  for (const char* text : {"\n1F1B ", "\nbubble ", "tokens/day", "fitted: overlap_stretch",
                           "layers of each stage: 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 1+MTP+head"})
    EXPECT_NE(r.out.find(text), std::string::npos) << text;
  EXPECT_EQ(read_text(path).rfind("<!doctype html>", 0), 0u);
  const json j = json::parse(run({"plan", "train", kV3, "--json"}).out);
  EXPECT_EQ(j["microbatches"], 120);
  EXPECT_GT(j["basis"].size(), 20u);
  EXPECT_TRUE(j["fits"]);
}

TEST(PlanTrain, SearchesMeshes) {
  const Result r = run({"plan", "train", kV3, "--search", "--devices", "256", "--json"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_GE(json::parse(r.out)["front"].size(), 1u);
}

TEST(PlanTrain, RefusesBadInputInOneSentence) {
  expect_refused({"plan", "train", kV3, "--set", "mesh.ep=48"},
                 "mesh: ep = 48 does not divide dp = 128");
  expect_refused({"plan", "train", kV3, "--devices", "256"},
                 "--devices is for --search; give both");
  expect_refused({"plan", "train", kV3, "--search", "--devices", "12"},
                 "--devices has 12, which is not whole nodes of 8");
  expect_refused({"plan", "train", "/nonexistent.json"},
                 "cannot open /nonexistent.json: No such file or directory; check the path");
}

// A rate that is missing and a budget that cannot be met, through files.
TEST(PlanTrain, RefusesClustersThatCannotCarryIt) {
  const TempDir dir;
  json cluster = json::parse(read_text("configs/clusters/h800_2048.json"));
  cluster["rates"] = {dir / "rates.json"};
  write_text(dir / "rates.json", R"({"rows": []})");
  write_text(dir / "cluster.json", cluster.dump());
  const auto with = [&](const std::string& file) {
    return Arguments{"plan", "train", kV3, "--set", "cluster=" + dir / file};
  };
  expect_refused(with("cluster.json"),
                 "no rate of norm (bytes) in " + dir / "rates.json" + "; add a row of it");
}

// Rates of a small model, and the plan that rests on them alone.
TEST(BenchRates, WritesRowsThatAPlanRestsOn) {
  const TempDir dir;
  json plan = json::parse(read_text("configs/plans/quickstart_cpu.json"));
  plan["model"] = json::parse(read_text("configs/resume_check.json"))["model"];
  plan["sequence_length"] = 32;
  json cluster = json::parse(read_text("configs/clusters/cpu.json"));
  cluster["rates"] = {"rates.json"};
  plan["cluster"] = "cluster.json";
  write_text(dir / "cluster.json", cluster.dump());
  for (const std::string recipe : {"f32", "bf16"}) {
    plan["recipe"] = recipe;
    write_text(dir / "plan.json", plan.dump());
    const Result r = run({"bench", "rates", "--threads", "1", "--rounds", "2", "--plan",
                          dir / "plan.json", "--source", "a test", "--output", dir / "rates.json"});
    ASSERT_EQ(r.status, 0) << r.err;
    const json row = json::parse(r.out);
    EXPECT_GT(row["step_seconds"], 0.0);
    EXPECT_NEAR(row["memory_error"], 0.0, 0.03) << recipe;
    const Result planned = run({"plan", "train", dir / "plan.json", "--json"});
    ASSERT_EQ(planned.status, 0) << planned.err;
    const json step = json::parse(planned.out);
    EXPECT_NEAR(step["step_seconds"].get<double>() / row["planned_seconds"].get<double>(), 1.0,
                1e-4);
  }
}

// The same of two ranks: every kind of collective is timed, and nothing else is needed.
TEST(BenchRates, TimesRanksTogether) {
  if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "there is one core";
  const TempDir dir;
  json cluster = json::parse(read_text("configs/clusters/cpu_2ranks.json"));
  cluster["rates"] = {"rates.json"};
  write_text(dir / "cluster.json", cluster.dump());
  for (const std::string mesh : {"dp", "ep", "pp"}) {
    json plan = json::parse(read_text("configs/plans/resume_check_2ranks_" + mesh + ".json"));
    plan["model"] = json::parse(read_text("configs/resume_check.json"))["model"];
    plan["sequence_length"] = 32;
    plan["cluster"] = "cluster.json";
    write_text(dir / "plan.json", plan.dump());
    const Result r = run({"bench", "rates", "--threads", "1", "--rounds", "2", "--plan",
                          dir / "plan.json", "--source", "a test", "--output", dir / "rates.json"});
    ASSERT_EQ(r.status, 0) << r.err;
    const json row = json::parse(r.out);
    EXPECT_EQ(row["ranks"], 2);
    EXPECT_GT(row["step_seconds"], 0.0);
    // With so few tokens the experts' rows are not spread as evenly as planned.
    EXPECT_NEAR(row["memory_error"], 0.0, mesh == "ep" ? 0.1 : 0.03) << mesh;
    const Result planned = run({"plan", "train", dir / "plan.json", "--json"});
    ASSERT_EQ(planned.status, 0) << planned.err;
    const json step = json::parse(planned.out);
    EXPECT_NEAR(step["step_seconds"].get<double>() / row["planned_seconds"].get<double>(), 1.0,
                1e-4);
    EXPECT_EQ(step["ranks"].size(), mesh == "pp" ? 2u : 1u);
  }
}

TEST(BenchRates, RefusesInOneSentence) {
  const auto refuse = [](std::vector<std::string> more, const std::string& message,
                         const std::string& source = "a test") {
    more.insert(more.begin(), {"bench", "rates", "--source", source});
    expect_refused(more, message);
  };
  refuse({"--threads", "2"}, "rates of a CPU are of one thread; add --threads 1");
  refuse({"--threads", "1"}, "--source is empty; say where and when, as rows of rates do", "");
  refuse({"--threads", "1", "--rounds", "0"}, "--rounds is 0; allowed: 1 to 10000");
  refuse({"--threads", "1", "--plan", kV3},
         std::string(kV3) +
             ": hadal bench rates runs plans of hadal train: recipe f32, or bf16 on one device");
  refuse(
      {"--threads", "1", "--plan",
       "configs/plans/quickstart_cpu.json,configs/plans/quickstart_2ranks_dp.json"},
      "configs/plans/quickstart_2ranks_dp.json has 2 ranks and configs/plans/quickstart_cpu.json "
      "1; time them in runs of their own");
}

}  // namespace
}  // namespace hadal::test
