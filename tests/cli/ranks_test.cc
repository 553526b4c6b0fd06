// --ranks: generate, chat, eval and verify over several processes, and what they refuse.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <nlohmann/json.hpp>

#include "io/safetensors.h"
#include "tests/cli/base_copy.h"
#include "tests/unit/base_model.h"

namespace hadal::test {
namespace {

using nlohmann::json;

constexpr const char* kBase = "tests/goldens/base";

Arguments with_ranks(Arguments arguments, const std::string& ranks) {
  arguments.insert(arguments.end(), {"--ranks", ranks});
  return arguments;
}

Arguments generate(Arguments more) {
  Arguments all = {"generate", "--model", kBase, "--prompt-ids", "5,9,200", "--max-tokens", "24"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(Ranks, GenerateTheTextOfOne) {
  const TempDir dir;
  for (const Arguments& settings : {Arguments{},
                                    {"--speculate", "2", "--chunk", "2"},
                                    {"--temperature", "0.8", "--seed", "4"}}) {
    Arguments arguments = generate(settings);
    arguments.insert(arguments.end(), {"--json", "--logits", dir / "one"});
    const Result one = run(arguments);
    ASSERT_EQ(one.status, 0) << one.err;
    for (const char* ranks : {"2", "4"}) {
      arguments.back() = dir / "some";
      const Result some = run(with_ranks(arguments, ranks));
      ASSERT_EQ(some.status, 0) << some.err;
      EXPECT_TRUE(some.err.starts_with(concat("memory of each of ", ranks, " ranks: weights ")))
          << some.err;
      EXPECT_EQ(json::parse(some.out)["token_ids"], json::parse(one.out)["token_ids"]);
      const io::SafetensorsFile a(dir / "one"), b(dir / "some");
      const Tensor want = a.at("logits").tensor(), got = b.at("logits").tensor();
      ASSERT_EQ(got.num_elements(), want.num_elements());
      for (int64_t i = 0; i < want.num_elements(); ++i)
        ASSERT_NEAR(got.data<float>()[i], want.data<float>()[i], 2e-5);
    }
  }
}

TEST(Ranks, RefuseWhatCannotBeSplit) {
  expect_refused(with_ranks(generate({}), "3"),
                 "ranks = 3 does not divide num_attention_heads = 4");
  expect_refused(with_ranks(generate({}), "0"), "--ranks is 0; allowed: 1 to 64");
  setenv("HADAL_RANK", "0", 1);
  setenv("HADAL_WORLD_SIZE", "2", 1);
  expect_refused(with_ranks(generate({}), "2"),
                 "--ranks starts its processes itself; start hadal once, without mpirun or srun");
  unsetenv("HADAL_RANK");
  unsetenv("HADAL_WORLD_SIZE");
  // V3's heads are 192 rows each, and a block has 128.
  expect_refused(
      with_ranks({"generate", "--model", "tests/goldens/v3_heads", "--prompt-ids", "1"}, "2"),
      "tests/goldens/v3_heads/model.safetensors: tensor "
      "model.layers.0.self_attn.q_b_proj.weight [384, 128] is scaled in blocks of 128 x "
      "128, which ranks = 2 would cut: a rank would have 192 rows; use fewer ranks, or "
      "--dtype bf16");
  // More than any host has, so that a machine with GPUs says it too.
  const Result gpus = run(with_ranks(generate({"--device", "cuda"}), "4"));
  if (gpus.status != 0) {
    EXPECT_NE(gpus.err.find("4 ranks of this host need a GPU each"), std::string::npos) << gpus.err;
  }
  const Result r = run(with_ranks({"generate", "--model", kBase, "--prompt-ids", "320"}, "2"));
  EXPECT_EQ(r.status, 1);
  EXPECT_TRUE(r.err.ends_with("\nhadal: token 320 is outside the vocabulary of 320\n")) << r.err;
}

// What the leader does wrong is said as one process would say it; a rank that dies is named.
TEST(Ranks, ADeadRankIsNamed) {
  setenv("HADAL_SABOTAGE", "die_in_collective", 1);
  const Result r = run(with_ranks(generate({}), "2"));
  unsetenv("HADAL_SABOTAGE");
  EXPECT_EQ(r.status, 1);
  EXPECT_TRUE(
      r.err.ends_with("\nhadal: rank 1 failed at step 4, in all_reduce (model): it was "
                      "killed by signal 9 (Killed)\n"))
      << r.err;
}

TEST(Ranks, VerifyTheirDecode) {
  const Arguments verify = {"verify", "--model", kBase, "--golden",
                            "tests/goldens/base/golden.safetensors"};
  Arguments as_json = with_ranks(verify, "4");
  as_json.emplace_back("--json");
  const Result r = run(as_json);
  ASSERT_EQ(r.status, 0) << r.err;
  const json kinds = json::parse(r.out)["kinds"];
  for (const char* kind : {"logits by decode", "mtp.logits by decode"})
    EXPECT_LT(kinds[kind]["worst_relative_l2"].get<double>(), 2e-6) << kind;
  EXPECT_TRUE(kinds.contains("greedy, speculate 3"));
  // A golden of another model.
  const Result other = run(with_ranks({"verify", "--model", "tests/goldens/odd", "--golden",
                                       "tests/goldens/base/golden.safetensors"},
                                      "2"));
  EXPECT_EQ(other.status, 1);
  EXPECT_TRUE(other.err.starts_with("hadal: verification failed: ")) << other.err;
  expect_refused(
      with_ranks({"verify", "--model", kBase, "--golden", "tests/goldens/base/train.safetensors"},
                 "2"),
      "--ranks is 2, but ranks share what generation computes, not training: give a "
      "golden.safetensors and --dtype f64, f32 or bf16");
  expect_refused(with_ranks({"verify", "--model", kBase, "--record", "x"}, "2"),
                 "--record writes what one process computes; leave out --ranks");
}

TEST(Ranks, EvalGivesThePerplexityOfOne) {
  const TempDir dir;
  const std::string model = copy_of_base(dir), text = dir / "text.txt";
  testing::chat_tokenizer().save(model + "/tokenizer.json");
  std::string words;
  for (int i = 0; i < 10; ++i) words += "the quick brown fox jumps over the lazy dog\n";
  write_text(text, words);
  const Arguments eval = {"eval", "--model", model, "--text", text, "--window", "64", "--json"};
  const Result one = run(eval), two = run(with_ranks(eval, "2"));
  ASSERT_EQ(two.status, 0) << two.err;
  const double want = json::parse(one.out)["nats_per_token"];
  EXPECT_NEAR(json::parse(two.out)["nats_per_token"].get<double>(), want, 1e-5 * want);
}

}  // namespace
}  // namespace hadal::test
