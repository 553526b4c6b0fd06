// Generation: the same tokens with speculation on and off and at every chunk size, and its limits.
// SPDX-License-Identifier: Apache-2.0
#include "serve/generator.h"

#include "io/hf.h"
#include "tests/unit/ops.h"

namespace hadal::serve {
namespace {

using test::Machine;

const std::vector<int32_t> kPrompt = {5, 9, 200, 17, 3, 88, 41, 9, 200, 17, 64};

class GeneratorTest : public ::testing::Test {
 protected:
  GeneratorTest() : checkpoint_(io::open_checkpoint("tests/goldens/base")) {
    memory_ = io::load_weights(machine_.ctx, checkpoint_, io::WeightFormat::kF32, weights_);
  }

  // A new decoder for each run; chunk: most tokens of one step.
  GenerateResult run(const GenerateRequest& request, int64_t chunk = 64, int64_t max_tokens = 96,
                     DType act = DType::kF32, int64_t num_mtp = 1) {
    Decoder decoder(
        machine_.ctx, checkpoint_.config, weights_, act,
        {.max_seqs = 1, .max_tokens = max_tokens, .max_step_tokens = chunk, .num_mtp = num_mtp});
    const GenerateResult result = Generator(machine_.ctx, decoder).run(request);
    EXPECT_EQ(decoder.cache().num_free_pages(), (max_tokens + 63) / 64);  // all given back
    return result;
  }

  static GenerateRequest request(const ops::SampleRule& sampling, int64_t max_tokens = 24) {
    GenerateRequest r;
    r.prompt = kPrompt;
    r.max_tokens = max_tokens;
    r.sampling = sampling;
    return r;
  }

  Machine machine_{1};  // threads are tested by tests/model; on a busy machine two would wait
  io::HfCheckpoint checkpoint_;
  Weights weights_;
  Block memory_;
};

const ops::SampleRule kGreedy = {};
const ops::SampleRule kSampled = {.temperature = 0.8, .top_k = 50, .top_p = 0.95, .seed = 7};

TEST_F(GeneratorTest, SpeculationChangesNoToken) {
  for (const ops::SampleRule& rule : {kGreedy, kSampled}) {
    GenerateRequest r = request(rule);
    const std::vector<int32_t> want = run(r).tokens;
    ASSERT_EQ(want.size(), 24u);
    for (int64_t chunk : {1, 2, 5, 64})
      for (int64_t speculate : {0, 1, 2, 3}) {
        r.speculate = speculate;
        const GenerateResult got = run(r, std::max(chunk, int64_t{1}));
        ASSERT_EQ(got.tokens, want) << "speculate " << speculate << ", chunk " << chunk;
        ASSERT_EQ(got.drafted.size(), static_cast<size_t>(speculate));
        for (size_t d = 0; d < got.drafted.size(); ++d) {
          EXPECT_LE(got.accepted[d], got.drafted[d]);
          // A draft counts only where those before it were right.
          EXPECT_LE(got.drafted[d], d > 0 ? got.accepted[d - 1] : got.num_rounds);
        }
        if (speculate > 0) {
          EXPECT_GT(got.drafted[0], 0);
          int64_t accepted = 0;
          for (int64_t a : got.accepted) accepted += a;
          EXPECT_EQ(got.num_rounds + 1 + accepted, 24);
        } else {
          EXPECT_EQ(got.num_rounds, 23);
        }
      }
  }
}

// With one sharp choice everywhere drafts are accepted: the rounds of drafts that are right run
// too.
TEST_F(GeneratorTest, AcceptedDraftsSaveRounds) {
  int64_t accepted = 0;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    GenerateRequest r = request({.temperature = 1.0, .top_k = 3, .seed = seed}, 40);
    r.speculate = 0;
    const std::vector<int32_t> want = run(r).tokens;
    r.speculate = 2;
    const GenerateResult got = run(r);
    ASSERT_EQ(got.tokens, want);
    accepted += got.accepted[0];
    EXPECT_EQ(got.num_rounds + 1 + got.accepted[0] + got.accepted[1], 40);
  }
  EXPECT_GT(accepted, 0);
}

TEST_F(GeneratorTest, SpeculationChangesNoTokenInOtherTypes) {
  for (DType act : {DType::kBF16, DType::kF64}) {
    Weights weights;
    const io::WeightFormat format =
        act == DType::kF64 ? io::WeightFormat::kF64 : io::WeightFormat::kBF16;
    const Block block = io::load_weights(machine_.ctx, checkpoint_, format, weights);
    std::swap(weights, weights_);
    GenerateRequest r = request(kSampled, 10);
    const std::vector<int32_t> want = run(r, 64, 96, act).tokens;
    r.speculate = 3;
    EXPECT_EQ(run(r, 3, 96, act).tokens, want) << dtype_name(act);
    std::swap(weights, weights_);
  }
}

// Any prompt length, a single token included, and prompts longer than a page of the cache.
TEST_F(GeneratorTest, PromptsOfEveryLength) {
  for (size_t length : {1, 2, 3, 63, 64, 65}) {
    GenerateRequest r = request(kSampled, 6);
    r.prompt.clear();
    for (size_t i = 0; i < length; ++i) r.prompt.push_back(static_cast<int32_t>(i * 31 % 250));
    const std::vector<int32_t> want = run(r).tokens;
    ASSERT_EQ(want.size(), 6u);
    for (int64_t speculate : {1, 3}) {
      r.speculate = speculate;
      EXPECT_EQ(run(r, 7).tokens, want) << length << " tokens";
    }
  }
}

// Going on from what was generated is the same text: position and seed decide, not the call.
TEST_F(GeneratorTest, APromptContinuesWhereItWasCut) {
  GenerateRequest r = request(kSampled, 12);
  const std::vector<int32_t> whole = run(r).tokens;
  r.prompt.insert(r.prompt.end(), whole.begin(), whole.begin() + 5);
  r.max_tokens = 7;
  EXPECT_EQ(run(r).tokens, std::vector<int32_t>(whole.begin() + 5, whole.end()));
}

TEST_F(GeneratorTest, SeedsGiveOtherTexts) {
  GenerateRequest r = request({.temperature = 1.0, .seed = 1});
  const std::vector<int32_t> first = run(r).tokens;
  EXPECT_EQ(run(r).tokens, first);
  r.sampling.seed = 2;
  EXPECT_NE(run(r).tokens, first);
}

TEST_F(GeneratorTest, StopTokensEndTheTextAndAreNotInIt) {
  GenerateRequest r = request(kSampled);
  const std::vector<int32_t> whole = run(r).tokens;
  for (int64_t speculate : {0, 2})
    for (size_t at : {size_t{0}, size_t{1}, size_t{7}}) {
      r.speculate = speculate;
      r.stop_ids = {-5, whole[at], 100000};
      const auto first = std::find(whole.begin(), whole.end(), whole[at]);
      EXPECT_EQ(run(r).tokens, std::vector<int32_t>(whole.begin(), first));
    }
}

TEST_F(GeneratorTest, Limits) {
  GenerateRequest r = request(kGreedy, 0);
  EXPECT_TRUE(run(r).tokens.empty());
  for (int64_t speculate : {0, 1, 3}) {
    r.speculate = speculate;
    r.max_tokens = 1;
    EXPECT_EQ(run(r).tokens.size(), 1u);
    r.max_tokens = 1000;  // the context of 20 ends it: 11 of the prompt and 9 more
    EXPECT_EQ(run(r, 64, 20).tokens.size(), 9u);
    EXPECT_EQ(run(r, 64, 12).tokens.size(), 1u);
  }
}

TEST_F(GeneratorTest, TheCallerSeesEachTokenAndCanEndTheText) {
  GenerateRequest r = request(kSampled);
  const std::vector<int32_t> whole = run(r).tokens;
  for (int64_t speculate : {0, 3}) {
    std::vector<int32_t> seen;
    r.speculate = speculate;
    r.on_token = [&](int32_t token) {
      seen.push_back(token);
      return seen.size() < 6;
    };
    EXPECT_EQ(run(r).tokens, std::vector<int32_t>(whole.begin(), whole.begin() + 6));
    EXPECT_EQ(seen, std::vector<int32_t>(whole.begin(), whole.begin() + 6));
  }
}

TEST_F(GeneratorTest, BadRequestsAreSentences) {
  GenerateRequest r = request(kGreedy);
  r.prompt.clear();
  EXPECT_ERROR(run(r), "the prompt is empty; give at least one token");
  r = request(kGreedy);
  EXPECT_ERROR(run(r, 64, 11), "the prompt has 11 tokens; at most 10 fit the context of 11");
  r.prompt[3] = 320;
  EXPECT_ERROR(run(r), "token 320 is outside the vocabulary of 320");
  r.prompt[3] = -1;
  EXPECT_ERROR(run(r), "token -1 is outside the vocabulary of 320");
  r = request(kGreedy);
  r.speculate = 1;
  EXPECT_ERROR(run(r, 64, 96, DType::kF32, 0),
               "speculation needs a model with an MTP module; use --speculate 0");
  r.speculate = -1;
  EXPECT_ERROR(run(r), "the number of drafts is -1; allowed: 0 (no speculation) or more");
  r = request({.temperature = -1.0});
  EXPECT_ERROR(run(r), "temperature = -1 must be 0 (greedy) or a positive number");
}

// An error in the middle gives the cache back: the same decoder serves the next request.
TEST_F(GeneratorTest, AnErrorLeavesTheDecoderUsable) {
  Decoder decoder(machine_.ctx, checkpoint_.config, weights_, DType::kF32,
                  {.max_seqs = 1, .max_tokens = 96, .max_step_tokens = 64, .num_mtp = 1});
  Generator generator(machine_.ctx, decoder);
  const std::vector<int32_t> want = run(request(kGreedy)).tokens;
  EXPECT_THROW(generator.run(request({.temperature = -1.0})), Error);
  EXPECT_EQ(decoder.cache().num_free_pages(), 2);
  EXPECT_EQ(generator.run(request(kGreedy)).tokens, want);
  EXPECT_EQ(generator.run(request(kGreedy)).tokens, want);
}

// One generator for many prompts that share beginnings, with speculation coming and going, gives
// what a new one gives.
TEST_F(GeneratorTest, GoesOnFromWhereThePromptDiffers) {
  Decoder decoder(machine_.ctx, checkpoint_.config, weights_, DType::kF32,
                  {.max_seqs = 1, .max_tokens = 96, .max_step_tokens = 7, .num_mtp = 1});
  Generator generator(machine_.ctx, decoder);
  GenerateRequest r = request(kSampled, 9);
  std::vector<int32_t> before;
  const int64_t speculate[] = {0, 2, 0, 1, 3, 1, 0, 2};
  for (size_t i = 0; i < std::size(speculate); ++i) {
    r.speculate = speculate[i];
    const GenerateResult got = generator.run(r);
    EXPECT_EQ(got.tokens, run(r).tokens) << i;
    const int64_t same =
        std::mismatch(before.begin(), before.end(), r.prompt.begin(), r.prompt.end()).first -
        before.begin();
    if (i > 1) {
      EXPECT_GE(got.num_reused, same - 1) << i;
    }
    EXPECT_LE(got.num_reused, same) << i;
    before = r.prompt;
    before.insert(before.end(), got.tokens.begin(), got.tokens.end());
    // A turn after the reply, another reply from the middle of it, the same prompt again.
    if (i % 3 == 0) r.prompt = before, r.prompt.push_back(static_cast<int32_t>(50 + i));
    if (i % 3 == 1) r.prompt.resize(r.prompt.size() - 5), r.prompt.push_back(77);
  }
}

TEST_F(GeneratorTest, StopsBetweenStepsOfAPrompt) {
  Decoder decoder(machine_.ctx, checkpoint_.config, weights_, DType::kF32,
                  {.max_seqs = 1, .max_tokens = 96, .max_step_tokens = 4, .num_mtp = 1});
  Generator generator(machine_.ctx, decoder);
  GenerateRequest r = request(kGreedy, 5);
  r.should_stop = [] { return true; };
  EXPECT_TRUE(generator.run(r).tokens.empty());
  r.should_stop = nullptr;
  const GenerateResult got = generator.run(r);
  EXPECT_EQ(got.num_reused, 4);
  EXPECT_EQ(got.tokens, run(r).tokens);
  EXPECT_FALSE(got.stopped);
  r.stop_ids = {got.tokens[2]};
  EXPECT_TRUE(generator.run(r).stopped);
}

TEST(GenerateResult, Rates) {
  GenerateResult r;
  EXPECT_EQ(r.acceptance(), 0.0);
  EXPECT_EQ(r.tokens_per_second(), 0.0);
  r.drafted = {8, 3}, r.accepted = {6, 1};
  r.tokens = {1, 2, 3}, r.decode_seconds = 0.5;
  EXPECT_EQ(r.acceptance(), 0.75);
  EXPECT_EQ(r.tokens_per_second(), 4.0);
}

}  // namespace
}  // namespace hadal::serve
