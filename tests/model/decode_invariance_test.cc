// A token's logits have the same bits in one piece, in chunks, in a batch and when it runs again as
// verification does, with weights and caches of every format; on CUDA in the invariant mode.
//
//   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <memory>

#include "core/rng.h"
#include "core/transfer.h"
#include "io/hf.h"
#include "io/int_weights.h"
#include "io/panels.h"
#include "model/decoder.h"
#include "tests/unit/expect_error.h"

namespace hadal::testing {
namespace {

constexpr int64_t kPrompt = 150;  // more than two pages of the cache

// What is run: a golden's model in a format, and how many sequences side by side.
struct Case {
  const char *name, *golden, *format;
  DeviceKind device;
  int64_t batch;
  CacheFormat cache = CacheFormat::kCompute;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};
const Case kCases[] = {
    {"f32", "base", "f32", DeviceKind::kCpu, 8},
    {"bf16", "base", "bf16", DeviceKind::kCpu, 8},
    {"fp8", "base", "fp8", DeviceKind::kCpu, 8},
    {"int8", "base", "int8", DeviceKind::kCpu, 8},
    {"int4", "base", "int4", DeviceKind::kCpu, 8},
    {"f32_fp8_cache", "base", "f32", DeviceKind::kCpu, 8, CacheFormat::kFp8},
    {"bf16_fp8_cache", "base", "bf16", DeviceKind::kCpu, 8, CacheFormat::kFp8},
    {"fp8_fp8_cache", "base", "fp8", DeviceKind::kCpu, 8, CacheFormat::kFp8},
    // V3's head sizes, of whole blocks: weights in panels.
    {"v3_heads_bf16", "v3_heads", "bf16", DeviceKind::kCpu, 3},
    {"v3_heads_fp8", "v3_heads", "fp8", DeviceKind::kCpu, 3},
    {"v3_heads_int4", "v3_heads", "int4", DeviceKind::kCpu, 3},
    {"bf16_cuda", "base", "bf16", DeviceKind::kCuda, 64},
    {"fp8_cuda", "base", "fp8", DeviceKind::kCuda, 64},
    {"bf16_fp8_cache_cuda", "base", "bf16", DeviceKind::kCuda, 64, CacheFormat::kFp8},
    // V3's head sizes: Hopper's attention kernel.
    {"v3_heads_bf16_cuda", "v3_heads", "bf16", DeviceKind::kCuda, 64},
    {"v3_heads_fp8_cuda", "v3_heads", "fp8", DeviceKind::kCuda, 64},
    {"v3_heads_bf16_fp8_cache_cuda", "v3_heads", "bf16", DeviceKind::kCuda, 64, CacheFormat::kFp8},
    {"v3_heads_fp8_fp8_cache_cuda", "v3_heads", "fp8", DeviceKind::kCuda, 64, CacheFormat::kFp8}};

// A golden's model in a format, written and read back.
class Model {
 public:
  explicit Model(const Case& c) : device_{c.device, 0} {
    const std::string format = c.format;
    Context host{.device = {}, .stream = {}, .threads = threads, .memory = host_memory_};
    const io::HfCheckpoint base = io::open_checkpoint(concat("tests/goldens/", c.golden));
    Weights f32;
    const Block block = io::load_weights(host, base, io::WeightFormat::kF32, f32);
    if (format.starts_with("int")) {
      io::save_int_checkpoint(dir_.path(), base.config, f32, format == "int8" ? 8 : 4, 1 << 30);
    } else {
      io::SaveFormat save{.dtype = format == "f32" ? DType::kF32 : DType::kBF16,
                          .quantization = {},
                          .max_shard_bytes = 1 << 30};
      save.quantization.fp8 = format == "fp8";
      io::save_checkpoint(dir_.path(), base.config, f32, save);
    }
    checkpoint = std::make_unique<io::HfCheckpoint>(io::open_checkpoint(dir_.path()));
    memory_block = io::load_weights(ctx, *checkpoint, io::WeightFormat::kKeep, weights);
    act = format == "f32" ? DType::kF32 : DType::kBF16;
    cache = c.cache;
  }
  ~Model() {
    memory_block = Block();
    packed_block = Block();
    device::destroy(device_, ctx.stream);
  }
  void pack() { packed_block = io::pack_weights(ctx, *checkpoint, weights); }
  int64_t V() const { return checkpoint->config.vocab_size; }

 private:
  Device device_;
  Pool host_memory_;

 public:
  ThreadPool threads{2};
  Pool memory{device_};
  Context ctx{.device = device_,
              .stream = device::make_stream(device_),
              .threads = threads,
              .memory = memory};
  Weights weights;
  DType act;
  CacheFormat cache;
  std::unique_ptr<io::HfCheckpoint> checkpoint;

 private:
  TempDir dir_;
  Block memory_block, packed_block;
};

std::vector<int32_t> prompt(int64_t vocab, int64_t n, std::string_view name) {
  const Rng rng(5, stream_id(name));
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i)
    ids.push_back(
        static_cast<int32_t>(rng.u64(static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab)));
  return ids;
}

// Runs sequences side by side; keeps the logits of the first one.
class Replay {
 public:
  Replay(Model& model, int64_t num_seqs)
      : model_(model),
        decoder_(model.ctx, model.checkpoint->config, model.weights, model.act,
                 {.max_seqs = num_seqs,
                  .max_tokens = kPrompt,
                  .max_step_tokens = num_seqs * kPrompt,
                  .num_mtp = 0,
                  .num_pages = 0,
                  .cache = model.cache}),
        logits(static_cast<size_t>(kPrompt * model.V())) {
    for (int64_t s = 0; s < num_seqs; ++s) slots_.push_back(decoder_.cache().open());
  }

  // Tokens [start, start + count) of each sequence.
  void step(const std::vector<std::vector<int32_t>>& seqs, int64_t start, int64_t count) {
    std::vector<int32_t> ids;
    for (const auto& seq : seqs)
      ids.insert(ids.end(), seq.begin() + start, seq.begin() + start + count);
    const auto n = static_cast<int64_t>(seqs.size());
    const std::vector<int64_t> starts(seqs.size(), start), lengths(seqs.size(), count);
    const Step step =
        make_step(model_.ctx, model_.checkpoint->config, ids, starts, lengths, model_.act);
    Tensor h, out;
    const Block h_memory = model_.ctx.memory.take_tensor(
        model_.act, {n * count, model_.checkpoint->config.hidden_size}, &h);
    const Block out_memory =
        model_.ctx.memory.take_tensor(DType::kF32, {n * count, model_.V()}, &out);
    decoder_.forward({.step = step, .seqs = slots_}, h);
    decoder_.logits(h, out);
    const std::vector<float> mine = download<float>(model_.ctx, out.rows(0, count));
    std::copy(mine.begin(), mine.end(), logits.begin() + start * model_.V());
  }

 private:
  Model& model_;
  Decoder decoder_;
  std::vector<int64_t> slots_;

 public:
  std::vector<float> logits;  // [kPrompt, V] of the first sequence
};

class DecodeInvariance : public ::testing::TestWithParam<Case> {};

// An FP8 cache is in use where it was asked for: logits differ from those of a plain one, as much
// as elements that are off by up to 2^-4 make them.
TEST(Fp8Cache, IsCloseToAPlainOne) {
  const auto logits = [](CacheFormat cache) {
    Model model({"", "base", "f32", DeviceKind::kCpu, 1, cache});
    Replay whole(model, 1);
    whole.step({prompt(model.V(), kPrompt, "mine")}, 0, kPrompt);
    return whole.logits;
  };
  const std::vector<float> plain = logits(CacheFormat::kCompute), fp8 = logits(CacheFormat::kFp8);
  double error = 0.0, norm = 0.0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double d = static_cast<double>(fp8[i]) - static_cast<double>(plain[i]);
    error += d * d;
    norm += static_cast<double>(plain[i]) * static_cast<double>(plain[i]);
  }
  EXPECT_GT(std::sqrt(error / norm), 1e-4);
  EXPECT_LT(std::sqrt(error / norm), 0.4);
}

TEST_P(DecodeInvariance, SameBitsHoweverTokensCome) {
  const Case& test = GetParam();
  if (test.device == DeviceKind::kCuda && device::num_devices(test.device) == 0)
    GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  Model model(test);
  const std::vector<int32_t> ids = prompt(model.V(), kPrompt, "mine");
  Replay whole(model, 1);
  whole.step({ids}, 0, kPrompt);
  const auto expect_equal = [&](const Replay& run, const std::string& what) {
    EXPECT_EQ(
        std::memcmp(run.logits.data(), whole.logits.data(), whole.logits.size() * sizeof(float)), 0)
        << what;
  };
  for (const int64_t chunk : {1, 7, 64}) {
    Replay run(model, 1);
    for (int64_t p = 0; p < kPrompt; p += chunk) run.step({ids}, p, std::min(chunk, kPrompt - p));
    expect_equal(run, concat("chunks of ", chunk));
  }
  // A batch of others, and token by token from the middle on.
  Replay batch(model, test.batch);
  std::vector<std::vector<int32_t>> seqs = {ids};
  for (int64_t s = 1; s < test.batch; ++s)
    seqs.push_back(prompt(model.V(), kPrompt, concat("s", s)));
  batch.step(seqs, 0, 100);
  for (int64_t p = 100; p < kPrompt; ++p) batch.step(seqs, p, 1);
  expect_equal(batch, concat("a batch of ", test.batch));
  // Verification: a round runs a token and three drafts, of which all but the first are wrong and
  // run again.
  Replay verify(model, 1);
  verify.step({ids}, 0, 100);
  for (int64_t p = 100; p < kPrompt; ++p) {
    std::vector<int32_t> drafted = ids;
    const int64_t count = std::min<int64_t>(4, kPrompt - p);
    for (int64_t i = p + 1; i < p + count; ++i) drafted[static_cast<size_t>(i)] ^= 1;
    verify.step({drafted}, p, count);
  }
  expect_equal(verify, "verification");
  model.pack();
  Replay packed(model, 1), packed_batch(model, test.batch);
  for (int64_t p = 0; p < kPrompt; p += 50) packed.step({ids}, p, 50);
  expect_equal(packed, "packed weights");
  packed_batch.step(seqs, 0, 100);
  for (int64_t p = 100; p < kPrompt; ++p) packed_batch.step(seqs, p, 1);
  expect_equal(packed_batch, "a batch with packed weights");
}

INSTANTIATE_TEST_SUITE_P(Formats, DecodeInvariance, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

// Relative L2 of logits in bf16 when sums go another way: measured 0.037 and, in FP8, 0.047. A
// wrong head, page or expert gives 0.3 and more.
constexpr double kFastestBound = 0.08;
// Where the cache is FP8, a latent that comes out one unit of bf16 away may be one of e4m3 away.
constexpr double kFastestBoundOfFp8Cache = 0.16;

// In the fastest mode steps of few tokens run whole layers in one launch: nearly the same logits.
class DecodeFastest : public ::testing::TestWithParam<Case> {};

TEST_P(DecodeFastest, IsCloseToInvariantForFewTokens) {
  const Case& test = GetParam();
  if (device::num_devices(test.device) == 0) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  Model model(test);
  const std::vector<int32_t> ids = prompt(model.V(), kPrompt, "mine");
  const std::vector<int32_t> other = prompt(model.V(), kPrompt, "other");
  Replay whole(model, 1);
  whole.step({ids}, 0, kPrompt);
  model.ctx.numerics = Numerics::kFastest;
  const auto expect_close = [&](const Replay& run, const std::string& what) {
    double error = 0.0, norm = 0.0;
    for (size_t i = 0; i < whole.logits.size(); ++i) {
      const double d = static_cast<double>(run.logits[i]) - static_cast<double>(whole.logits[i]);
      error += d * d;
      norm += static_cast<double>(whole.logits[i]) * static_cast<double>(whole.logits[i]);
    }
    EXPECT_LT(std::sqrt(error / norm),
              test.cache == CacheFormat::kFp8 ? kFastestBoundOfFp8Cache : kFastestBound)
        << what;
  };
  for (const int64_t chunk : {1, 2, 3, 4}) {
    Replay run(model, 1);
    run.step({ids}, 0, 50);
    for (int64_t p = 50; p < kPrompt; p += chunk) run.step({ids}, p, std::min(chunk, kPrompt - p));
    expect_close(run, concat("steps of ", chunk));
  }
  Replay two(model, 2);
  two.step({ids, other}, 0, 50);
  for (int64_t p = 50; p < kPrompt; p += 2) two.step({ids, other}, p, 2);
  expect_close(two, "two sequences");
}

INSTANTIATE_TEST_SUITE_P(
    Formats, DecodeFastest,
    ::testing::Values(Case{"v3_heads_bf16", "v3_heads", "bf16", DeviceKind::kCuda, 1},
                      Case{"v3_heads_fp8", "v3_heads", "fp8", DeviceKind::kCuda, 1},
                      Case{"v3_heads_bf16_fp8_cache", "v3_heads", "bf16", DeviceKind::kCuda, 1,
                           CacheFormat::kFp8},
                      Case{"v3_heads_fp8_fp8_cache", "v3_heads", "fp8", DeviceKind::kCuda, 1,
                           CacheFormat::kFp8}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hadal::testing
