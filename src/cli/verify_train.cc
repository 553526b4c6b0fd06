// hadal verify on a train.safetensors: ten AdamW steps from the checkpoint, compared step by step.
//
//   S steps   B sequences   T tokens of each   M MoE layers   E experts
// SPDX-License-Identifier: Apache-2.0
#include "cli/verify.h"
#include "core/transfer.h"
#include "train/learner.h"

namespace hadal::cli {
namespace {

// The conventions of the file (tests/goldens/make_goldens.py).
constexpr train::Recipe kRecipe{.lr = 3e-3,
                                .beta1 = 0.9,
                                .beta2 = 0.95,
                                .eps = 1e-5,
                                .weight_decay = 0.1,
                                .clip_norm = 1.0,
                                .mtp_weight = 0.3,
                                .balance_alpha = 1e-2,
                                .bias_gamma = 0.01};

struct Tolerances {
  Tolerance loss, bias, weight;
};

Tolerances tolerances(const VerifyFormat& format) {
  const DType dtype = format.dtype;
  // Adam makes steps of one size of gradients of any: where a gradient is noise, so is the way.
  if (format.precision.fp8)
    return {
        .loss = {.relative_l2 = 0.1}, .bias = {.absolute = 0.2}, .weight = {.relative_l2 = 2.0}};
  if (dtype == DType::kBF16)
    return {
        .loss = {.relative_l2 = 0.05}, .bias = {.absolute = 0.2}, .weight = {.relative_l2 = 1.0}};
  return {.loss = {.relative_l2 = dtype == DType::kF64 ? 1e-6 : 1e-5},
          .bias = {.absolute = 1e-6},
          .weight = {.relative_l2 = 1e-3}};
}

std::vector<Sequence> sequences_of(const std::vector<double>& tokens, int64_t step, int64_t B,
                                   int64_t T) {
  std::vector<Sequence> sequences;
  for (int64_t b = 0; b < B; ++b) {
    const auto begin = tokens.begin() + (step * B + b) * (T + 1);
    Sequence s;
    for (int64_t i = 0; i < T; ++i) {
      s.ids.push_back(static_cast<int32_t>(begin[i]));
      s.targets.push_back(static_cast<int32_t>(begin[i + 1]));
    }
    sequences.push_back(std::move(s));
  }
  return sequences;
}

// Final weights, each tensor's error relative to how far it moved since step 0.
void compare_weights(Context& ctx, const io::HfCheckpoint& checkpoint, train::Learner& learner,
                     Tolerance tolerance, VerifyReport& report) {
  size_t i = 0;
  for_each_param(
      learner.config(),
      [&](const ParamInfo& info, Tensor& leaf) {
        const io::HfParam& start = checkpoint.params[i++];
        if (!info.trained()) return;
        const std::string key = "final." + io::hf_name(checkpoint.config, info.name);
        io::StoredShape shape;
        for (int d = 0; d < leaf.rank(); ++d) shape.push_back(leaf.dim(d));
        const std::vector<double> want = to_doubles(report.golden(key, shape)),
                                  ours = to_doubles(HostRead(ctx, leaf).tensor());
        std::vector<double> moved = to_doubles(*start.data);
        for (size_t j = 0; j < moved.size(); ++j) moved[j] = want[j] - moved[j];
        report.compare_values("final weights", key, ours, want, moved, tolerance);
      },
      learner.masters().tree);
}

}  // namespace

void verify_train(Context& ctx, const io::HfCheckpoint& checkpoint, const VerifyFormat& format,
                  VerifyReport& report) {
  const io::StoredTensor* stored = report.find("train.tokens");
  HADAL_CHECK(stored != nullptr && stored->shape.size() == 3 && stored->shape[2] > 2,
              "the golden file needs train.tokens [steps, sequences, tokens + 1]");
  const int64_t S = stored->shape[0], B = stored->shape[1], T = stored->shape[2] - 1;
  report.mark_used("train.tokens");
  const std::vector<double> tokens = to_doubles(*stored);
  Config c = checkpoint.config;
  c.precision = format.precision;
  HADAL_CHECK(!checkpoint.quantization.fp8,
              "a training golden needs a checkpoint that is not quantised");
  train::Learner learner(ctx, c, format.dtype, B * T);
  io::read_weights(ctx, checkpoint, learner.masters().tree);
  learner.masters_changed();

  const int64_t E = c.n_routed_experts, M = c.num_moe_layers();
  std::vector<double> main, mtp, balance, norm;
  std::vector<std::vector<double>> bias(static_cast<size_t>(M));
  for (int64_t s = 0; s < S; ++s) {
    const train::StepResult r = learner.step({sequences_of(tokens, s, B, T)}, kRecipe, s + 1);
    main.push_back(r.main);
    if (!r.mtp.empty()) mtp.push_back(r.mtp[0]);
    balance.push_back(r.balance);
    norm.push_back(r.grad_norm);
    size_t m = 0;
    const auto record = [&](const block::Params<Tensor>& b) {
      const std::vector<double> values = to_doubles(HostRead(ctx, b.moe.gate.bias).tensor());
      bias[m].insert(bias[m].end(), values.begin(), values.end());
      ++m;
    };
    for (int64_t l = c.first_k_dense_replace; l < c.num_hidden_layers; ++l)
      record(learner.masters().tree.layers[static_cast<size_t>(l)]);
    for (const auto& module : learner.masters().tree.mtp) record(module.block);
  }

  const Tolerances t = tolerances(format);
  const auto compare = [&](const char* key, std::vector<double>& values, Tolerance tolerance) {
    report.compare(key, key, Tensor(values.data(), DType::kF64, {S}), tolerance);
  };
  compare("train.main", main, t.loss);
  if (!mtp.empty()) compare("train.mtp", mtp, t.loss);
  compare("train.balance", balance, t.loss);
  compare("train.grad_norm", norm, t.loss);
  for (int64_t m = 0; m < M; ++m)
    report.compare("train.bias", concat("train.bias.", c.first_k_dense_replace + m),
                   Tensor(bias[static_cast<size_t>(m)].data(), DType::kF64, {S, E}), t.bias);
  compare_weights(ctx, checkpoint, learner, t.weight, report);
  report.check_all_used();
}

}  // namespace hadal::cli
