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
#include "model/fp8_weights.h"
#include "model/head.h"
#include "model/param_store.h"
#include "model/stage.h"
#include "ops/copy.h"

namespace hadal::cli {
namespace {

constexpr double kMtpWeight = 0.3;  // of the objective that the gradients belong to

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
                   const GoldenTolerances& t, VerifyReport& report) {
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
                     int64_t T, const GoldenTolerances& t, VerifyReport& report) {
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

void compare_loss(const std::string& key, double sum, int64_t count, const GoldenTolerances& t,
                  VerifyReport& report) {
  double mean = sum / static_cast<double>(count);
  report.compare("loss", key, Tensor(&mean, DType::kF64, {1}), t.loss);
}

void compare_gradients(Context& ctx, const io::HfCheckpoint& checkpoint, Subject& subject,
                       const GoldenTolerances& t, VerifyReport& report) {
  for_each_param(
      subject.config,
      [&](const ParamInfo& info, Tensor& leaf) {
        if (!info.trained()) return;
        compare(ctx, "grad", "grad." + io::hf_name(checkpoint.config, info.name), leaf, t.gradient,
                report);
      },
      subject.grads.tree);
}

}  // namespace

void verify_golden(Context& ctx, const io::HfCheckpoint& checkpoint, const VerifyFormat& format,
                   VerifyReport& report) {
  const DType dtype = format.dtype;
  const GoldenTokens tokens(report);
  const int64_t B = tokens.num_seqs, T = tokens.length;
  const GoldenTolerances t = tolerances_of_compute(format);
  Subject subject(ctx, checkpoint, format, B * T);
  const Config& c = subject.config;
  const int64_t depths = c.num_nextn_predict_layers;

  stage::Meter meter = stage::make_meter(ctx, subject.stage);
  const Batch batch = make_batch(ctx, c, sequences_of(tokens.ids, B, T), depths, dtype);
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

  verify_decode(ctx, {.config = c, .weights = subject.weights}, format, report);
  report.check_all_used();
}

}  // namespace hadal::cli
