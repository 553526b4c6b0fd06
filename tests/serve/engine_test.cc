// The engine: each request's tokens are Generator's, whatever else runs and however it runs.
// SPDX-License-Identifier: Apache-2.0
#include "serve/engine.h"

#include <cmath>
#include <map>

#include "core/rng.h"
#include "io/bpe_train.h"
#include "io/hf.h"
#include "serve/generator.h"
#include "serve/grammar.h"
#include "tests/unit/ops.h"

namespace hadal::serve {
namespace {

using test::Machine;

struct Result {
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs, prompt_logprobs;
  std::optional<Finish> finish;
  int64_t num_generated = 0, num_cached = 0;
  std::string error;
};

struct Setting {
  int64_t max_seqs = 4, max_tokens = 256, chunk = 16, num_pages = 0, num_mtp = 1;
  Engine::Options options = {};
};

// Every test runs twice: each step after the one before, and steps that overlap.
class EngineTest : public ::testing::TestWithParam<bool> {
 protected:
  EngineTest() : checkpoint_(io::open_checkpoint("tests/goldens/base")) {
    memory_ = io::load_weights(machine_.ctx, checkpoint_, io::WeightFormat::kF32, weights_);
  }

  // An engine that is stepped by hand, and what it delivered.
  struct Run {
    Run(EngineTest& t, const Setting& s)
        : decoder(t.machine_.ctx, t.checkpoint_.config, t.weights_, DType::kF32,
                  {.max_seqs = s.max_seqs,
                   .max_tokens = s.max_tokens,
                   .max_step_tokens = s.chunk,
                   .num_mtp = s.num_mtp,
                   .num_pages = s.num_pages}),
          engine(t.machine_.ctx, decoder, std::nullopt, with_overlap(s.options),
                 [this](std::vector<Output>&& outputs) { take(outputs); }) {}

    static Engine::Options with_overlap(Engine::Options options) {
      options.overlap = GetParam();
      return options;
    }
    void take(const std::vector<Output>& outputs) {
      for (const Output& out : outputs) {
        Result& r = results[out.id];
        EXPECT_FALSE(r.finish) << "request " << out.id << " ended twice";
        r.tokens.insert(r.tokens.end(), out.tokens.begin(), out.tokens.end());
        r.logprobs.insert(r.logprobs.end(), out.logprobs.begin(), out.logprobs.end());
        r.prompt_logprobs.insert(r.prompt_logprobs.end(), out.prompt_logprobs.begin(),
                                 out.prompt_logprobs.end());
        r.finish = out.finish;
        r.num_generated = out.num_generated;
        r.num_cached = out.num_cached;
        r.error = out.error;
      }
    }
    void step() { engine.step(clock += 0.01); }
    void finish_all() {
      for (int i = 0; engine.num_open() > 0; ++i) {
        ASSERT_LT(i, 20000) << "requests do not end";
        step();
      }
    }
    Result one(Request request) {
      EXPECT_EQ(engine.submit({request}), Engine::Answer::kAccepted);
      finish_all();
      return results[request.id];
    }

    Decoder decoder;
    Engine engine;
    std::map<uint64_t, Result> results;
    double clock = 0.0;
  };

  std::vector<int32_t> alone(const Request& r, int64_t max_tokens = 256) {
    Decoder decoder(machine_.ctx, checkpoint_.config, weights_, DType::kF32,
                    {.max_seqs = 1, .max_tokens = max_tokens, .max_step_tokens = 64});
    GenerateRequest g;
    g.prompt = r.prompt;
    g.max_tokens = r.params.max_tokens;
    g.sampling = {.temperature = r.params.temperature,
                  .top_k = r.params.top_k,
                  .top_p = r.params.top_p,
                  .seed = r.params.seed};
    g.stop_ids.assign(r.params.stop_ids.begin(), r.params.stop_ids.end());
    return Generator(machine_.ctx, decoder).run(g).tokens;
  }

  static Request request(uint64_t id, std::vector<int32_t> prompt, int64_t max_tokens = 12) {
    Request r;
    r.id = id;
    r.prompt = std::move(prompt);
    r.params.temperature = 0.0;
    r.params.max_tokens = max_tokens;
    return r;
  }

  // Prompts that share beginnings, greedy and sampled, of many lengths.
  static std::vector<Request> random_requests(uint64_t seed, int64_t count) {
    const Rng rng(seed, stream_id("requests"));
    uint64_t at = 0;
    const auto below = [&](uint64_t n) { return rng.u64(at++) % n; };
    std::vector<Request> list;
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t family = below(3);
      std::vector<int32_t> prompt;
      const uint64_t shared = below(140), own = 1 + below(12);
      for (uint64_t j = 0; j < shared; ++j)
        prompt.push_back(static_cast<int32_t>((j * 31 + family * 17) % 250));
      for (uint64_t j = 0; j < own; ++j) prompt.push_back(static_cast<int32_t>(below(250)));
      Request r =
          request(static_cast<uint64_t>(i) + 1, prompt, 1 + static_cast<int64_t>(below(30)));
      if (below(2) == 0) {
        r.params.temperature = 0.8;
        r.params.top_k = below(2) == 0 ? 3 : 0;  // few choices: some drafts are right
        r.params.top_p = below(2) == 0 ? 0.95 : 1.0;
        r.params.seed = below(1000);
      }
      if (below(3) == 0) r.params.stop_ids = {static_cast<int32_t>(below(250)), 7};
      r.priority = static_cast<int64_t>(below(3));
      list.push_back(std::move(r));
    }
    return list;
  }

  Machine machine_{1};
  io::HfCheckpoint checkpoint_;
  Weights weights_;
  Block memory_;
};

INSTANTIATE_TEST_SUITE_P(Steps, EngineTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Overlap" : "InTurn"; });

TEST_P(EngineTest, TokensAreThoseOfARequestAlone) {
  const std::vector<Request> requests = random_requests(1, 24);
  std::vector<std::vector<int32_t>> want;
  for (const Request& r : requests) want.push_back(alone(r));
  int64_t preemptions = 0, hits = 0, accepted = 0;
  for (int64_t speculate : {0, 1, 3})
    for (bool prefix_cache : {true, false})
      for (int64_t num_pages : {0, 7}) {
        Setting s{.num_pages = num_pages};
        s.options = {.max_queue = 100,
                     .speculate = speculate,
                     .speculate_seqs = speculate == 3 ? 2 : 4,
                     .prefix_cache = prefix_cache};
        Run run(*this, s);
        const Rng rng(3, stream_id("arrivals"));
        for (size_t i = 0; i < requests.size(); ++i) {
          ASSERT_EQ(run.engine.submit({requests[i]}), Engine::Answer::kAccepted);
          for (uint64_t k = rng.u64(i) % 6; k > 0; --k) run.step();
        }
        run.finish_all();
        for (size_t i = 0; i < requests.size(); ++i)
          ASSERT_EQ(run.results[i + 1].tokens, want[i])
              << "request " << i << ", speculate " << speculate << ", prefix cache " << prefix_cache
              << ", pages " << num_pages;
        const EngineStats stats = run.engine.stats();
        EXPECT_EQ(stats.num_pages_in_use, 0);
        EXPECT_EQ(stats.num_finished[0] + stats.num_finished[1], 24);
        if (!prefix_cache) {
          EXPECT_EQ(stats.prefix_hits + stats.num_pages_cached, 0);
        }
        if (num_pages == 0) {
          EXPECT_EQ(stats.num_preemptions, 0);
        }
        preemptions += stats.num_preemptions;
        hits += stats.prefix_hits;
        accepted += stats.num_accepted;
      }
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(hits, 0);
  EXPECT_GT(accepted, 0);
}

TEST_P(EngineTest, ACachedPrefixIsNotRunAgain) {
  Run run(*this, {.options = {.prefix_cache = true}});
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 150; ++i) prompt.push_back(i % 97);
  const Result first = run.one(request(1, prompt));
  const int64_t before = run.engine.stats().num_step_tokens;
  const Result second = run.one(request(2, prompt));
  EXPECT_EQ(first.tokens, second.tokens);
  EXPECT_EQ(first.num_cached, 0);
  EXPECT_EQ(second.num_cached, 149);
  EXPECT_EQ(run.engine.stats().num_step_tokens - before, 1 + 11);
  // What was generated can be found too, but for the last token, which was not run.
  prompt.insert(prompt.end(), second.tokens.begin(), second.tokens.end());
  prompt.resize(193, 5);
  EXPECT_EQ(run.one(request(3, prompt)).num_cached, 161);
  // So can a part of a full page.
  prompt[100] = 77;
  prompt.resize(120);
  const Request other = request(4, prompt);
  const Result fourth = run.one(other);
  EXPECT_EQ(fourth.num_cached, 100);
  EXPECT_EQ(fourth.tokens, alone(other));
}

// With MTP layers a row is found only with the token behind it, so drafts, and with them how many
// are right, are those of a request alone, whatever the cache holds.
TEST_P(EngineTest, DraftsOverAFoundPrefixAreThoseOfARequestAlone) {
  int64_t accepted = 0;
  Setting setting;
  setting.options = {.speculate = 2};
  Run run(*this, setting);
  const Rng rng(11, stream_id("prefixes"));
  std::vector<int32_t> prompt(150);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(rng.u64(i) % 5);
  for (uint64_t id = 1; id <= 12; ++id) {
    // Of the one before a part, which ends within a page, at its end, or right behind it.
    const size_t shared = std::array<size_t, 6>{150, 128, 127, 64, 90, 149}[id % 6];
    for (size_t i = shared; i < prompt.size(); ++i)
      prompt[i] = static_cast<int32_t>(rng.u64(id * 1000 + i) % 5);
    Request r = request(id, prompt, 60);
    r.params.temperature = 1.0;
    r.params.top_k = 3;
    r.params.seed = id;
    const EngineStats before = run.engine.stats();
    const Result got = run.one(r);
    const EngineStats after = run.engine.stats();
    Run fresh(*this, setting);
    EXPECT_EQ(got.tokens, fresh.one(r).tokens);
    EXPECT_EQ(after.num_accepted - before.num_accepted, fresh.engine.stats().num_accepted) << id;
    EXPECT_EQ(after.num_drafted - before.num_drafted, fresh.engine.stats().num_drafted) << id;
    if (id > 1) {
      EXPECT_GT(got.num_cached, 0) << id;
    }
    accepted += after.num_accepted - before.num_accepted;
  }
  EXPECT_GT(accepted, 0);
}

// The drafts themselves are those of Generator, so acceptance is the same.
TEST_P(EngineTest, DraftsAreThoseOfARequestAlone) {
  int64_t accepted = 0;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    Request r = request(1, {5, 9, 200, 17, 3, 88, 41, 9, 200, 17, 64}, 40);
    r.params.temperature = 1.0;
    r.params.top_k = 3;
    r.params.seed = seed;
    Run run(*this, {.options = {.speculate = 2}});
    const Result got = run.one(r);
    Decoder decoder(machine_.ctx, checkpoint_.config, weights_, DType::kF32,
                    {.max_seqs = 1, .max_tokens = 256, .max_step_tokens = 16, .num_mtp = 1});
    GenerateRequest g;
    g.prompt = r.prompt;
    g.max_tokens = 40;
    g.sampling = {.temperature = 1.0, .top_k = 3, .seed = seed};
    g.speculate = 2;
    const GenerateResult want = Generator(machine_.ctx, decoder).run(g);
    EXPECT_EQ(got.tokens, want.tokens);
    EXPECT_EQ(run.engine.stats().num_accepted, want.accepted[0] + want.accepted[1]);
    accepted += want.accepted[0];
  }
  EXPECT_GT(accepted, 0);
}

// n > 1: the others wait for the first one's prompt and find it.
TEST_P(EngineTest, SiblingsShareAPrompt) {
  Run run(*this, {.options = {}});
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 130; ++i) prompt.push_back(i % 89);
  std::vector<Request> group;
  for (uint64_t id = 1; id <= 3; ++id) {
    group.push_back(request(id, prompt));
    group.back().params.temperature = 1.0;
    group.back().params.seed = id;
    if (id > 1) group.back().leader = 1;
  }
  ASSERT_EQ(run.engine.submit(group), Engine::Answer::kAccepted);
  run.finish_all();
  for (const Request& r : group) EXPECT_EQ(run.results[r.id].tokens, alone(r));
  EXPECT_EQ(run.results[2].num_cached, 129);
  EXPECT_EQ(run.results[3].num_cached, 129);
}

TEST_P(EngineTest, CancelledAndRefused) {
  Setting s{.max_seqs = 2};
  s.options = {.max_queue = 1};
  Run run(*this, s);
  for (uint64_t id = 1; id <= 3; ++id)
    EXPECT_EQ(run.engine.submit({request(id, {5, 9, 200}, 200)}), Engine::Answer::kAccepted);
  EXPECT_EQ(run.engine.submit({request(4, {5})}), Engine::Answer::kBusy);
  for (int i = 0; i < 5; ++i) run.step();
  run.engine.cancel(1);
  run.engine.cancel(3);
  run.engine.cancel(99);  // unknown: nothing happens
  run.step();
  EXPECT_EQ(run.results[1].finish, Finish::kCancelled);
  EXPECT_EQ(run.results[3].finish, Finish::kCancelled);
  EXPECT_TRUE(run.results[3].tokens.empty());
  EXPECT_FALSE(run.results[1].tokens.empty());
  EXPECT_EQ(run.engine.submit({request(5, {5, 9})}), Engine::Answer::kAccepted);
  run.engine.close();
  EXPECT_EQ(run.engine.submit({request(6, {5, 9})}), Engine::Answer::kClosed);
  run.finish_all();
  EXPECT_EQ(run.results[2].tokens.size(), 200u);
  EXPECT_EQ(run.results[5].finish, Finish::kLength);
  const EngineStats stats = run.engine.stats();
  EXPECT_EQ(stats.num_submitted, 4);
  EXPECT_EQ(stats.num_rejected, 1);
  EXPECT_EQ(stats.num_finished, (std::array<int64_t, 4>{0, 2, 2, 0}));
}

TEST_P(EngineTest, UrgentRequestsGoFirstAndWaitingCounts) {
  Setting s{.max_seqs = 1};
  s.options = {.aging_seconds = 1.0};
  Run run(*this, s);
  Request low = request(2, {5, 9}, 4), urgent = request(3, {5, 9}, 4);
  low.priority = 5;
  urgent.priority = 0;
  ASSERT_EQ(run.engine.submit({request(1, {5, 9}, 30)}), Engine::Answer::kAccepted);
  run.step();
  ASSERT_EQ(run.engine.submit({low}), Engine::Answer::kAccepted);
  run.step();
  ASSERT_EQ(run.engine.submit({urgent}), Engine::Answer::kAccepted);
  while (!run.results[3].finish) run.step();
  EXPECT_TRUE(run.results[2].tokens.empty());
  // After more than five seconds of waiting it is ahead of a new urgent one.
  urgent.id = 4;
  run.clock += 6.0;
  ASSERT_EQ(run.engine.submit({urgent}), Engine::Answer::kAccepted);
  while (!run.results[2].finish) run.step();
  EXPECT_TRUE(run.results[4].tokens.empty());
  run.finish_all();
}

TEST_P(EngineTest, LogprobsOfTokensAndPrompt) {
  Request r = request(1, {5, 9, 200, 17, 3, 88, 41, 9, 200, 17, 64}, 6);
  r.params.num_logprobs = 3;
  r.params.num_prompt_logprobs = 2;
  std::map<int64_t, Result> by_chunk;
  for (int64_t chunk : {4, 16}) {
    Run run(*this, {.chunk = chunk, .options = {.speculate = chunk == 16 ? int64_t{2} : 0}});
    by_chunk[chunk] = run.one(r);
  }
  const Result& a = by_chunk[4];
  const Result& b = by_chunk[16];
  ASSERT_EQ(a.tokens, alone(r));
  ASSERT_EQ(a.logprobs.size(), 6u);
  ASSERT_EQ(a.prompt_logprobs.size(), 10u);
  for (size_t i = 0; i < 6; ++i) {
    const TokenLogprob& l = a.logprobs[i];
    EXPECT_EQ(l.id, a.tokens[i]);
    ASSERT_EQ(l.top.size(), 3u);
    EXPECT_EQ(l.top[0].first, l.id);  // greedy
    EXPECT_EQ(l.top[0].second, l.logprob);
    EXPECT_GT(l.top[0].second, l.top[1].second);
    EXPECT_EQ(l.logprob, b.logprobs[i].logprob);  // the same bits
  }
  double sum = 0;
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(a.prompt_logprobs[i].id, r.prompt[i + 1]);
    EXPECT_EQ(a.prompt_logprobs[i].logprob, b.prompt_logprobs[i].logprob);
    sum += std::exp(a.prompt_logprobs[i].top[0].second);
  }
  EXPECT_GT(sum, 0.0);
  EXPECT_LT(sum, 10.0);
}

// One request after the other with a single parameter; what it must do is visible in the tokens.
TEST_P(EngineTest, ParametersDoWhatTheySay) {
  Run run(*this, {.options = {.speculate = 2}});
  uint64_t id = 0;
  const std::vector<int32_t> prompt = {5, 9, 200, 17, 3, 88, 41};
  const auto run_with = [&](const std::function<void(SamplingParams&)>& change) {
    Request r = request(++id, prompt, 16);
    change(r.params);
    return run.one(r);
  };
  const std::vector<int32_t> plain = run_with([](SamplingParams&) {}).tokens;
  ASSERT_EQ(plain.size(), 16u);
  // A bias that decides.
  for (int32_t t : run_with([](SamplingParams& p) { p.logit_bias = {{42, 100.0}}; }).tokens)
    EXPECT_EQ(t, 42);
  // ... and one that forbids.
  for (int32_t t : run_with([&](SamplingParams& p) { p.logit_bias = {{plain[0], -100.0}}; }).tokens)
    EXPECT_NE(t, plain[0]);
  // Strong penalties: no token twice.
  for (const auto& change : std::vector<std::function<void(SamplingParams&)>>{
           [](SamplingParams& p) { p.presence_penalty = 1000.0; },
           [](SamplingParams& p) { p.frequency_penalty = 1000.0; }}) {
    std::vector<int32_t> tokens = run_with(change).tokens;
    std::sort(tokens.begin(), tokens.end());
    EXPECT_EQ(std::adjacent_find(tokens.begin(), tokens.end()), tokens.end());
  }
  // A repetition penalty counts the prompt too.
  const Result repeated = run_with([](SamplingParams& p) {
    p.repetition_penalty = 1e6;
    p.logit_bias = {{5, 50.0}, {300, 45.0}};
  });
  EXPECT_EQ(repeated.tokens[0], 300);
  // min_p of 1 keeps the most probable alone, whatever the temperature.
  EXPECT_EQ(run_with([](SamplingParams& p) {
              p.temperature = 1.0;
              p.min_p = 1.0;
              p.seed = 3;
            }).tokens,
            plain);
  // A bad word of one token, and one of two.
  for (int32_t t : run_with([&](SamplingParams& p) { p.bad_words = {{plain[0]}}; }).tokens)
    EXPECT_NE(t, plain[0]);
  const std::vector<int32_t> split = run_with([&](SamplingParams& p) {
                                       p.bad_words = {{plain[0], plain[1]}};
                                     }).tokens;
  EXPECT_EQ(split[0], plain[0]);
  EXPECT_NE(split[1], plain[1]);
  // A minimum puts off the end.
  const auto stop_at = [&](SamplingParams& p) { p.stop_ids = {plain[2]}; };
  EXPECT_LE(run_with(stop_at).tokens.size(), 2u);
  EXPECT_EQ(run_with(stop_at).finish, Finish::kStop);
  const Result longer = run_with([&](SamplingParams& p) {
    stop_at(p);
    p.min_tokens = 10;
  });
  EXPECT_GE(longer.tokens.size(), 10u);
  // The end token counts as generated.
  EXPECT_EQ(run_with(stop_at).num_generated,
            static_cast<int64_t>(run_with(stop_at).tokens.size()) + 1);
}

// Every pair of parameters with speculation and a small cache: the same tokens as without both.
TEST_P(EngineTest, AllPairsOfParametersCompose) {
  std::vector<std::function<void(SamplingParams&)>> changes = {
      [](SamplingParams& p) { p.temperature = 0.9, p.seed = 5; },
      [](SamplingParams& p) { p.temperature = 1.1, p.top_k = 20; },
      [](SamplingParams& p) { p.temperature = 0.7, p.top_p = 0.8; },
      [](SamplingParams& p) { p.temperature = 1.3, p.min_p = 0.05; },
      [](SamplingParams& p) { p.presence_penalty = 0.7; },
      [](SamplingParams& p) { p.frequency_penalty = 0.5; },
      [](SamplingParams& p) { p.repetition_penalty = 1.2; },
      [](SamplingParams& p) {
        p.logit_bias = {{17, 2.0}, {9, -1.5}};
      },
      [](SamplingParams& p) {
        p.bad_words = {{200}, {9, 200}};
      },
      [](SamplingParams& p) {
        p.stop_ids.insert(p.stop_ids.end(), {17, 41, 88, 3});
      },
      [](SamplingParams& p) {
        p.stop_ids.insert(p.stop_ids.end(), {17, 41, 88, 3}), p.min_tokens = 6;
      },
      [](SamplingParams& p) { p.num_logprobs = 2; },
      [](SamplingParams& p) { p.num_prompt_logprobs = 1; },
  };
  const io::Tokenizer tokenizer = io::train_bpe("a form", 258, {"<begin>", "<end>"});
  if (GrammarCompiler::why_not().empty())
    changes.emplace_back(
        [&, form = GrammarCompiler(tokenizer, checkpoint_.config.vocab_size)
                       .compile({.kind = GrammarSpec::Kind::kRegex,
                                 .text = "[a-z]{2,9}( [0-9]{1,3})*;"})](SamplingParams& p) {
          p.grammar = form;
          p.stop_ids.push_back(*tokenizer.added_id("<end>"));
        });
  const size_t num_pairs = changes.size() * (changes.size() + 1) / 2;
  std::map<int64_t, std::map<uint64_t, Result>> results;
  for (int64_t speculate : {0, 2}) {
    Setting s{.chunk = 24, .num_pages = speculate == 0 ? int64_t{0} : 6};
    s.options = {.max_queue = 200, .speculate = speculate, .speculate_seqs = 4};
    Run run(*this, s);
    uint64_t id = 0;
    std::vector<int32_t> prompt;
    for (int32_t i = 0; i < 70; ++i) prompt.push_back(i * 13 % 240);
    for (size_t a = 0; a < changes.size(); ++a)
      for (size_t b = a; b < changes.size(); ++b) {
        Request r = request(++id, prompt, 10);
        changes[a](r.params);
        changes[b](r.params);
        ASSERT_EQ(run.engine.submit({r}), Engine::Answer::kAccepted);
      }
    run.finish_all();
    results[speculate] = run.results;
  }
  ASSERT_EQ(results[0].size(), num_pairs);
  for (const auto& [id, want] : results[0]) {
    const Result& got = results[2][id];
    ASSERT_TRUE(got.error.empty()) << got.error;
    ASSERT_EQ(got.tokens, want.tokens) << "pair " << id;
    EXPECT_EQ(got.finish, want.finish);
    ASSERT_EQ(got.logprobs.size(), want.logprobs.size());
    for (size_t i = 0; i < want.logprobs.size(); ++i)
      ASSERT_EQ(got.logprobs[i].logprob, want.logprobs[i].logprob);
    ASSERT_EQ(got.prompt_logprobs.size(), want.prompt_logprobs.size());
  }
}

// A row that nothing can be drawn from ends its request, not the engine.
TEST_P(EngineTest, AnErrorEndsOneRequest) {
  Run run(*this, {.options = {}});
  Request bad = request(1, {5, 9, 200});
  bad.params.logit_bias = {{3, std::nan("")}};
  Request held = request(3, {5, 9, 200});
  for (int32_t id = 0; id < checkpoint_.config.vocab_size; ++id)
    held.params.bad_words.push_back({id});
  Request penalised = request(4, {5, 9, 200});
  penalised.params.presence_penalty = 0.0001;
  for (const Request& r : {bad, request(2, {5, 9, 200}), held, penalised})
    ASSERT_EQ(run.engine.submit({r}), Engine::Answer::kAccepted);
  run.finish_all();
  EXPECT_EQ(run.results[1].finish, Finish::kError);
  EXPECT_EQ(run.results[1].error,
            "the logits have NaN or infinity after logit_bias and penalties: nothing can be drawn "
            "from them");
  EXPECT_EQ(run.results[3].finish, Finish::kError);
  EXPECT_EQ(run.results[3].error,
            "no token may come next: the form that was asked for, bad_words and min_tokens exclude "
            "each other");
  for (uint64_t id : {2, 4})
    EXPECT_EQ(run.results[id].tokens, alone(request(2, {5, 9, 200}))) << id;
}

TEST_P(EngineTest, BadRequestsAreSentences) {
  Run run(*this, {.options = {}});
  const auto submit = [&](Request r) { run.engine.submit({std::move(r)}); };
  EXPECT_ERROR(submit(request(1, {})), "the prompt is empty; give at least one token");
  EXPECT_ERROR(submit(request(1, std::vector<int32_t>(256, 5))),
               "the prompt has 256 tokens; at most 255 fit the context of 256");
  EXPECT_ERROR(submit(request(1, {320})), "token 320 is outside the vocabulary of 320");
  Request r = request(1, {5});
  r.params.logit_bias = {{-1, 1.0}};
  EXPECT_ERROR(submit(r), "logit_bias: token -1 is outside the vocabulary of 320");
  r = request(1, {5}, 0);
  EXPECT_ERROR(submit(r), "max_tokens is 0; give 1 or more");
  r = request(1, {5});
  r.params.stop = {"x"};
  EXPECT_ERROR(submit(r), "stop strings need a tokenizer");
  EXPECT_ERROR(Run(*this, {.num_mtp = 0, .options = {.speculate = 1}}),
               "speculation needs a model with an MTP module; use --speculate 0");
  EXPECT_ERROR(Run(*this, {.num_pages = 3}),
               "a cache of 192 tokens does not hold one sequence of 256");
  EXPECT_ERROR(Run(*this, {.chunk = 8, .options = {.speculate = 2}}),
               "a step of 8 tokens cannot hold 4 sequences and their drafts; raise --chunk");
}

}  // namespace
}  // namespace hadal::serve
