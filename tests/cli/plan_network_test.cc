// hadal plan network and hadal plan serve: tables, JSON, pages, refusals.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "tests/cli/run.h"

namespace hadal::test {
namespace {

using nlohmann::json;

TEST(PlanNetwork, PrintsTheTableOfTopologies) {
  const Result r = run({"plan", "network"});
  EXPECT_EQ(r.status, 0);
  EXPECT_EQ(r.err, "");
  for (const char* line :
       {"endpoints                    2,048      16,384      65,536      32,928     261,632\n",
        "switches                        96         768       5,120       1,568      16,352\n",
        "links                        2,048      16,384     131,072      32,928     384,272\n",
        "cost, M$                       9.0        72.1       488.2       145.3      1529.3\n",
        "FITTED"})
    EXPECT_NE(r.out.find(line), std::string::npos) << line << "is not in:\n" << r.out;
  const json root = json::parse(run({"plan", "network", "--json"}).out);
  EXPECT_EQ(root["topologies"].size(), 5u);
  EXPECT_EQ(root["topologies"][4]["links"], 384272);
}

TEST(PlanNetwork, SimulatesACollective) {
  const json whole = json::parse(
      run({"plan", "network", "--traffic", "all-to-all", "--gpus", "64", "--json"}).out);
  EXPECT_EQ(whole["topology"], "multi_plane");
  EXPECT_NEAR(whole["algorithm_bandwidth"].get<double>() / 44.9e9, 1.0, 0.01);
  const TempDir dir;
  const std::string page = dir / "page.html";
  const Result failed = run({"plan", "network", "--traffic", "all-to-all", "--gpus", "64", "--fail",
                             "plane:2", "--fail-at", "5e-4", "--html", page});
  EXPECT_EQ(failed.status, 0) << failed.err;
  EXPECT_NE(failed.out.find("stood still until re-routed"), std::string::npos);
  EXPECT_NE(read_text(page).find("</html>"), std::string::npos);
}

TEST(PlanNetwork, RefusesInOneSentence) {
  expect_refused(
      {"plan", "network", "--traffic", "gossip"},
      "--traffic is gossip; allowed: all-to-all, dispatch, combine, all-reduce, rings, kv");
  expect_refused({"plan", "network", "--traffic", "rings", "--gpus", "12"},
                 "--gpus is 12; allowed: multiples of the 8 GPUs of a node");
  expect_refused({"plan", "network", "--traffic", "rings", "--gpus", "4096"},
                 "--gpus 4096 takes nodes 0 to 511 of 256; take fewer or a larger cluster");
  expect_refused({"plan", "network", "--traffic", "dispatch", "--gpus", "64", "--ep", "24"},
                 "--ep is 24; allowed: multiples of the 8 GPUs of a node that divide --gpus 64");
  expect_refused({"plan", "network", "--traffic", "rings", "--routing", "random"},
                 "--routing is random; allowed: adaptive, ecmp, static");
  expect_refused({"plan", "network", "--traffic", "rings", "--topology", "torus"},
                 "there is no topology torus to simulate; known: dragonfly, fat_tree2, fat_tree3, "
                 "multi_plane, multi_rail, slim_fly");
  expect_refused({"plan", "network", "--traffic", "rings", "--fail", "nic:9999"},
                 "there is no NIC 9999 to fail; this network has 2048");
  expect_refused(
      {"plan", "network", "--traffic", "all-to-all", "--gpus", "16", "--relay", "direct"},
      "no way leads from NIC 0 to NIC 9; planes do not touch: relay over NVLink");
  const TempDir dir;
  const std::string path = dir / "topologies.json";
  write_text(path, R"({"prices": {"switch_dollars": 1, "link_dollars": 1, "source": "-"}})");
  expect_refused({"plan", "network", "--topologies", path},
                 path + ": prices: endpoint_dollars is missing; add it");
}

TEST(PlanServe, PrintsTheDayBesideWhatWasPublished) {
  const Result r = run({"plan", "serve"});
  EXPECT_EQ(r.status, 0) << r.err;
  for (const char* part :
       {"input tokens/s of a prefill node", "73700", "14800", "120.96", "ASSUMED", "MLA", "70272"})
    EXPECT_NE(r.out.find(part), std::string::npos) << part << " is not in:\n" << r.out;
  const TempDir dir;
  const std::string page = dir / "serve.html";
  const json root = json::parse(run({"plan", "serve", "--json", "--html", page}).out);
  EXPECT_NEAR(root["nodes"].get<double>() / 226.75, 1.0, 0.1);
  EXPECT_NE(read_text(page).find("</html>"), std::string::npos);
}

TEST(PlanServe, RefusesInOneSentence) {
  const TempDir dir;
  const std::string path = dir / "load.json";
  json load = json::parse(read_text("configs/serving/day6.json"));
  load["decode"]["ep"] = 100;
  write_text(path, load.dump());
  expect_refused({"plan", "serve", "--load", path},
                 "decode: 256 experts and 32 redundant ones do not divide over ep 100; choose "
                 "redundant so that they do");
  load["decode"]["ep"] = 144;
  load["user_speed"] = 0;
  write_text(path, load.dump());
  expect_refused({"plan", "serve", "--load", path},
                 path + ": user_speed is 0; allowed: 0.01 to 1e+06");
}

}  // namespace
}  // namespace hadal::test
