// hadal info: DeepSeek-V3's own figures, and configs that cannot be.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "tests/cli/run.h"

namespace hadal::test {
namespace {

using nlohmann::json;

constexpr const char* kV3 = "configs/deepseek_v3.json";

TEST(Info, GivesTheFiguresOfDeepSeekV3) {
  const Result r = run({"info", "--config", kV3});
  EXPECT_EQ(r.status, 0);
  EXPECT_EQ(r.err, "");
  for (const char* line : {
           "parameters            671.03B without MTP\n",
           "MTP module 1          11.61B, embedding and head shared\n",
           "activated per token   37.55B with embedding and head, 36.62B with the head only\n",
           "KV cache              70272 bytes per token in bf16, 40016 in FP8 (61 layers of 512 + "
           "64)\n",
       })
    EXPECT_NE(r.out.find(line), std::string::npos) << line << "is not in:\n" << r.out;
}

TEST(Info, GivesTheSameFiguresAsJson) {
  const json root = json::parse(run({"info", "--config", kV3, "--json"}).out);
  EXPECT_EQ(root["parameters"], 671026404352);
  EXPECT_EQ(root["mtp_parameters"], 11610067968);
  EXPECT_EQ(root["kv_bytes_per_token"], 70272);
  EXPECT_EQ(root["kv_bytes_per_token_fp8"], 40016);
  EXPECT_EQ(root["activated"].get<int64_t>() - root["activated_head_only"].get<int64_t>(),
            int64_t{129280} * 7168);
}

TEST(Info, ReadsACheckpointAndARunConfig) {
  const json model = json::parse(run({"info", "--model", "tests/goldens/base", "--json"}).out);
  EXPECT_EQ(model["parameters"], 351456);
  EXPECT_EQ(run({"info", "--config", "configs/quickstart.json"}).status, 0);
}

// What each impossible config is refused with.
struct Impossible {
  const char* name;
  json changes;
  const char* message;
};

class ImpossibleConfig : public ::testing::TestWithParam<Impossible> {};

TEST_P(ImpossibleConfig, IsRefusedInOneSentence) {
  const TempDir dir;
  json config = json::parse(read_text(kV3));
  config.merge_patch(GetParam().changes);
  const std::string path = dir / "config.json";
  write_text(path, config.dump());
  expect_refused({"info", "--config", path}, path + ": " + GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    All, ImpossibleConfig,
    ::testing::Values(
        Impossible{"HeadsZero",
                   {{"num_attention_heads", 0}, {"num_key_value_heads", 0}},
                   "num_attention_heads is 0; allowed: 1 to 16777216"},
        Impossible{"TopKAboveExperts",
                   {{"num_experts_per_tok", 257}},
                   "num_experts_per_tok is 257; allowed: 1 to n_routed_experts = 256"},
        Impossible{"TopKAboveTheGroups",
                   {{"num_experts_per_tok", 200}},
                   "num_experts_per_tok is 200; allowed: 1 to "
                   "topk_group * (n_routed_experts / n_group) = 128"},
        Impossible{"GroupsNotDividing",
                   {{"n_group", 7}},
                   "n_group is 7; allowed: divisors of n_routed_experts = 256"},
        Impossible{"MoreGroupsChosenThanThereAre",
                   {{"topk_group", 9}},
                   "topk_group is 9; allowed: 1 to n_group = 8"},
        Impossible{"OddRope",
                   {{"qk_rope_head_dim", 63}},
                   "qk_rope_head_dim is 63; allowed: even numbers from 2 (rope turns pairs)"},
        Impossible{"AbsurdWidth",
                   {{"hidden_size", 100000000000}},
                   "hidden_size is 100000000000; allowed: 1 to 16777216"},
        Impossible{"AbsurdProduct",
                   {{"hidden_size", 16777216}, {"vocab_size", 2147483647}},
                   "vocab_size * hidden_size has more than 2^40 elements; allowed: at most "
                   "1099511627776 in one parameter"},
        Impossible{"NegativeLayers",
                   {{"num_hidden_layers", -1}},
                   "num_hidden_layers is -1; allowed: 1 to 4096"},
        Impossible{"MoreDenseLayersThanLayers",
                   {{"first_k_dense_replace", 62}},
                   "first_k_dense_replace is 62; allowed: 0 to num_hidden_layers = 61"},
        Impossible{"AnotherActivation",
                   {{"hidden_act", "gelu"}},
                   "hidden_act is \"gelu\"; hadal reads \"silu\" only; choose another checkpoint"},
        Impossible{"MissingField", {{"hidden_size", nullptr}}, "hidden_size is missing; add it"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Info, RefusesWhatIsNoConfig) {
  const TempDir dir;
  const std::string path = dir / "config.json";
  expect_refused({"info", "--config", path},
                 "cannot open " + path + ": No such file or directory; check the path");
  write_text(path, "");
  expect_refused({"info", "--config", path},
                 path +
                     ", line 1, column 1: invalid JSON, unexpected end of input; expected '[', "
                     "'{', or a literal; correct it there");
  expect_refused({"info"}, "give either --model DIR or --config FILE");
  expect_refused({"info", "--config", kV3, "--tokens", "0"},
                 "--tokens is 0; allowed: 1 to 16777216");
}

}  // namespace
}  // namespace hadal::test
