// Generation by several ranks: logits of one rank, bits that do not depend on how tokens come, the
// leader's and the engine's texts, and what cannot be split.
//
//   T tokens   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <csignal>
#include <cstring>
#include <map>
#include <numeric>

#include "core/rng.h"
#include "core/transfer.h"
#include "io/hf.h"
#include "io/int_weights.h"
#include "io/panels.h"
#include "model/param_store.h"
#include "parallel/comm_host.h"
#include "parallel/launch.h"
#include "parallel/step_channel.h"
#include "serve/engine.h"
#include "serve/follower.h"
#include "serve/generator.h"
#include "serve/rank_calls.h"
#include "tests/dist/machine.h"
#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

using testing::Machine;
using testing::TempDir;

constexpr int64_t kTokens = 80;  // more than a page of the cache

// A checkpoint and how it is computed.
struct Model {
  std::string dir;
  io::WeightFormat format = io::WeightFormat::kKeep;
  DType act = DType::kBF16;
  CacheFormat cache = CacheFormat::kCompute;
  AttentionSplit attention = AttentionSplit::kHeads;
};

// V3's heads, four of them, widths of whole blocks for two ranks. `format`: bf16, fp8, int8, int4.
void save_model(const std::string& dir, const std::string& format, bool tied = false) {
  Machine machine;
  Config c = io::open_checkpoint("tests/goldens/v3_heads").config;
  c.num_attention_heads = 4;
  c.n_shared_experts = 2;
  c.tie_word_embeddings = tied;
  c.validate();
  ParamStore store(machine.ctx, c, DType::kF32, ParamStore::Extent::kAll);
  init_params(machine.ctx, c, 7, store.tree);
  if (format.starts_with("int"))
    return io::save_int_checkpoint(dir, c, weights_of(c, store.tree, nullptr),
                                   format == "int8" ? 8 : 4, size_t{1} << 30);
  io::SaveFormat save{
      .dtype = DType::kBF16, .quantization = {}, .max_shard_bytes = size_t{1} << 30};
  save.quantization.fp8 = format == "fp8";
  io::save_checkpoint(dir, c, store.tree, save);
}

// What one rank loads.
struct Loaded {
  Loaded(Context& ctx, const Model& model, const Share& rank)
      : checkpoint(io::open_checkpoint(model.dir)), attention(model.attention) {
    memory = io::load_weights(ctx, checkpoint, model.format, weights,
                              decode_share(checkpoint.config, rank, model.attention));
    panels = io::pack_weights(ctx, checkpoint, weights);
    drop_absent_experts(weights);
  }
  io::HfCheckpoint checkpoint;
  AttentionSplit attention;
  Block memory, panels;
  Weights weights;
};

std::vector<int32_t> random_ids(int64_t vocab, std::string_view name) {
  const Rng rng(11, stream_id(name));
  std::vector<int32_t> ids;
  for (int64_t i = 0; i <= kTokens; ++i)
    ids.push_back(
        static_cast<int32_t>(rng.u64(static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab)));
  return ids;
}

struct Logits {
  std::vector<float> main, mtp;  // [T, V] each, of the first of the sequences
};

// Tokens of `num_seqs` sequences side by side in steps of `chunk`, and the MTP module behind them.
Logits logits_of(Context& ctx, const Loaded& loaded, const Model& model, const TensorGroup& group,
                 int64_t chunk = kTokens, int64_t num_seqs = 1) {
  const Config& c = loaded.checkpoint.config;
  const int64_t V = c.vocab_size, D = c.hidden_size;
  Decoder decoder(ctx, c, loaded.weights, model.act,
                  {.max_seqs = num_seqs,
                   .max_tokens = kTokens,
                   .max_step_tokens = num_seqs * chunk,
                   .num_mtp = 1,
                   .num_pages = 0,
                   .cache = model.cache},
                  {.tensor = group});
  std::vector<int64_t> slots;
  std::vector<std::vector<int32_t>> ids;
  for (int64_t s = 0; s < num_seqs; ++s) {
    slots.push_back(decoder.cache().open());
    ids.push_back(random_ids(V, concat("sequence ", s)));
  }
  Logits result;
  for (int64_t start = 0; start < kTokens; start += chunk) {
    const int64_t n = std::min(chunk, kTokens - start), T = n * num_seqs;
    const auto step_of = [&](int64_t ahead) {
      std::vector<int32_t> some;
      for (const auto& all : ids)
        some.insert(some.end(), all.begin() + start + ahead, all.begin() + start + ahead + n);
      const std::vector<int64_t> starts(slots.size(), start), lengths(slots.size(), n);
      return make_step(ctx, c, some, starts, lengths, model.act);
    };
    Tensor h, next, out;
    const Block h_memory = ctx.memory.take_tensor(model.act, {T, D}, &h);
    const Block next_memory = ctx.memory.take_tensor(model.act, {T, D}, &next);
    const Block out_memory = ctx.memory.take_tensor(stat_dtype(model.act), {T, V}, &out);
    const auto keep = [&](std::vector<float>& all) {
      const std::vector<float> values = download<float>(ctx, out.rows(0, n));
      all.insert(all.end(), values.begin(), values.end());
    };
    const Step step = step_of(0);
    decoder.forward({.step = step, .seqs = slots}, h);
    decoder.logits(h, out);
    keep(result.main);
    const Step after = step_of(1);
    decoder.mtp_forward(0, {.step = after, .seqs = slots}, h, next);
    decoder.logits(next, out);
    keep(result.mtp);
  }
  return result;
}

// Runs body(ctx, loaded, group, world) on N processes.
template <class Body>
void on_ranks(int N, const Model& model, const Body& body, WorldOptions options = {}) {
  options.num_ranks = N;
  World world(options);
  launch(world, [&](int rank) {
    Machine machine;
    const Loaded loaded(machine.ctx, model, {.ways = N, .index = rank});
    const auto comm = make_comm_host(world, world.all_ranks(), "model");
    body(machine.ctx, loaded, TensorGroup(*comm), world);
  });
}

double relative_l2(const std::vector<float>& got, const std::vector<float>& want) {
  HADAL_CHECK(got.size() == want.size(), got.size(), " logits, not ", want.size());
  double error = 0.0, norm = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    error += d * d;
    norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  return std::sqrt(error / norm);
}

Logits logits_of_one_rank(const Model& model) {
  Machine machine;
  const Loaded loaded(machine.ctx, model, {});
  return logits_of(machine.ctx, loaded, model, {});
}

struct Bounds {
  double main, mtp;
};

// Logits within the bounds of `want`, and the same bits on every rank.
void expect_logits(const Model& model, int N, const Logits& want, Bounds bounds) {
  ASSERT_NO_THROW(
      on_ranks(N, model, [&](Context& ctx, const Loaded& loaded, const TensorGroup& group, World&) {
        const Logits got = logits_of(ctx, loaded, model, group);
        for (const auto& [name, mine, one, bound] :
             {std::tuple{"logits", &got.main, &want.main, bounds.main},
              {"mtp.logits", &got.mtp, &want.mtp, bounds.mtp}}) {
          const double error = relative_l2(*mine, *one);
          HADAL_CHECK(error <= bound, name, " of ", N, " ranks are off by ", error, ", over ",
                      bound);
          std::vector<float> first = *mine;
          broadcast(ctx, group,
                    Tensor(first.data(), DType::kF32, {static_cast<int64_t>(first.size())}));
          HADAL_CHECK(std::memcmp(first.data(), mine->data(), first.size() * sizeof(float)) == 0,
                      name, " of rank ", group.rank(), " have other bits than those of rank 0");
        }
      }));
}

// f32: sums in another order (8.3e-7 measured, 1.1e-6 of the MTP module).
void expect_logits_in_f32(Model model, int N) {
  model.format = io::WeightFormat::kF32;
  model.act = DType::kF32;
  expect_logits(model, N, logits_of_one_rank(model), {2e-6, 2e-6});
}

// bf16: as near to the logits in f32 as one rank is; each rank's part of a sum is rounded as well,
// and a choice of experts that hangs on that is another one.
void expect_logits_in_bf16(Model model, int N) {
  const Logits one = logits_of_one_rank(model);
  Model in_f32 = model;
  in_f32.format = io::WeightFormat::kF32;
  in_f32.act = DType::kF32;
  const Logits want = logits_of_one_rank(in_f32);
  const auto bound = [](const std::vector<float>& got, const std::vector<float>& exact) {
    const double error = relative_l2(got, exact);
    EXPECT_LT(error, 0.1);
    return 1.5 * error;
  };
  expect_logits(model, N, want, {bound(one.main, want.main), bound(one.mtp, want.mtp)});
}

TEST(DecodeRanks, LogitsInF32AreThoseOfOneRank) {
  for (const char* golden : {"base", "odd"})
    for (const int N : {2, 4}) expect_logits_in_f32({.dir = concat("tests/goldens/", golden)}, N);
}

TEST(DecodeRanks, LogitsInBf16AreAsNearAsThoseOfOneRank) {
  for (const bool tied : {false, true}) {
    const TempDir dir;
    save_model(dir.path(), "bf16", tied);
    for (const int N : {2, 4}) expect_logits_in_bf16({.dir = dir.path()}, N);
  }
}

// Blocks and groups stay whole, so that a rank multiplies with the elements that one rank does.
TEST(DecodeRanks, LogitsOfQuantisedWeightsAreThoseOfOneRank) {
  for (const char* format : {"fp8", "int8", "int4"}) {
    const TempDir dir;
    save_model(dir.path(), format);
    expect_logits_in_f32({.dir = dir.path()}, 2);
    expect_logits_in_bf16({.dir = dir.path()}, 2);
  }
}

TEST(DecodeRanks, SameBitsHoweverTokensCome) {
  const TempDir dir;
  save_model(dir.path(), "fp8");
  const Model models[] = {
      {.dir = "tests/goldens/base", .format = io::WeightFormat::kF32, .act = DType::kF32},
      {.dir = dir.path()},
      {.dir = dir.path(), .cache = CacheFormat::kFp8}};
  for (const Model& model : models)
    ASSERT_NO_THROW(on_ranks(
        2, model, [&](Context& ctx, const Loaded& loaded, const TensorGroup& group, World&) {
          const Logits whole = logits_of(ctx, loaded, model, group);
          for (const auto& [chunk, num_seqs] :
               {std::pair<int64_t, int64_t>{1, 1}, {7, 1}, {kTokens, 3}, {16, 2}}) {
            const Logits got = logits_of(ctx, loaded, model, group, chunk, num_seqs);
            HADAL_CHECK(got.main == whole.main && got.mtp == whole.mtp, "steps of ", chunk,
                        " tokens of ", num_seqs, " sequences give other bits");
          }
        }));
}

// ---- Ranks with sequences of their own ---------------------------------------------------------

// Logits of a sequence on its home, in steps of `chunk` tokens; empty on the others, of which those
// behind the home have a sequence each, and those before it none.
Logits logits_at_home(Context& ctx, const Loaded& loaded, const Model& model,
                      const TensorGroup& group, int home, int64_t chunk) {
  const Config& c = loaded.checkpoint.config;
  const int64_t V = c.vocab_size, D = c.hidden_size;
  Decoder decoder(ctx, c, loaded.weights, model.act,
                  {.max_seqs = 1,
                   .max_tokens = kTokens,
                   .max_step_tokens = kTokens,
                   .num_mtp = 1,
                   .num_pages = 0,
                   .cache = model.cache},
                  {.tensor = group, .attention = AttentionSplit::kSequences});
  const std::vector<int64_t> slots(group.rank() < home ? 0 : 1, decoder.cache().open());
  const std::vector<int32_t> ids =
      random_ids(V, group.rank() == home ? "sequence 0" : concat("another of ", group.rank()));
  Logits result;
  for (int64_t start = 0; start < kTokens; start += chunk) {
    const int64_t n = std::min(chunk, kTokens - start);
    const int64_t T = n * static_cast<int64_t>(slots.size());
    const auto step_of = [&](int64_t ahead) {
      Step step;
      if (T > 0)
        step = make_step(ctx, c, {ids.begin() + start + ahead, ids.begin() + start + ahead + n},
                         {start}, {n}, model.act);
      for (int r = 0; r < group.size(); ++r) step.of_ranks.push_back(r < home ? 0 : n);
      return step;
    };
    Tensor h, next, out;
    const Block h_memory = ctx.memory.take_tensor(model.act, {T, D}, &h);
    const Block next_memory = ctx.memory.take_tensor(model.act, {T, D}, &next);
    const Block out_memory = ctx.memory.take_tensor(stat_dtype(model.act), {n, V}, &out);
    const auto keep = [&](const Tensor& states, std::vector<float>& all) {
      if (group.rank() != home) return;
      decoder.logits(states, out);
      const std::vector<float> values = download<float>(ctx, out);
      all.insert(all.end(), values.begin(), values.end());
    };
    const Step step = step_of(0), after = step_of(1);
    decoder.prepare({.step = step, .seqs = slots});
    decoder.run(step, h);
    keep(h, result.main);
    decoder.run_mtp(0, after, h, next);
    keep(next, result.mtp);
  }
  return result;
}

// Whatever home a sequence has, what others have and how its tokens come.
void expect_logits_at_home(Model model, int N) {
  const Logits one = logits_of_one_rank(model);
  model.attention = AttentionSplit::kSequences;
  ASSERT_NO_THROW(
      on_ranks(N, model, [&](Context& ctx, const Loaded& loaded, const TensorGroup& group, World&) {
        std::vector<float> first;
        for (int home = 0; home < N; ++home)
          for (const int64_t chunk : {kTokens, int64_t{7}, int64_t{1}}) {
            Logits got = logits_at_home(ctx, loaded, model, group, home, chunk);
            got.main.insert(got.main.end(), got.mtp.begin(), got.mtp.end());
            std::vector<float> all(one.main.size() + one.mtp.size());
            if (group.rank() == home) all = got.main;
            const Tensor shared(all.data(), DType::kF32, {static_cast<int64_t>(all.size())});
            group.comm().all_reduce(ctx, Tensor(shared));
            if (first.empty()) first = all;
            HADAL_CHECK(all == first, "home ", home, " and steps of ", chunk,
                        " tokens give other bits");
          }
        std::vector<float> want = one.main;
        want.insert(want.end(), one.mtp.begin(), one.mtp.end());
        const double error = relative_l2(first, want),
                     bound = model.act == DType::kF32 ? 2e-6 : 0.1;
        HADAL_CHECK(error <= bound, "logits of ", N, " ranks are off by ", error);
      }));
}

TEST(DecodeRanks, ASequenceHasTheSameBitsOnAnyHome) {
  for (const int N : {2, 4})
    for (const char* golden : {"base", "odd"})
      expect_logits_at_home({.dir = concat("tests/goldens/", golden),
                             .format = io::WeightFormat::kF32,
                             .act = DType::kF32},
                            N);
  for (const char* format : {"bf16", "fp8", "int4"}) {
    const TempDir dir;
    save_model(dir.path(), format, /*tied=*/format == std::string("bf16"));
    expect_logits_at_home({.dir = dir.path(), .cache = CacheFormat::kFp8}, 2);
  }
}

// ---- A leader and those who follow it ----------------------------------------------------------

// Runs lead(ctx, loaded, ranks) on rank 0; the others follow.
template <class Lead>
void lead_ranks(int N, const Model& model, const Lead& lead) {
  on_ranks(
      N, model, [&](Context& ctx, const Loaded& loaded, const TensorGroup& group, World& world) {
        StepChannel channel(world);
        channel.meet();
        DecoderRanks ranks{.tensor = group, .attention = model.attention};
        if (group.rank() > 0)
          return serve::Follower(ctx, loaded.checkpoint.config, loaded.weights, model.act, ranks)
              .run([&] { return channel.hear(); });
        ranks.announce = [&](const std::vector<int32_t>& words) { channel.say(words); };
        lead(ctx, loaded, ranks);
        channel.say(serve::words_of(serve::RankCall::kEnd));
      });
}

const Model kBase{
    .dir = "tests/goldens/base", .format = io::WeightFormat::kF32, .act = DType::kF32};

serve::GenerateRequest generate_request(uint64_t seed, int64_t speculate) {
  serve::GenerateRequest r;
  r.prompt = random_ids(320, concat("prompt ", seed / 4));  // four share a beginning
  r.prompt.resize(24 + 8 * (seed % 7));
  r.max_tokens = 24;
  if (seed % 2 == 1) r.sampling = {.temperature = 0.8, .top_k = 5, .top_p = 0.9, .seed = seed};
  r.speculate = speculate;
  return r;
}

std::vector<int32_t> generate(Context& ctx, const Loaded& loaded, const DecoderRanks& ranks,
                              const serve::GenerateRequest& request) {
  Decoder decoder(ctx, loaded.checkpoint.config, loaded.weights, DType::kF32,
                  {.max_seqs = 1, .max_tokens = 256, .max_step_tokens = 16, .num_mtp = 1}, ranks);
  return serve::Generator(ctx, decoder).run(request).tokens;
}

TEST(DecodeRanks, TextsAreThoseOfOneRank) {
  std::vector<std::vector<int32_t>> want;
  {
    Machine machine;
    const Loaded loaded(machine.ctx, kBase, {});
    for (uint64_t seed = 0; seed < 6; ++seed)
      want.push_back(generate(machine.ctx, loaded, {}, generate_request(seed, 0)));
  }
  for (const int N : {2, 4})
    ASSERT_NO_THROW(
        lead_ranks(N, kBase, [&](Context& ctx, const Loaded& loaded, const DecoderRanks& ranks) {
          for (uint64_t seed = 0; seed < want.size(); ++seed)
            for (const int64_t speculate : {0, 1, 3})
              HADAL_CHECK(
                  generate(ctx, loaded, ranks, generate_request(seed, speculate)) == want[seed],
                  "request ", seed, " with ", speculate, " drafts has another text");
        }));
}

// Under load, with little cache, drafts and prefixes that are found; steps one after the other, and
// steps that overlap and draw on every rank.
void expect_texts_of_one_rank(int N, AttentionSplit attention, uint64_t num_requests,
                              int64_t max_seqs, int64_t num_pages) {
  Model model = kBase;
  model.attention = attention;
  std::map<uint64_t, std::vector<int32_t>> want;
  {
    Machine machine;
    const Loaded loaded(machine.ctx, kBase, {});
    for (uint64_t seed = 0; seed < num_requests; ++seed)
      want[seed + 1] = generate(machine.ctx, loaded, {}, generate_request(seed, 0));
  }
  // In the second round the last ones first, of which something is still in the cache.
  const auto submit_all = [&](serve::Engine& engine, int round) {
    for (uint64_t seed = 0; seed < num_requests; ++seed) {
      const serve::GenerateRequest g = generate_request(seed, 0);
      serve::Request r;
      r.id = round == 0 ? seed + 1 : 2 * num_requests - seed;
      r.prompt = g.prompt;
      r.params.max_tokens = g.max_tokens;
      r.params.temperature = g.sampling.temperature;
      r.params.top_k = g.sampling.top_k;
      r.params.top_p = g.sampling.top_p;
      r.params.seed = g.sampling.seed;
      HADAL_CHECK(engine.submit({r}) == serve::Engine::Answer::kAccepted, "not accepted");
    }
  };
  for (const bool overlap : {false, true})
    for (const int64_t speculate : {0, 2})
      ASSERT_NO_THROW(
          lead_ranks(N, model, [&](Context& ctx, const Loaded& loaded, const DecoderRanks& ranks) {
            Decoder decoder(ctx, loaded.checkpoint.config, loaded.weights, DType::kF32,
                            {.max_seqs = max_seqs,
                             .max_tokens = 128,
                             .max_step_tokens = 20,
                             .num_mtp = 1,
                             .num_pages = num_pages},
                            ranks);
            std::map<uint64_t, std::vector<int32_t>> got;
            serve::Engine engine(
                ctx, decoder, std::nullopt,
                {.speculate = speculate, .speculate_seqs = 64, .overlap = overlap},
                [&](auto&& outputs) {
                  for (const serve::Output& out : outputs) {
                    HADAL_CHECK(out.error.empty(), out.error);
                    auto& tokens = got[std::min(out.id, 2 * num_requests + 1 - out.id)];
                    tokens.insert(tokens.end(), out.tokens.begin(), out.tokens.end());
                  }
                });
            for (int round = 0; round < 2; ++round) {
              got.clear();
              submit_all(engine, round);
              for (int i = 0; engine.num_open() > 0; ++i) {
                HADAL_CHECK(i < 5000, "requests do not end");
                engine.step(0.01 * i);
              }
              HADAL_CHECK(got == want, "round ", round, ": other texts");
            }
            const serve::EngineStats stats = engine.stats();
            HADAL_CHECK(stats.num_preemptions > 0 && stats.prefix_hits > 0 &&
                            (overlap || speculate == 0 || stats.num_drafted > 0),
                        "the load was too easy: ", stats.num_preemptions, " preemptions, ",
                        stats.prefix_hits, " tokens found, ", stats.num_drafted, " drafts");
          }));
}

TEST(DecodeRanks, TheEngineGivesTheTextsOfOneRank) {
  expect_texts_of_one_rank(2, AttentionSplit::kHeads, 8, 3, 5);
}

TEST(DecodeRanks, TheEngineGivesTheTextsOfOneRankWithSequencesApart) {
  expect_texts_of_one_rank(2, AttentionSplit::kSequences, 14, 4, 5);
  expect_texts_of_one_rank(4, AttentionSplit::kSequences, 28, 4, 5);
}

// ---- What goes wrong ---------------------------------------------------------------------------

TEST(DecodeRanks, RefusesNumbersThatDoNotDivide) {
  Config c = io::open_checkpoint("tests/goldens/base").config;
  EXPECT_ERROR(check_decode_ranks(c, 3, AttentionSplit::kSequences),
               "ranks = 3 does not divide intermediate_size = 160");
  EXPECT_ERROR(check_decode_ranks(c, 3), "ranks = 3 does not divide num_attention_heads = 4");
  c.num_attention_heads = 6;
  EXPECT_ERROR(check_decode_ranks(c, 3), "ranks = 3 does not divide intermediate_size = 160");
  c.intermediate_size = 150;
  EXPECT_ERROR(check_decode_ranks(c, 3), "ranks = 3 does not divide n_routed_experts = 16");
  c.n_routed_experts = 15;
  EXPECT_ERROR(check_decode_ranks(c, 3), "ranks = 3 does not divide vocab_size = 320");
  c.moe_intermediate_size = 25;
  EXPECT_ERROR(check_decode_ranks(c, 3),
               "ranks = 3 does not divide n_shared_experts * moe_intermediate_size = 25");
  EXPECT_ERROR(check_decode_ranks(c, 0), "ranks = 0; give 1 or more");
}

TEST(DecodeRanks, RefusesToCutBlocksAndGroups) {
  for (const std::string format : {"fp8", "int4"}) {
    const TempDir dir;
    save_model(dir.path(), format);
    const io::HfCheckpoint checkpoint = io::open_checkpoint(dir.path());
    io::check_decode_parts(checkpoint, io::WeightFormat::kKeep, 2);
    io::check_decode_parts(checkpoint, io::WeightFormat::kBF16, 4);
    const std::string file = dir / "model.safetensors: tensor model.layers.";
    EXPECT_ERROR(
        io::check_decode_parts(checkpoint, io::WeightFormat::kKeep, 4),
        file +
            (format == "fp8"
                 ? "0.self_attn.q_b_proj.weight [768, 128] is scaled in blocks of 128 x 128, "
                   "which ranks = 4 would cut: a rank would have 192 rows"
                 : "1.mlp.shared_experts.down_proj.weight_packed [256, 256] is scaled in groups "
                   "of 128 columns, which ranks = 4 would cut: a rank would have 64 columns") +
            "; use fewer ranks, or --dtype bf16");
  }
}

TEST(StepChannel, SilenceIsNoFailureAndADeathIs) {
  // A follower waits longer than the timeout of a rank that does not get on.
  World quiet({.num_ranks = 2, .timeout_seconds = 0.2});
  ASSERT_NO_THROW(launch(quiet, [&](int rank) {
    StepChannel channel(quiet);
    channel.meet();
    for (const int32_t words : {0, 3, 200000}) {
      std::vector<int32_t> said(static_cast<size_t>(words));
      std::iota(said.begin(), said.end(), -1);
      if (rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(500));
      if (rank == 0)
        channel.say(said);
      else
        HADAL_CHECK(channel.hear() == said, "other words");
    }
  }));
  World dies({.num_ranks = 3});
  EXPECT_ERROR(launch(dies,
                      [&](int rank) {
                        dies.at_step(7);
                        StepChannel channel(dies);
                        channel.meet();
                        if (rank == 0) ::raise(SIGKILL);
                        channel.hear();
                      }),
               "rank 0 failed at step 7, in wait (all to be ready): it was killed by signal 9 "
               "(Killed)");
}

TEST(Launch, TheLeadersErrorsAreItsOwn) {
  World world({.num_ranks = 2});
  const auto fail = [](int rank, int which) {
    if (rank == which) HADAL_FAIL("no such thing");
  };
  EXPECT_ERROR(launch(world, [&](int rank) { fail(rank, 0); }, {.leader = 0}), "no such thing");
  World other({.num_ranks = 2});
  EXPECT_ERROR(launch(other, [&](int rank) { fail(rank, 1); }, {.leader = 0}),
               "rank 1 at the start: no such thing");
}

TEST(DecoderCall, ComesBackFromItsWords) {
  const DecoderCall call{.kind = DecoderCallKind::kMtp,
                         .limits = {.max_seqs = 3, .num_pages = 70000},
                         .module = 1,
                         .num_rows = 5,
                         .from = 6,
                         .to = 7,
                         .home = 1,
                         .ids = {1, 129279},
                         .starts = {0, 163839},
                         .lengths = {1, 1},
                         .pages = {{}, {4, 9}},
                         .homes = {0, 1}};
  const DecoderCall back = DecoderCall::of(call.words());
  EXPECT_EQ(back.words(), call.words());
  EXPECT_EQ(back.kind, DecoderCallKind::kMtp);
  EXPECT_EQ(back.ids, call.ids);
  EXPECT_EQ(back.pages, call.pages);
  EXPECT_EQ(back.homes, call.homes);
  EXPECT_EQ(back.home, 1);
  EXPECT_EQ(back.limits.num_pages, 70000);
  std::vector<int32_t> words = call.words();
  words.push_back(0);
  EXPECT_ERROR(DecoderCall::of(words), "internal error: 1 words too many in what a rank announced");
  words.resize(4);
  EXPECT_ERROR(DecoderCall::of(words), "internal error: what a rank announced ends after 4 words");
  EXPECT_ERROR(DecoderCall::of({77}),
               "internal error: a rank announced 77, which is no call of a decoder");
  words = call.words();
  const size_t num_words = words.size();
  words[12] = 1000;  // how many tokens follow
  EXPECT_ERROR(
      DecoderCall::of(words),
      concat("internal error: a list of 1000 in an announcement of ", num_words, " words"));
  EXPECT_ERROR(DecoderCall{.num_rows = int64_t{1} << 40}.words(),
               "internal error: 1099511627776 does not fit a word for other ranks");
  serve::StepRunner::Input input;
  const std::vector<int64_t> pages = {3, 1};
  input.tokens = {.ids = {5, -2},
                  .starts = {0, 9},
                  .counts = {1, 1},
                  .pages = {&pages, &pages},
                  .homes = {0, 3}};
  input.draws = {
      {.row = 1,
       .position = 10,
       .rule = {
           .temperature = 0.7, .top_k = int64_t{1} << 40, .top_p = 0.9, .seed = ~uint64_t{0}}}};
  const serve::OwnedInput owned(serve::words_of(input));
  EXPECT_EQ(serve::words_of(owned.input), serve::words_of(input));
  EXPECT_EQ(owned.input.tokens.homes, input.tokens.homes);
  EXPECT_EQ(owned.input.draws[0].rule.seed, ~uint64_t{0});
}

}  // namespace
}  // namespace hadal
