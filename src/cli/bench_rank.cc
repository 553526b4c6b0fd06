// A rank of an expert-parallel group by itself.
//
//   T tokens   D model width   E experts of the gate
// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_rank.h"

#include "core/rng.h"
#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/copy.h"

namespace hadal::cli {

BalancedExchange::BalancedExchange(Context& ctx, RowPool& pool, int64_t tokens, int64_t choices)
    : local_(pool, kLocalExperts) {
  memory_ = ctx.memory.take_tensor(DType::kI32, {tokens, choices}, &idx_);
  std::vector<int32_t> idx;
  for (int64_t i = 0; i < tokens * choices; ++i)
    idx.push_back(static_cast<int32_t>(i % choices % kLocalExperts));
  upload(ctx, idx, idx_);
}

Ticket BalancedExchange::dispatch_start(Context& ctx, In x, In, In topk_weight) {
  return local_.dispatch_start(ctx, x, idx_, topk_weight);
}
void BalancedExchange::dispatch_finish(Context& ctx, Ticket& t, RowLease* rows) {
  local_.dispatch_finish(ctx, t, rows);
}
void BalancedExchange::combine_start(Context& ctx, Ticket& t, const ops::PagedRows& rows) {
  local_.combine_start(ctx, t, rows);
}
void BalancedExchange::combine_finish(Context& ctx, Ticket& t, const ops::PagedRows& rows, Out y) {
  local_.combine_finish(ctx, t, rows, y);
}
void BalancedExchange::combine_backward_start(Context& ctx, Ticket& t, In dy,
                                              const ops::PagedRows& drows) {
  local_.combine_backward_start(ctx, t, dy, drows);
}
void BalancedExchange::combine_backward_finish(Context& ctx, Ticket& t,
                                               const ops::PagedRows& drows) {
  local_.combine_backward_finish(ctx, t, drows);
}
void BalancedExchange::dispatch_backward_start(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                                               In drow_weight) {
  local_.dispatch_backward_start(ctx, t, drows, drow_weight);
}
void BalancedExchange::dispatch_backward_finish(Context& ctx, Ticket& t,
                                                const ops::PagedRows& drows, In drow_weight, Out dx,
                                                Out dtopk_weight) {
  local_.dispatch_backward_finish(ctx, t, drows, drow_weight, dx, dtopk_weight);
}

namespace {

Config layers_of(const Config& c, const Precision& precision, int64_t layers) {
  HADAL_CHECK(c.n_routed_experts >= kLocalExperts && c.num_experts_per_tok % kLocalExperts == 0,
              "bench: ", c.num_experts_per_tok, " choices cannot be shared by ", kLocalExperts,
              " experts evenly");
  Config all = c;
  all.precision = precision;
  all.num_hidden_layers = layers;
  all.first_k_dense_replace = all.num_nextn_predict_layers = 0;
  all.vocab_size = 64;
  return all;
}

// The parameters, as of a model that has the local experts alone.
Config local_config(const Config& c) {
  Config local = c;
  local.n_routed_experts = local.num_experts_per_tok = kLocalExperts;
  local.n_group = local.topk_group = 1;
  return local;
}

}  // namespace

RankLayers::RankLayers(Context& ctx, const Config& c, const Precision& precision, int64_t layers)
    : config_(layers_of(c, precision, layers)),
      local_(local_config(config_)),
      masters_(ctx, local_, DType::kF32, ParamStore::Extent::kAll),
      grads_(ctx, local_, DType::kF32, ParamStore::Extent::kTrained),
      copies_(ctx, local_, DType::kBF16, ParamStore::Extent::kMatrices),
      grads_tree_(grads_.tree) {
  init_alike(ctx);
  ops::cast(ctx, masters_.matrices(), copies_.matrices());
  if (precision.fp8) {
    fp8_ = std::make_unique<Fp8Weights>(ctx, local_, masters_.tree);
    fp8_->quantise(ctx, masters_.tree);
  }
  weights_ = fp8_ ? fp8_->weights_of(masters_.tree, &copies_.tree)
                  : weights_of(local_, masters_.tree, &copies_.tree);
  const int64_t E = config_.n_routed_experts, D = config_.hidden_size;
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    Tensor gate, bias, dgate;
    gates_.push_back(ctx.memory.take_tensor(DType::kF32, {E, D}, &gate));
    gates_.push_back(ctx.memory.take_tensor(DType::kF32, {E}, &bias));
    gates_.push_back(ctx.memory.take_tensor(DType::kF32, {E, D}, &dgate));
    Block wide;
    ops::cast(ctx, random_rows(ctx, "gate", {E, D}, 0.02, &wide), gate);
    ops::fill(ctx, 0.0, bias);
    ops::fill(ctx, 0.0, dgate);
    weights_.layers[l].moe.gate.weight = gate;
    weights_.layers[l].moe.gate.bias = bias;
    grads_tree_.layers[l].moe.gate.weight = dgate;
  }
}

// Random values take the host a while: all layers have those of one.
void RankLayers::init_alike(Context& ctx) {
  Config one = local_;
  one.num_hidden_layers = 1;
  ParamStore first(ctx, one, DType::kF32, ParamStore::Extent::kAll);
  init_params(ctx, one, 1, first.tree);
  for (const auto& layer : masters_.tree.layers) {
    ModelParams<Tensor> to = masters_.tree;
    to.layers = {layer};
    for_each_param(
        one, [&](const ParamInfo&, Tensor& from, Tensor& into) { ops::cast(ctx, from, into); },
        first.tree, to);
  }
}

int64_t RankLayers::pages(int64_t tokens) const {
  return config_.num_hidden_layers *
         experts::max_pages(local_, tokens * config_.num_experts_per_tok);
}

Tensor random_rows(Context& ctx, const char* name, const Shape& shape, double size, Block* memory) {
  Tensor t;
  *memory = ctx.memory.take_tensor(DType::kBF16, shape, &t);
  const Rng rng(5, stream_id(name));
  std::vector<bf16> values;
  for (int64_t i = 0; i < shape.num_elements(); ++i)
    values.push_back(to_bf16(static_cast<float>(size * rng.normal(static_cast<uint64_t>(i)))));
  upload(ctx, values, t);
  return t;
}

Batch one_sequence(Context& ctx, const Config& c, int64_t tokens) {
  Sequence s;
  s.ids.assign(static_cast<size_t>(tokens), 1);
  s.targets = s.ids;
  return make_batch(ctx, c, {s}, 0, DType::kBF16);
}

std::vector<Sequence> random_sequences(const Rng& rng, int64_t count, int64_t length,
                                       int64_t vocab_size) {
  std::vector<Sequence> sequences(static_cast<size_t>(count));
  uint64_t drawn = 0;
  const auto next = [&] {
    return static_cast<int32_t>(rng.u64(drawn++) % static_cast<uint64_t>(vocab_size));
  };
  for (Sequence& sequence : sequences)
    for (int64_t t = 0; t < length; ++t) {
      sequence.ids.push_back(next());
      sequence.targets.push_back(next());
    }
  return sequences;
}

Precision precision_of(const std::string& format) {
  HADAL_CHECK(format == "bf16" || format == "fp8", "layers are benched in bf16 or fp8, not in ",
              format);
  return format == "fp8" ? kFp8Recipe : Precision{};
}

}  // namespace hadal::cli
