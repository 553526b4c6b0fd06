// convert and bench: checkpoints in other formats, and rows that a program can read.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/cli/base_copy.h"

namespace hadal::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kBase = "tests/goldens/base";

Arguments generate(const std::string& model) {
  return {"generate", "--model", model, "--prompt-ids", "5,9,200", "--max-tokens", "4"};
}

TEST(Convert, WritesWhatGenerateReads) {
  const TempDir dir;
  for (const std::string to : {"bf16", "fp8", "int8", "int4"}) {
    const std::string out = dir / to;
    const Result r = run({"convert", "--model", kBase, "--to", to, out});
    ASSERT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.out, "wrote " + out + " in " + to + "\n");
    EXPECT_FALSE(fs::exists(out + ".tmp"));
    EXPECT_EQ(run(generate(out)).status, 0) << to;
  }
  const json config = json::parse(read_text(dir / "int4" + "/config.json"));
  EXPECT_EQ(config["quantization_config"]["quant_method"], "compressed-tensors");
  // Decoded, the same weights run in another type.
  Arguments decoded = generate(dir / "int8");
  decoded.insert(decoded.end(), {"--dtype", "f32"});
  EXPECT_EQ(run(decoded).status, 0);
}

TEST(Convert, CutsIntoShardsAndRefusesTruncatedOnes) {
  const TempDir dir;
  const std::string model = dir / "int4";
  ASSERT_EQ(run({"convert", "--model", kBase, "--to", "int4", model, "--shard-mib", "1"}).status,
            0);
  std::vector<std::string> shards;
  for (const auto& entry : fs::directory_iterator(model))
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path().string());
  if (shards.size() > 1) {
    EXPECT_TRUE(fs::exists(model + "/model.safetensors.index.json"));
  }
  EXPECT_EQ(run(generate(model)).status, 0);
  for (const std::string& shard : shards) {
    const auto whole = fs::file_size(shard);
    fs::copy_file(shard, shard + ".whole");
    fs::resize_file(shard, whole / 2);
    const Result r = run(generate(model));
    EXPECT_EQ(r.status, 1);
    EXPECT_TRUE(r.err.ends_with("the file is damaged: download or write it again\n")) << r.err;
    fs::rename(shard + ".whole", shard);
  }
}

TEST(Convert, RefusesWhatItCannotDo) {
  const TempDir dir;
  expect_refused({"convert", "--model", kBase, "--to", "int3", dir / "x"},
                 "--to is int3; allowed: f32, bf16, fp8, fp8-ue8m0, int8, int4");
  expect_refused({"convert", "--model", kBase, "--to", "int4", dir.path()},
                 dir.path() + " exists; give a directory that does not");
  ASSERT_EQ(run({"convert", "--model", kBase, "--to", "int4", dir / "int4"}).status, 0);
  expect_refused({"convert", "--model", dir / "int4", "--to", "int8", dir / "again"},
                 dir / "int4" +
                     " holds INT8 or INT4 weights; convert from the checkpoint that it was made "
                     "of");
  EXPECT_FALSE(fs::exists(dir / "again"));
  EXPECT_FALSE(fs::exists(dir / "again.tmp"));
}

TEST(Bench, RowsHaveRatesAndCeilings) {
  const TempDir dir;
  const std::vector<Arguments> commands = {
      {"bench", "decode", "--format", "bf16,int4", "--depth", "0,70"},
      {"bench", "decode", "--depth", "130", "--kv-cache", "bf16,fp8"},
      {"bench", "prefill", "--format", "fp8", "--tokens", "20"},
      {"bench", "ops", "--format", "int8"}};
  for (Arguments command : commands) {
    const std::string kind = command[1];
    command.insert(command.end(), {"--config", std::string(kBase) + "/config.json", "--samples",
                                   "1", "--threads", "2"});
    const Result r = run(command);
    ASSERT_EQ(r.status, 0) << r.err;
    std::istringstream lines(r.out);
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      const json row = json::parse(line);
      EXPECT_EQ(row["bench"], kind);
      for (const char* key : {"commit", "cpu", "isa", "threads", "command", "seconds", "ceilings"})
        EXPECT_TRUE(row.contains(key)) << key;
      EXPECT_GT(row["ceilings"]["gflop_per_s"], 0.0);
      EXPECT_GT(row["seconds"]["median"], 0.0);
    }
    EXPECT_GT(count, 0);
  }
  expect_refused({"bench", "decode", "--format", "int3"},
                 "--format is int3; allowed: f32, bf16, fp8, int8, int4");
  expect_refused({"bench", "decode", "--kv-cache", "f32"},
                 "--kv-cache is f32; allowed: auto, bf16, fp8");
}

// Eight choices of a token on the rank's four experts: two rows of the token for each.
TEST(Bench, LayerHasTheRowsOfABalancedRank) {
  const Result r = run({"bench", "layer", "--config", "configs/experts_256.json", "--tokens", "130",
                        "--format", "bf16,fp8", "--samples", "1", "--threads", "2"});
  ASSERT_EQ(r.status, 0) << r.err;
  std::istringstream lines(r.out);
  std::vector<std::string> products;
  for (std::string line; std::getline(lines, line);) {
    const json row = json::parse(line);
    EXPECT_EQ(row["expert_rows"], 8 * 130);
    EXPECT_GT(row["forward_ms"], 0.0);
    products.push_back(row["products"]);
  }
  EXPECT_EQ(products, (std::vector<std::string>{"bf16", "fp8"}));
}

// Two micro-batches in flight, transfers beside the work or in its stream: all of them end.
TEST(Bench, OverlapRunsEveryOrder) {
  const Result r = run({"bench", "overlap", "--config", "configs/experts_256.json", "--tokens",
                        "130", "--layers", "2", "--format", "bf16,fp8", "--samples", "1", "--gbps",
                        "1,10", "--threads", "2"});
  ASSERT_EQ(r.status, 0) << r.err;
  std::istringstream lines(r.out);
  int rows = 0;
  for (std::string line; std::getline(lines, line); ++rows) {
    const json row = json::parse(line);
    EXPECT_EQ(row["link_GBps"], rows % 2 == 0 ? 1.0 : 10.0);
    // Of 130 tokens 923 rows leave: as many bytes as the link takes so long for.
    EXPECT_GE(row["transfers_ms"],
              1e3 * row["sent_MB"].get<double>() / 1e3 / row["link_GBps"].get<double>());
    EXPECT_GE(row["serial_ms"], row["transfers_ms"].get<double>());
  }
  EXPECT_EQ(rows, 4);
  expect_refused({"bench", "overlap", "--comm-sms", "0"}, "--comm-sms is 0; allowed: 1 to 64");
  expect_refused({"bench", "overlap", "--ranks", "2"},
                 "--ranks is 2: transfers between ranks are those of GPUs; add --device cuda, or "
                 "leave it out");
}

}  // namespace
}  // namespace hadal::test
