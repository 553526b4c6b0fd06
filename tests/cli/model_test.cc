// generate, init and verify on checkpoints that are whole, damaged or absent.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/safetensors.h"
#include "tests/cli/base_copy.h"

namespace hadal::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kBase = "tests/goldens/base";

Arguments generate(const std::string& model) {
  return {"generate", "--model", model, "--prompt-ids", "5,9,200", "--max-tokens", "4"};
}

TEST(Generate, RefusesWhatIsNoModel) {
  const TempDir dir;
  expect_refused(generate(dir / "absent"), "there is no directory " + dir / "absent");
  expect_refused(generate(dir.path()),
                 dir.path() +
                     " holds no config.json and no checkpoints/latest; give a checkpoint "
                     "directory or the output directory of a training run");
  const std::string model = copy_of_base(dir);
  fs::remove(model + "/model.safetensors");
  const Result r = run(generate(model));
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.err,
            "hadal: " + model +
                ": holds neither model.safetensors nor model.safetensors.index.json; give the "
                "directory of a checkpoint\n");
}

TEST(Generate, RefusesATruncatedCheckpoint) {
  const TempDir dir;
  const std::string model = copy_of_base(dir), file = model + "/model.safetensors";
  const auto whole = fs::file_size(file);
  for (const uintmax_t left :
       {whole - 1, whole / 2, uintmax_t{1000}, uintmax_t{8}, uintmax_t{5}, uintmax_t{0}}) {
    fs::resize_file(file, left);
    const Result r = run(generate(model));
    EXPECT_EQ(r.status, 1) << left << " bytes";
    EXPECT_EQ(r.out, "");
    EXPECT_TRUE(r.err.starts_with("hadal: " + file)) << r.err;
    EXPECT_TRUE(r.err.ends_with("the file is damaged: download or write it again\n")) << r.err;
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
  }
}

TEST(Generate, RefusesRequestsThatCannotBe) {
  const auto with = [](Arguments more) {
    Arguments all = {"generate", "--model", kBase};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  expect_refused(with({}), "give either --prompt TEXT or --prompt-ids 5,9,200");
  expect_refused(with({"--prompt", "x"}),
                 "tests/goldens/base/tokenizer.json is missing; use --prompt-ids 5,9,200");
  expect_refused(with({"--prompt-ids", "1,x"}),
                 "token ids are numbers with commas between them, like 5,9,200; got \"1,x\"");
  expect_refused(with({"--prompt-ids", "320"}), "token 320 is outside the vocabulary of 320");
  expect_refused(with({"--prompt-ids", "1", "--temperature", "-1"}),
                 "--temperature is -1; allowed: 0 (greedy) to 100");
  expect_refused(with({"--prompt-ids", "1", "--top-p", "0"}),
                 "--top-p is 0; allowed: above 0, at most 1");
  expect_refused(with({"--prompt-ids", "1", "--max-tokens", "0"}),
                 "--max-tokens is 0; give 1 or more");
  expect_refused(with({"--prompt-ids", "1", "--device", "gpu"}),
                 "--device is gpu; allowed: cpu, cuda");
#ifndef HADAL_HAS_CUDA
  expect_refused(with({"--prompt-ids", "1", "--device", "cuda"}),
                 "--device is cuda: this build has no CUDA backend; configure with the preset "
                 "cuda, or use cpu");
#endif
  expect_refused(with({"--prompt-ids", "1", "--dtype", "f16"}),
                 "--dtype is f16; allowed: f32, bf16");
  expect_refused(with({"--prompt-ids", "1", "--kv-cache", "int8"}),
                 "--kv-cache is int8; allowed: auto, bf16, fp8");
  expect_refused(with({"--prompt-ids", "1", "--kv-cache", "bf16"}),
                 "--kv-cache is bf16, but this model computes in f32 and keeps its cache in that; "
                 "use --dtype bf16, or --kv-cache auto or fp8");
}

TEST(Generate, GivesTheSameTokensWithAndWithoutSpeculation) {
  const auto tokens = [](Arguments more) {
    Arguments all = generate(kBase);
    all[6] = "24";
    all.emplace_back("--json");
    all.insert(all.end(), more.begin(), more.end());
    const Result r = run(all);
    EXPECT_EQ(r.status, 0) << r.err;
    return json::parse(r.out)["token_ids"];
  };
  const json greedy = tokens({}), sampled = tokens({"--temperature", "1", "--seed", "3"});
  EXPECT_EQ(greedy.size(), 24U);
  EXPECT_NE(greedy, sampled);
  EXPECT_EQ(tokens({"--speculate", "1"}), greedy);
  EXPECT_EQ(tokens({"--speculate", "3", "--chunk", "2"}), greedy);
  EXPECT_EQ(tokens({"--threads", "1"}), greedy);
  EXPECT_EQ(tokens({"--temperature", "1", "--seed", "3", "--speculate", "2"}), sampled);
}

// Logits over an FP8 cache have the same bits in any chunks and with speculation, and are not those
// over a plain one.
TEST(Generate, KeepsTheCacheAsAsked) {
  const TempDir dir;
  const auto logits = [&](Arguments more) {
    Arguments all = generate(kBase);
    all[6] = "12";
    all.insert(all.end(), {"--ignore-eos", "--logits", dir / "logits"});
    all.insert(all.end(), more.begin(), more.end());
    const Result r = run(all);
    EXPECT_EQ(r.status, 0) << r.err;
    return read_text(dir / "logits");
  };
  const std::string plain = logits({"--kv-cache", "auto"}), fp8 = logits({"--kv-cache", "fp8"});
  EXPECT_EQ(plain, logits({}));
  EXPECT_NE(plain, fp8);
  EXPECT_EQ(fp8, logits({"--kv-cache", "fp8", "--speculate", "2", "--chunk", "2"}));
  const std::string bf16 = logits({"--dtype", "bf16"});
  EXPECT_EQ(bf16, logits({"--dtype", "bf16", "--kv-cache", "bf16"}));
  EXPECT_NE(bf16, logits({"--dtype", "bf16", "--kv-cache", "fp8"}));
}

// Each row picks the token after it, and chunks do not change a bit of it.
TEST(Generate, WritesTheLogitsOfEveryToken) {
  const TempDir dir;
  const auto write = [&](const std::string& path, Arguments more) {
    Arguments all = generate(kBase);
    all.insert(all.end(), {"--json", "--logits", path});
    all.insert(all.end(), more.begin(), more.end());
    const Result r = run(all);
    EXPECT_EQ(r.status, 0) << r.err;
    return json::parse(r.out)["token_ids"].get<std::vector<int32_t>>();
  };
  const std::string path = dir / "logits.safetensors";
  std::vector<int32_t> ids = {5, 9, 200};
  for (const int32_t id : write(path, {})) ids.push_back(id);
  write(path + ".2", {"--chunk", "2", "--speculate", "1"});
  EXPECT_EQ(read_text(path), read_text(path + ".2"));

  const io::SafetensorsFile file(path);
  const Tensor stored = file.at("input_ids").tensor(), logits = file.at("logits").tensor();
  ASSERT_EQ(stored.shape(), Shape({7}));
  ASSERT_EQ(logits.shape(), Shape({7, 320}));
  EXPECT_EQ(std::vector<int32_t>(stored.data<int32_t>(), stored.data<int32_t>() + 7), ids);
  for (int64_t i = 2; i < 6; ++i) {
    const float* row = logits.data<float>() + i * 320;
    EXPECT_EQ(std::max_element(row, row + 320) - row, ids[static_cast<size_t>(i + 1)]);
  }
  Arguments absent = generate(kBase);
  absent.insert(absent.end(), {"--logits", dir / "absent/logits.safetensors"});
  const Result r = run(absent);
  EXPECT_EQ(r.status, 1);
  EXPECT_TRUE(r.err.find(dir / "absent/") != std::string::npos) << r.err;
}

TEST(Init, WritesWhatGenerateReads) {
  const TempDir dir;
  const std::string config = dir / "config.json";
  json model = json::parse(read_text(std::string(kBase) + "/config.json"));
  write_text(config, model.dump());
  for (const char* dtype : {"f32", "bf16", "fp8", "fp8-ue8m0"}) {
    const std::string out = dir / dtype;
    const Result r = run({"init", "--config", config, "--seed", "3", "--dtype", dtype, out});
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.out, "wrote 449608 parameters, 98152 of them MTP, to " + out + " in " + dtype +
                         " (seed 3)\n");
    EXPECT_EQ(run(generate(out)).status, 0) << dtype;
  }
  expect_refused({"init", "--config", config, dir / "f32"},
                 dir / "f32" + " exists; give a directory that does not");
  expect_refused({"init", "--config", config, "--dtype", "int4", dir / "x"},
                 "--dtype is int4; allowed: f32, bf16, fp8, fp8-ue8m0");
}

}  // namespace
}  // namespace hadal::test
