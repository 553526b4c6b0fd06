// hadal verify on a golden.safetensors: one batch forward and backward, decode, greedy tokens.
//
//   B sequences   T tokens of each   D model width   V vocabulary   K choices of a token   E
//   experts
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>

#include "cli/verify.h"
#include "core/transfer.h"
#include "model/bytes.h"
#include "model/decoder.h"
#include "model/fp8_weights.h"
#include "model/head.h"
#include "model/param_store.h"
#include "model/stage.h"
#include "ops/copy.h"
#include "serve/generator.h"

namespace hadal::cli {
namespace {

constexpr double kMtpWeight = 0.3;  // of the objective that the gradients belong to
constexpr int64_t kPromptTokens = 16;

// What each kind of key may differ by. f32 and f64: the project's acceptance bounds; bf16: what 8
// bits of mantissa leave over a few layers (docs/numerics.md).
struct Tolerances {
  Tolerance state, gate, loss, gradient, choice, load, greedy;
};

Tolerances tolerances_of_compute(const VerifyFormat& format) {
  const DType dtype = format.dtype;
  constexpr Tolerance kExact{.mismatches = 0.0};
  if (dtype == DType::kF64) {
    constexpr Tolerance kTight{.relative_l2 = 1e-6};
    return {kTight, kTight, kTight, kTight, kExact, kExact, kExact};
  }
  if (dtype == DType::kF32)
    return {.state = {.absolute = 2e-5},
            .gate = {.absolute = 1e-5},
            .loss = {.relative_l2 = 1e-5},
            .gradient = {.relative_l2 = 2e-5},
            .choice = kExact,
            .load = kExact,
            .greedy = kExact};
  // With e4m3 operands a product has 2^-4 for each factor; the rest is other choices of experts.
  const bool fp8 = format.precision.fp8;
  return {.state = {.relative_l2 = fp8 ? 0.4 : 0.2},
          .gate = {},
          .loss = {.relative_l2 = fp8 ? 0.1 : 0.05},
          .gradient = {},
          .choice = {.mismatches = fp8 ? 0.5 : 0.25},
          .load = {.mismatches = 1.0},  // one other choice changes two loads
          .greedy = {.mismatches = 1.0}};
}

// Of what goes over the cache: an e4m3 element is off by up to 2^-4, like an operand of FP8.
Tolerances tolerances_of_decode(const VerifyFormat& format) {
  Tolerances t = tolerances_of_compute(format);
  if (format.cache == CacheFormat::kCompute) return t;
  t.state = {.relative_l2 = 0.4};
  t.greedy = {.mismatches = 1.0};
  return t;
}

// The model under test with everything it runs on.
struct Subject {
  Subject(Context& ctx, const io::HfCheckpoint& checkpoint, const VerifyFormat& format, int64_t T)
      : dtype(format.dtype),
        config(config_of(checkpoint, format)),
        masters(ctx, config, stat_dtype(dtype), ParamStore::Extent::kAll),
        grads(ctx, config, stat_dtype(dtype), ParamStore::Extent::kTrained),
        copies(dtype == DType::kBF16
                   ? std::make_unique<ParamStore>(ctx, config, dtype, ParamStore::Extent::kMatrices)
                   : nullptr),
        fp8(format.precision.fp8 ? std::make_unique<Fp8Weights>(ctx, config, masters.tree)
                                 : nullptr),
        weights(fp8 ? fp8->weights_of(masters.tree, copies ? &copies->tree : nullptr)
                    : weights_of(config, masters.tree, copies ? &copies->tree : nullptr)),
        rows(ctx, config, dtype,
             std::max<int64_t>(1, config.num_moe_layers() * experts::max_pages(config, T))),
        exchange(rows, config.n_routed_experts),
        stage(stage::whole_model(config, weights, exchange, config.num_nextn_predict_layers)) {
    io::read_weights(ctx, checkpoint, masters.tree);
    if (copies) ops::cast(ctx, masters.matrices(), copies->matrices());
    if (fp8) fp8->quantise(ctx, masters.tree);
  }
  static Config config_of(const io::HfCheckpoint& checkpoint, const VerifyFormat& format) {
    Config c = checkpoint.config;
    c.precision = format.precision;
    return c;
  }
  DType dtype;
  Config config;
  ParamStore masters, grads;
  std::unique_ptr<ParamStore> copies;
  std::unique_ptr<Fp8Weights> fp8;
  Weights weights;
  RowPool rows;
  LocalExchange exchange;
  stage::Stage stage;
};

std::vector<int32_t> integers(const io::StoredTensor& tensor) {
  std::vector<int32_t> values;
  for (double v : to_doubles(tensor)) values.push_back(static_cast<int32_t>(v));
  return values;
}

// The token after is the target; the last position has none.
std::vector<Sequence> sequences_of(const std::vector<int32_t>& ids, int64_t B, int64_t T) {
  std::vector<Sequence> sequences;
  for (int64_t b = 0; b < B; ++b) {
    Sequence s;
    s.ids.assign(ids.begin() + b * T, ids.begin() + (b + 1) * T);
    s.targets.assign(s.ids.begin() + 1, s.ids.end());
    s.targets.push_back(-1);
    sequences.push_back(std::move(s));
  }
  return sequences;
}

// Compares a tensor of the device.
void compare(Context& ctx, const std::string& kind, const std::string& key, const Tensor& ours,
             Tolerance tolerance, VerifyReport& report) {
  report.compare(kind, key, HostRead(ctx, ours).tensor(), tolerance);
}

void compare_layer(Context& ctx, const std::string& layer, const gate::Saved& gate, int64_t E,
                   const Tolerances& t, VerifyReport& report) {
  compare(ctx, "topk", "topk." + layer, gate.topk_idx, t.choice, report);
  compare(ctx, "gate", "gate." + layer, gate.topk_weight, t.gate, report);
  std::vector<int32_t> load(static_cast<size_t>(E), 0);
  for (int32_t expert : download<int32_t>(ctx, gate.topk_idx)) ++load[static_cast<size_t>(expert)];
  report.compare("load", "load." + layer, Tensor(load.data(), DType::kI32, {E}), t.load);
}

// logits of every row of h, compared under `kind`.
void compare_logits(Context& ctx, const Subject& subject, const std::string& kind,
                    const std::string& key, const Tensor& h, const Shape& shape,
                    Tolerance tolerance, VerifyReport& report) {
  const Config& c = subject.config;
  Tensor logits;
  const Block memory =
      ctx.memory.take_tensor(stat_dtype(h.dtype()), {h.dim(0), c.vocab_size}, &logits);
  head::logits(ctx, subject.weights.head_of(c), h, logits);
  compare(ctx, kind, key, logits.view(shape), tolerance, report);
}

void compare_forward(Context& ctx, const Subject& subject, const stage::Saved& saved, int64_t B,
                     int64_t T, const Tolerances& t, VerifyReport& report) {
  const Config& c = subject.config;
  const int64_t D = c.hidden_size;
  for (int64_t l = 0; l <= c.num_hidden_layers; ++l) {
    const Tensor& x = l == c.num_hidden_layers ? saved.h : saved.x[static_cast<size_t>(l)];
    compare(ctx, "hidden", concat("hidden.", l), x.view({B, T, D}), t.state, report);
  }
  compare_logits(ctx, subject, "logits", "logits", saved.h, {B, T, c.vocab_size}, t.state, report);
  for (int64_t l = c.first_k_dense_replace; l < c.num_hidden_layers; ++l)
    compare_layer(ctx, std::to_string(l), saved.blocks[static_cast<size_t>(l)].moe.gate,
                  c.n_routed_experts, t, report);
  HADAL_CHECK(c.num_nextn_predict_layers <= 1, "goldens hold one MTP depth, the model has ",
              c.num_nextn_predict_layers);
  if (c.num_nextn_predict_layers == 0) return;
  const mtp::Saved& mtp = saved.mtp[0];
  compare_layer(ctx, std::to_string(c.num_hidden_layers), mtp.block.moe.gate, c.n_routed_experts, t,
                report);
  compare(ctx, "mtp.hidden", "mtp.hidden", mtp.out.view({B, T - 1, D}), t.state, report);
  compare_logits(ctx, subject, "mtp.logits", "mtp.logits", mtp.out, {B, T - 1, c.vocab_size},
                 t.state, report);
}

void compare_loss(const std::string& key, double sum, int64_t count, const Tolerances& t,
                  VerifyReport& report) {
  double mean = sum / static_cast<double>(count);
  report.compare("loss", key, Tensor(&mean, DType::kF64, {1}), t.loss);
}

void compare_gradients(Context& ctx, const io::HfCheckpoint& checkpoint, Subject& subject,
                       const Tolerances& t, VerifyReport& report) {
  for_each_param(
      subject.config,
      [&](const ParamInfo& info, Tensor& leaf) {
        if (!info.trained()) return;
        compare(ctx, "grad", "grad." + io::hf_name(checkpoint.config, info.name), leaf, t.gradient,
                report);
      },
      subject.grads.tree);
}

// The same logits through absorbed decode over the latent cache, in uneven chunks.
void compare_decode(Context& ctx, Subject& subject, const VerifyFormat& format,
                    const std::vector<int32_t>& ids, int64_t B, int64_t T, VerifyReport& report) {
  const Config& c = subject.config;
  const DType dtype = format.dtype;
  const std::vector<int64_t> chunks = {7, 1, 2, 33, 1, T};
  Decoder decoder(ctx, c, subject.weights, dtype,
                  {.max_seqs = B,
                   .max_tokens = T,
                   .max_step_tokens = B * T,
                   .num_mtp = 0,
                   .num_pages = 0,
                   .cache = format.cache});
  std::vector<int64_t> seqs;
  for (int64_t b = 0; b < B; ++b) seqs.push_back(decoder.cache().open());
  Tensor h;
  const Block memory = ctx.memory.take_tensor(dtype, {B * T, c.hidden_size}, &h);
  int64_t start = 0;
  for (int64_t chunk : chunks) {
    const int64_t n = std::min(chunk, T - start);
    if (n <= 0) break;
    std::vector<int32_t> step_ids;
    for (int64_t b = 0; b < B; ++b)
      step_ids.insert(step_ids.end(), ids.begin() + b * T + start, ids.begin() + b * T + start + n);
    const std::vector<int64_t> lengths(static_cast<size_t>(B), n),
        starts(static_cast<size_t>(B), start);
    const Step step = make_step(ctx, c, step_ids, starts, lengths, dtype);
    Tensor out;
    const Block out_memory = ctx.memory.take_tensor(dtype, {B * n, c.hidden_size}, &out);
    decoder.forward({.step = step, .seqs = seqs}, out);
    for (int64_t b = 0; b < B; ++b) ops::cast(ctx, out.rows(b * n, n), h.rows(b * T + start, n));
    start += n;
  }
  compare_logits(ctx, subject, "logits by decode", "logits", h, {B, T, c.vocab_size},
                 tolerances_of_decode(format).state, report);
}

void compare_greedy(Context& ctx, Subject& subject, const VerifyFormat& format,
                    VerifyReport& report) {
  const Config& c = subject.config;
  const io::StoredTensor* stored = report.find("greedy");
  HADAL_CHECK(stored != nullptr && stored->shape.size() == 2 && stored->shape[0] == 1 &&
                  stored->shape[1] > kPromptTokens,
              "the golden file needs greedy [1, n] with more than ", kPromptTokens, " tokens");
  const std::vector<int32_t> golden = integers(*stored);
  const auto n = static_cast<int64_t>(golden.size());
  for (int64_t speculate : {0, 1, 3}) {
    if (speculate > 0 && c.num_nextn_predict_layers == 0) continue;
    Decoder decoder(ctx, c, subject.weights, format.dtype,
                    {.max_seqs = 1,
                     .max_tokens = n + 8,
                     .max_step_tokens = 5,
                     .num_mtp = speculate > 0 ? c.num_nextn_predict_layers : 0,
                     .num_pages = 0,
                     .cache = format.cache});
    serve::Generator generator(ctx, decoder);
    const serve::GenerateResult result =
        generator.run({.prompt = {golden.begin(), golden.begin() + kPromptTokens},
                       .max_tokens = n - kPromptTokens,
                       .sampling = {},
                       .stop_ids = {},
                       .speculate = speculate,
                       .on_token = nullptr,
                       .should_stop = nullptr});
    std::vector<int32_t> all(golden.begin(), golden.begin() + kPromptTokens);
    all.insert(all.end(), result.tokens.begin(), result.tokens.end());
    const std::string kind = speculate == 0 ? "greedy" : concat("greedy, speculate ", speculate);
    report.compare(kind, "greedy", Tensor(all.data(), DType::kI32, {1, n}),
                   tolerances_of_decode(format).greedy);
  }
}

}  // namespace

void verify_golden(Context& ctx, const io::HfCheckpoint& checkpoint, const VerifyFormat& format,
                   VerifyReport& report) {
  const DType dtype = format.dtype;
  const io::StoredTensor* stored = report.find("input_ids");
  HADAL_CHECK(stored != nullptr && stored->shape.size() == 2 && stored->shape[0] > 0 &&
                  stored->shape[1] > 2,
              "the golden file needs input_ids [sequences, tokens]");
  const int64_t B = stored->shape[0], T = stored->shape[1];
  report.mark_used("input_ids");
  const std::vector<int32_t> ids = integers(*stored);
  const Tolerances t = tolerances_of_compute(format);
  Subject subject(ctx, checkpoint, format, B * T);
  const Config& c = subject.config;
  const int64_t depths = c.num_nextn_predict_layers;

  stage::Meter meter = stage::make_meter(ctx, subject.stage);
  const Batch batch = make_batch(ctx, c, sequences_of(ids, B, T), depths, dtype);
  stage::Saved saved = stage::forward(ctx, subject.stage, batch, In(), meter);
  compare_forward(ctx, subject, saved, B, T, t, report);
  compare_loss("loss", download<double>(ctx, meter.main)[0], batch.num_targets, t, report);
  if (depths > 0)
    compare_loss("mtp.loss", download<double>(ctx, meter.mtp)[0], batch.mtp[0].num_targets, t,
                 report);

  stage::LossScale scale{
      .main = 1.0 / static_cast<double>(batch.num_targets), .mtp = {}, .mtp_balance = {}};
  for (int64_t k = 0; k < depths; ++k) {
    scale.mtp.push_back(kMtpWeight /
                        static_cast<double>(batch.mtp[static_cast<size_t>(k)].num_targets));
    scale.mtp_balance.push_back(0.0);
  }
  stage::backward(ctx, subject.stage, std::move(saved),
                  {.batch = batch, .scale = scale, .dy_in = In(), .dx_out = Out()},
                  subject.grads.tree);
  // NOTE: goldens of quantised checkpoints carry no gradients.
  if (!checkpoint.quantization.fp8) compare_gradients(ctx, checkpoint, subject, t, report);

  compare_decode(ctx, subject, format, ids, B, T, report);
  compare_greedy(ctx, subject, format, report);
  report.check_all_used();
}

}  // namespace hadal::cli
