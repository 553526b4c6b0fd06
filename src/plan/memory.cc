// Memory: sums of parameters, shards and activations.
// SPDX-License-Identifier: Apache-2.0
#include "plan/memory.h"

#include <algorithm>

#include "core/check.h"
#include "model/bytes.h"
#include "model/params.h"

namespace hadal::plan {
namespace {

constexpr double kFp8 = 1.0 + 4.0 / 128.0;  // with a f32 scale of each 1x128
constexpr double kE5M6 = 1.5;

// Recipe fp8, per token unless said: the residual stream twice, latents, the attention output in
// E5M6, received rows and SwiGLU inputs in FP8.
LayerBytes fp8_layer(const TrainPlan& p, bool is_moe) {
  const Config& c = p.model;
  const auto T = static_cast<double>(p.micro_batch_tokens());
  const auto D = static_cast<double>(c.hidden_size);
  const double tp = p.mesh.tp, H = static_cast<double>(c.num_attention_heads) / tp;
  const double Dq = H * static_cast<double>(c.qk_head_dim());
  const double Dkv = H * static_cast<double>(c.qk_nope_head_dim + c.v_head_dim);
  const double Do = H * static_cast<double>(c.v_head_dim);
  const double latents = static_cast<double>(c.q_lora_rank + c.latent_dim());
  const auto k = static_cast<double>(c.num_experts_per_tok);
  const double rows = T * k * p.row_imbalance, F = static_cast<double>(c.moe_intermediate_size);
  const double Fs =
      static_cast<double>(is_moe ? c.shared_intermediate_size() : c.intermediate_size) / tp;
  LayerBytes b;
  if (p.recompute == Recompute::kFull) {
    b.saved = 2.0 * T * D / tp;
  } else {
    b.saved = 2.0 * T * D * 2.0 / tp + T * latents * 2.0 + T * Do * kE5M6 + T * H * 4.0 +
              T * 2.0 * Fs * kFp8;
    if (is_moe)
      b.saved +=
          rows * (D + 2.0 * F) * kFp8 + T * (static_cast<double>(c.n_routed_experts) + 2 * k) * 4.0;
    if (p.recompute == Recompute::kNone)
      b.saved += 2.0 * T * D * kFp8 + T * (Dq + Dkv) * 2.0 + T * latents * kFp8 +
                 (T * Fs + (is_moe ? rows * F : 0.0)) * kFp8;
  }
  // FP8 operands along tokens of all weight gradients: inputs and output gradients.
  b.deferred = kFp8 * (T * (2.0 * latents + 3.0 * D + Dq + Dkv + Do) + T * 3.0 * Fs + T * D * 2.0 +
                       (is_moe ? rows * (2.0 * D + 3.0 * F) : 0.0));
  // Queries, keys, values and their gradients; or rows in bf16 before and after the experts.
  b.workspace = std::max(4.0 * T * (Dq + Dkv), is_moe ? rows * (2.0 * D + 3.0 * F) * 2.0 : 0.0);
  return b;
}

// Recipes bf16 and f32: the runtime's own functions. Experts hold rows for the planned imbalance
// where they are spread over ranks; alone, for the worst case, as the runtime does.
LayerBytes runtime_layer(const TrainPlan& p, bool is_moe) {
  const Config& c = p.model;
  const DType act = activation_dtype(p.recipe);
  const int64_t T = p.micro_batch_tokens();
  LayerBytes b;
  b.saved = static_cast<double>(block::saved_bytes(c, T, p.micro_batch_sequences, is_moe, act)) +
            static_cast<double>(tensor_bytes(act, {T, c.hidden_size}));
  b.deferred = static_cast<double>(block::deferred_bytes(c, T, is_moe, act));
  if (is_moe && p.mesh.ep > 1) {
    const double worst = static_cast<double>(experts::max_pages(c, T));
    const double rows = static_cast<double>(T * c.num_experts_per_tok) * p.row_imbalance;
    const double planned =
        rows / 128.0 + static_cast<double>(c.n_routed_experts / p.mesh.ep);  // a part page of each
    const double share = planned / worst;
    b.saved += (share - 1.0) * worst * static_cast<double>(experts::page_bytes(c, act));
    b.deferred += (share - 1.0) * static_cast<double>(experts::deferred_bytes(c, T, act));
  }
  b.saved /= p.mesh.tp;
  b.deferred /= p.mesh.tp;
  if (p.recompute == Recompute::kFull)
    b.saved = static_cast<double>(tensor_bytes(act, {T, c.hidden_size}));
  b.workspace = 2.0 * static_cast<double>(T * c.num_attention_heads) *
                static_cast<double>(c.qk_head_dim() + c.qk_nope_head_dim + c.v_head_dim) *
                static_cast<double>(dtype_size(act)) / p.mesh.tp;
  return b;
}

double stage_bytes(const TrainPlan& p, const StageRange& s, double LayerBytes::*field,
                   const LayerBytes& dense, const LayerBytes& moe) {
  double sum = static_cast<double>(s.num_mtp) * moe.*field;
  for (int64_t l = s.first_layer; l < s.first_layer + s.num_layers; ++l)
    sum += (p.model.is_moe_layer(l) ? moe : dense).*field;
  return sum;
}

// Walks the steps of a rank and keeps the moment with the most bytes.
void activations_of(const std::vector<ScheduleStep>& steps, const std::vector<double>& saved,
                    const std::vector<double>& deferred, RankMemory& memory) {
  double live = 0.0, waiting = 0.0;
  const auto at = [](const std::vector<double>& v, const Chunk& c) {
    return v[static_cast<size_t>(c.stage)];
  };
  const auto look = [&] {
    if (live + waiting <= memory.activations + memory.deferred) return;
    memory.activations = live;
    memory.deferred = waiting;
  };
  for (const ScheduleStep& step : steps) {
    if (step.has_forward()) live += at(saved, step.forward);
    look();
    if (step.has_backward_input()) live -= at(saved, step.backward);
    if (step.work == Work::kBackwardInput) waiting += at(deferred, step.backward);
    look();
    if (step.work == Work::kBackwardWeight) waiting -= at(deferred, step.backward);
  }
}

// Logits in f32, of all heads where they are kept for the backward pass (model/head.h), else of one
// chunk; and the gradient of one head's in the type of the activations.
double logit_bytes(const TrainPlan& p, const StageRange& stage) {
  if (!stage.has_head) return 0.0;
  const int64_t T = p.micro_batch_tokens(),
                chunk = std::min(T, loss_chunk_tokens(p.model, device_of(p.recipe)));
  const double kept = chunk == T ? 1.0 + static_cast<double>(stage.num_mtp) : 1.0;
  const auto act = static_cast<double>(dtype_size(activation_dtype(p.recipe)));
  return static_cast<double>(chunk * p.model.vocab_size) * (4.0 * kept + act) / p.mesh.tp;
}

}  // namespace

std::vector<std::pair<std::string, double>> memory_classes(const RankMemory& m) {
  return {{"weights", m.weights},         {"f32 masters", m.masters},
          {"moments", m.moments},         {"f32 gradients", m.gradients},
          {"activations", m.activations}, {"deferred weight halves", m.deferred},
          {"workspace", m.workspace},     {"communication buffers", m.communication}};
}

int replica_group(const TrainPlan& p) {
  return p.mesh.dp * (p.schedule == ScheduleKind::kDualPipe ? 2 : 1);
}
int expert_group(const TrainPlan& p) {
  return p.mesh.expert_dp() * (p.schedule == ScheduleKind::kDualPipe ? 2 : 1);
}

double weight_bytes(Recipe recipe, bool is_plain) {
  switch (recipe) {
    case Recipe::kFp8:
      return is_plain ? 2.0 : 1.0 + 4.0 / (128.0 * 128.0);
    case Recipe::kBf16:
      return 2.0;
    case Recipe::kF32:
      return 0.0;  // masters are the weights
  }
  HADAL_UNREACHABLE("recipe");
}

double moment_bytes(Recipe recipe) { return recipe == Recipe::kFp8 ? 2.0 * 2.0 : 2.0 * 4.0; }

LayerBytes layer_bytes(const TrainPlan& plan, bool is_moe) {
  return plan.recipe == Recipe::kFp8 ? fp8_layer(plan, is_moe) : runtime_layer(plan, is_moe);
}

ParamSums::ParamSums(const Config& config) : config_(config), counts_(count_params(config)) {
  // One layer of each kind.
  Config c = config;
  const bool has_dense = config.first_k_dense_replace > 0;
  const bool has_moe = config.first_k_dense_replace < config.num_hidden_layers;
  c.first_k_dense_replace = has_dense ? 1 : 0;
  c.num_hidden_layers = (has_dense ? 1 : 0) + (has_moe ? 1 : 0);
  c.num_nextn_predict_layers = config.num_nextn_predict_layers > 0 ? 1 : 0;
  const auto sum_of = [&](const std::string& name) -> Sum& {
    if (name == "embed") return embed_;
    if (name == "head" || name == "norm") return head_;
    if (name.starts_with("mtp.")) return mtp_;
    return has_dense && name.starts_with("layers.0.") ? dense_ : moe_;
  };
  ModelParams<char> tree;
  resize(c, tree);
  for_each_param(
      c,
      [&](const ParamInfo& info, char&) {
        if (!info.trained()) return;
        const auto elements = static_cast<double>(info.shape.num_elements());
        Sum& sum = sum_of(info.name);
        const bool is_split = info.shard != ParamShard::kReplicated;
        if (info.shard == ParamShard::kExpert)
          sum.experts += elements;
        else if (info.kind == ParamKind::kMatrix)
          (is_split ? sum.split_matrices : sum.matrices) += elements;
        else
          (is_split ? sum.split_plain : sum.plain) += elements;
      },
      tree);
}

StageParams ParamSums::of(const Mesh& mesh, const StageRange& stage) const {
  StageParams n;
  const auto add = [&](const Sum& sum, double times) {
    n.matrices += times * (sum.matrices + sum.split_matrices / mesh.tp);
    n.plain += times * (sum.plain + sum.split_plain / mesh.tp);
    n.experts += times * sum.experts / mesh.ep;
  };
  const int64_t end = stage.first_layer + stage.num_layers;
  const int64_t dense =
      std::clamp(config_.first_k_dense_replace - stage.first_layer, int64_t{0}, stage.num_layers);
  HADAL_CHECK(end <= config_.num_hidden_layers, "internal error: a stage past the last layer");
  add(dense_, static_cast<double>(dense));
  add(moe_, static_cast<double>(stage.num_layers - dense));
  add(mtp_, static_cast<double>(stage.num_mtp));
  // MTP reads the embedding where it is; a tied head is the embedding.
  if (stage.has_embed || (stage.has_head && (stage.num_mtp > 0 || config_.tie_word_embeddings)))
    add(embed_, 1.0);
  if (stage.has_head) add(head_, 1.0);
  return n;
}

std::vector<RankMemory> plan_memory(const TrainPlan& p, const std::vector<StageRange>& stages,
                                    const Schedule& schedule, const ParamSums& sums) {
  const LayerBytes dense = layer_bytes(p, false), moe = layer_bytes(p, true);
  std::vector<StageParams> params;
  std::vector<double> saved, deferred;
  const auto T = static_cast<double>(p.micro_batch_tokens());
  const auto act = static_cast<double>(dtype_size(activation_dtype(p.recipe)));
  for (const StageRange& s : stages) {
    params.push_back(sums.of(p.mesh, s));
    const double heads = s.has_head ? 1.0 + static_cast<double>(s.num_mtp) : 0.0;
    saved.push_back(stage_bytes(p, s, &LayerBytes::saved, dense, moe) +
                    heads * T * (act * static_cast<double>(p.model.hidden_size) + 8.0) / p.mesh.tp);
    deferred.push_back(stage_bytes(p, s, &LayerBytes::deferred, dense, moe));
  }
  std::vector<RankMemory> ranks(static_cast<size_t>(p.mesh.pp));
  for (int r = 0; r < p.mesh.pp; ++r) {
    RankMemory& m = ranks[static_cast<size_t>(r)];
    double logits = 0.0;  // of the stages with a head
    double local = 0.0;
    for (int direction = 0; direction < schedule.num_directions(); ++direction)
      for (int s = 0; s < schedule.num_stages; ++s) {
        if (schedule.rank_of(direction, s) != r) continue;
        const StageParams& n = params[static_cast<size_t>(s)];
        logits = std::max(logits, logit_bytes(p, stages[static_cast<size_t>(s)]));
        const double shards =
            (n.matrices + n.plain) / replica_group(p) + n.experts / expert_group(p);
        m.weights += (n.matrices + n.experts) * weight_bytes(p.recipe, false) +
                     n.plain * weight_bytes(p.recipe, true);
        m.masters += 4.0 * (p.recipe == Recipe::kF32 ? n.total() : shards);
        m.moments += moment_bytes(p.recipe) * shards;
        m.gradients += 4.0 * n.total();
        local += shards;
      }
    m.host = 4.0 * local;
    activations_of(schedule.steps[static_cast<size_t>(r)], saved, deferred, m);
    m.workspace = std::max({dense.workspace, moe.workspace, logits});
    const double message = T * static_cast<double>(p.model.hidden_size) * act / p.mesh.tp;
    if (p.mesh.pp > 1) m.communication += 4.0 * message;
    if (p.mesh.ep > 1)  // rows out and back, of one exchange each way
      m.communication += T * static_cast<double>(p.model.num_experts_per_tok) * p.row_imbalance *
                         static_cast<double>(p.model.hidden_size) *
                         (2.0 + (p.recipe == Recipe::kFp8 ? kFp8 : 2.0));
  }
  return ranks;
}

}  // namespace hadal::plan
