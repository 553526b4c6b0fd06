// Cluster files: those of the repository, and what is refused.
// SPDX-License-Identifier: Apache-2.0
#include "plan/cluster.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/json.h"
#include "tests/unit/expect_error.h"

namespace hadal::plan {
namespace {

constexpr const char* kH800 = "configs/clusters/h800_2048.json";

TEST(Cluster, ReadsEveryClusterOfTheRepository) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("configs/clusters")) {
    const Cluster c = read_cluster(entry.path().string());
    EXPECT_GT(c.num_devices(), 0) << c.name;
    EXPECT_FALSE(c.device.source.empty());
    ++count;
  }
  EXPECT_GE(count, 6);
}

TEST(Cluster, HasTheNumbersOfDeepSeeksTrainingCluster) {
  const Cluster c = read_cluster(kH800);
  EXPECT_EQ(c.num_devices(), 2048);
  EXPECT_EQ(c.devices_per_node, 8);
  EXPECT_EQ(c.scale_up.bandwidth, 160e9);
  EXPECT_EQ(c.scale_out.bandwidth, 50e9);
  EXPECT_EQ(c.scale_out.effective_bandwidth, 40e9);
  EXPECT_EQ(c.device.sms, 132);
  EXPECT_EQ(c.device.comm_sms, 20);
  EXPECT_EQ(c.topology.kind, "multi_plane");
  EXPECT_EQ(c.topology.planes, 8);
  EXPECT_EQ(c.rate_files.at(0), "configs/clusters/../rates/h800_published.json");
}

class BadCluster : public ::testing::Test {
 protected:
  std::string with(const nlohmann::json& changes) {
    nlohmann::json o = io::read_json(kH800);
    o.merge_patch(changes);
    std::ofstream(path_) << o.dump();
    return path_;
  }
  testing::TempDir dir_;
  std::string path_ = dir_ / "cluster.json";
};

TEST_F(BadCluster, IsRefusedInOneSentence) {
  const auto refused = [&](const nlohmann::json& changes, const std::string& message) {
    EXPECT_ERROR(read_cluster(with(changes)), path_ + message);
  };
  refused({{"num_nodes", 0}}, ": num_nodes is 0; allowed: 1 to 1048576");
  refused({{"device", {{"memory_bytes", nullptr}}}}, ": device: memory_bytes is missing; add it");
  refused({{"device", {{"bf16_flops", -1}}}}, ": device: bf16_flops is -1; it has to be above 0");
  refused({{"device", {{"comm_sms", 132}}}}, ": device: comm_sms is 132; allowed: 0 to 131");
  refused({{"device", {{"reserved_bytes", 1e12}}}},
          ": device: reserved_bytes is 1e+12, not below memory_bytes = 8.55e+10");
  refused({{"scale_out", {{"effective_bandwidth", 60e9}}}},
          ": scale_out: effective_bandwidth is 6e+10, above bandwidth = 5e+10");
  refused({{"scale_out", nullptr}}, ": scale_out is missing; add it");
  refused({{"topology", {{"kind", "multiplane"}}}},
          ": topology: kind is \"multiplane\"; did you mean \"multi_plane\"?");
  refused({{"rates", nlohmann::json::array()}}, ": rates is empty; name a file of rates");
  refused({{"devices", 8}}, ": unknown key \"devices\"; did you mean \"device\"?");
}

}  // namespace
}  // namespace hadal::plan
