// Sequences that share a beginning: the same results as each on its own, with fewer tokens run.
// SPDX-License-Identifier: Apache-2.0
#include "serve/prefix_runner.h"

#include "core/rng.h"
#include "serve/generator.h"
#include "tests/unit/base_model.h"
#include "tests/unit/expect_error.h"

namespace hadal::serve {
namespace {

using testing::BaseModel;

std::vector<int32_t> random_ids(uint64_t stream, uint64_t length) {
  const Rng rng(11, stream);
  std::vector<int32_t> ids = {0};
  for (uint64_t i = 1; i < length; ++i) ids.push_back(static_cast<int32_t>(rng.u64(i) % 320));
  return ids;
}

TEST(PrefixRunner, GivesTheProbabilitiesOfEachTextAlone) {
  BaseModel model;
  const Rng rng(12, 0);
  for (int64_t chunk : {1, 7, 64}) {
    Decoder decoder = model.decoder(chunk);
    PrefixRunner runner(model.ctx, decoder);
    std::vector<int32_t> ids = random_ids(1, 40);
    for (uint64_t round = 0; round < 8; ++round) {
      // Keeps a part of the text before and goes on differently.
      ids.resize(1 + rng.u64(2 * round) % 40);
      const std::vector<int32_t> more = random_ids(round + 2, 30);
      ids.insert(ids.end(), more.begin() + 1, more.end());
      const std::vector<double> naive = model.naive_log_probs(ids);
      const auto first = static_cast<int64_t>(1 + rng.u64(2 * round + 1) % (ids.size() - 1));
      const std::vector<double> log_probs = runner.log_probs(ids, first);
      ASSERT_EQ(log_probs.size(), ids.size() - static_cast<size_t>(first));
      for (size_t i = 0; i < log_probs.size(); ++i)
        EXPECT_NEAR(log_probs[i], naive[static_cast<size_t>(first) - 1 + i], 2e-6);
    }
  }
}

TEST(PrefixRunner, RunsOnlyWhatDiffers) {
  BaseModel model;
  Decoder decoder = model.decoder(16);
  PrefixRunner runner(model.ctx, decoder);
  std::vector<int32_t> ids = random_ids(1, 50);
  const std::vector<double> before = runner.log_probs(ids, 40);
  EXPECT_EQ(runner.num_run(), 49);
  ids[45] = (ids[45] + 1) % 320;
  const std::vector<double> after = runner.log_probs(ids, 44);
  EXPECT_EQ(runner.num_run(), 49 + 6);
  EXPECT_EQ(after[0], before[4]);  // the same bits
  EXPECT_NE(after[1], before[5]);
  EXPECT_TRUE(runner.log_probs(ids, 50).empty());
}

TEST(PrefixRunner, DrawsTheTokensOfTheGenerator) {
  BaseModel model;
  const ops::SampleRule rule{.temperature = 1.0, .top_k = 0, .top_p = 0.9, .seed = 5};
  std::vector<int32_t> ids = random_ids(3, 20);
  std::vector<int32_t> expected;
  {
    Decoder decoder = model.decoder(16);
    GenerateRequest request;
    request.prompt = ids;
    request.max_tokens = 20;
    request.sampling = rule;
    expected = Generator(model.ctx, decoder).run(request).tokens;
  }
  Decoder decoder = model.decoder(16);
  PrefixRunner runner(model.ctx, decoder);
  std::vector<int32_t> tokens;
  for (int i = 0; i < 20; ++i) {
    tokens.push_back(*runner.next(ids, rule));
    ids.push_back(tokens.back());
  }
  EXPECT_EQ(tokens, expected);
  EXPECT_EQ(runner.num_run(), 39);
}

TEST(PrefixRunner, StopsBetweenSteps) {
  BaseModel model;
  Decoder decoder = model.decoder(8);
  PrefixRunner runner(model.ctx, decoder);
  int asked = 0;
  runner.should_stop = [&] { return ++asked == 2; };
  const std::vector<int32_t> ids = random_ids(4, 40);
  EXPECT_FALSE(runner.next(ids, {}).has_value());
  EXPECT_EQ(runner.num_run(), 16);
  EXPECT_TRUE(runner.next(ids, {}).has_value());  // goes on where it was
  EXPECT_EQ(runner.num_run(), 40);
}

TEST(PrefixRunner, NamesItsErrors) {
  BaseModel model;
  Decoder decoder = model.decoder(64);
  PrefixRunner runner(model.ctx, decoder);
  EXPECT_ERROR(runner.next({}, {}), "the prompt is empty; give at least one token");
  EXPECT_ERROR(
      runner.next({0, 320}, {}),
      "token 320 is outside the vocabulary of 320; the tokenizer belongs to another model");
  EXPECT_ERROR(runner.next(random_ids(1, 513), {}),
               "the text has 513 tokens; at most 512 fit the context");
  EXPECT_ERROR(runner.log_probs({0, 1}, 0),
               "cannot score tokens 0 to 2: the first one needs a token before it");
}

}  // namespace
}  // namespace hadal::serve
