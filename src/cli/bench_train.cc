// One optimizer step of a run config, on tokens that mean nothing.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include "cli/bench.h"
#include "core/rng.h"
#include "train/learner.h"
#include "train/run_config.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

// Operations of a training step per token: the products of the forward pass, and twice as many of
// the backward pass; what is computed again does not count.
double flops_per_token(const Config& c, int64_t length) {
  double weights = 0.0;
  for_each_param(c, [&](const ParamInfo& info) {
    if (info.shape.rank < 2 || info.name == "embed") return;
    const double share =
        info.shard == ParamShard::kExpert
            ? static_cast<double>(c.num_experts_per_tok) / static_cast<double>(c.n_routed_experts)
            : 1.0;
    const double uses =
        info.name == "head" ? static_cast<double>(1 + c.num_nextn_predict_layers) : 1.0;
    weights += uses * share * static_cast<double>(info.shape.num_elements());
  });
  const auto head = static_cast<double>(c.vocab_size * c.hidden_size);
  if (c.tie_word_embeddings) weights += head * static_cast<double>(1 + c.num_nextn_predict_layers);
  const auto layers = static_cast<double>(c.num_hidden_layers + c.num_nextn_predict_layers);
  const auto widths = static_cast<double>(c.qk_head_dim() + c.v_head_dim);
  const double attention = layers * static_cast<double>(c.num_attention_heads) * widths * 0.5 *
                           static_cast<double>(length + 1);
  return 6.0 * (weights + attention);
}

}  // namespace

void bench_train(Context& ctx, const std::string& path, int64_t count, json row) {
  const train::RunConfig run = train::read_run_config(path, {});
  const auto& t = run.train;
  const int64_t batch = t.batch_of({});
  const int64_t micro = t.micro_batch_sequences > 0 ? t.micro_batch_sequences : batch;
  Config config = run.model;
  config.precision = t.precision;
  train::Learner learner(ctx, config, t.dtype, micro * t.sequence_length);
  init_params(ctx, run.model, t.seed, learner.masters().tree);
  learner.masters_changed();
  const Rng rng(4, stream_id("bench"));
  std::vector<std::vector<Sequence>> batches;
  uint64_t drawn = 0;
  for (int64_t s = 0; s < batch; ++s) {
    if (s % micro == 0) batches.emplace_back();
    Sequence sequence;
    for (int64_t i = 0; i < t.sequence_length; ++i) {
      const auto next = [&] {
        return static_cast<int32_t>(rng.u64(drawn++) % static_cast<uint64_t>(run.model.vocab_size));
      };
      sequence.ids.push_back(next());
      sequence.targets.push_back(next());
    }
    batches.back().push_back(std::move(sequence));
  }
  const train::Recipe recipe{.lr = 1e-4};
  int64_t step = 0;
  const Sampled s = sample(ctx, count, [&] { learner.step(batches, recipe, ++step); });
  const auto tokens = static_cast<double>(batch * t.sequence_length);
  const double flops = flops_per_token(run.model, t.sequence_length);
  row.update({{"bench", "train"},
              {"dtype", std::string(dtype_name(t.dtype))},
              {"tokens_per_step", tokens},
              {"gflop_per_token", flops / 1e9},
              {"tokens_per_s", tokens / quantile(s.wall, 0.5)}});
  row.update(s.to_json({.flops = tokens * flops, .bytes = 0.0}));
  fmt::print("{}\n", row.dump());
}

}  // namespace hadal::cli
