// One MoE layer of DeepSeek-V3 on a rank that holds a few of its experts: forward, and the two
// halves of its backward pass.
//
// The gate chooses among all experts, but choice k of a token goes to local expert k mod L, so that
// the L local experts get the same number of rows, as many as a balanced rank of an expert-parallel
// group receives. Nothing is sent: rows are grouped, multiplied and summed here.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include "cli/bench.h"
#include "core/rng.h"
#include "core/timer.h"
#include "core/transfer.h"
#include "model/batch.h"
#include "model/block.h"
#include "model/bytes.h"
#include "model/fp8_weights.h"
#include "model/param_store.h"
#include "ops/copy.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

constexpr int64_t kLocalExperts = 4;  // of a rank of 64

// Sends choice k to local expert k mod kLocalExperts.
class BalancedExchange final : public Exchange {
 public:
  BalancedExchange(Context& ctx, RowPool& pool, int64_t tokens, int64_t choices)
      : local_(pool, kLocalExperts) {
    memory_ = ctx.memory.take_tensor(DType::kI32, {tokens, choices}, &idx_);
    std::vector<int32_t> idx;
    for (int64_t i = 0; i < tokens * choices; ++i)
      idx.push_back(static_cast<int32_t>(i % choices % kLocalExperts));
    upload(ctx, idx, idx_);
  }
  Ticket dispatch_start(Context& ctx, In x, In, In topk_weight, RowLease* rows) override {
    return local_.dispatch_start(ctx, x, idx_, topk_weight, rows);
  }
  void dispatch_finish(Context& ctx, Ticket& t) override { local_.dispatch_finish(ctx, t); }
  void combine_start(Context& ctx, Ticket& t, const ops::PagedRows& rows) override {
    local_.combine_start(ctx, t, rows);
  }
  void combine_finish(Context& ctx, Ticket& t, const ops::PagedRows& rows, Out y) override {
    local_.combine_finish(ctx, t, rows, y);
  }
  void combine_backward_start(Context& ctx, Ticket& t, In dy, const ops::PagedRows& rows) override {
    local_.combine_backward_start(ctx, t, dy, rows);
  }
  void combine_backward_finish(Context& ctx, Ticket& t) override {
    local_.combine_backward_finish(ctx, t);
  }
  void dispatch_backward_start(Context& ctx, Ticket& t, const ops::PagedRows& rows,
                               In drow_weight) override {
    local_.dispatch_backward_start(ctx, t, rows, drow_weight);
  }
  void dispatch_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& rows, In drow_weight,
                                Out dx, Out dtopk_weight) override {
    local_.dispatch_backward_finish(ctx, t, rows, drow_weight, dx, dtopk_weight);
  }

 private:
  LocalExchange local_;
  Block memory_;
  Tensor idx_;
};

// The layer's parameters as a model of one layer that has the local experts alone.
Config local_config(const Config& c) {
  Config local = c;
  local.n_routed_experts = local.num_experts_per_tok = kLocalExperts;
  local.n_group = local.topk_group = 1;
  local.num_hidden_layers = 1;
  local.first_k_dense_replace = local.num_nextn_predict_layers = 0;
  local.vocab_size = 64;
  return local;
}

// Standard normal bf16.
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

}  // namespace

void bench_layer(Context& ctx, Config c, const Precision& precision, int64_t tokens, int64_t count,
                 json row) {
  HADAL_CHECK(c.n_routed_experts >= kLocalExperts && c.num_experts_per_tok % kLocalExperts == 0,
              "bench layer: ", c.num_experts_per_tok, " choices cannot be shared by ",
              kLocalExperts, " experts evenly");
  c.precision = precision;
  const Config local = local_config(c);
  ParamStore masters(ctx, local, DType::kF32, ParamStore::Extent::kAll);
  ParamStore grads(ctx, local, DType::kF32, ParamStore::Extent::kTrained);
  ParamStore copies(ctx, local, DType::kBF16, ParamStore::Extent::kMatrices);
  init_params(ctx, local, 1, masters.tree);
  ops::cast(ctx, masters.matrices(), copies.matrices());
  std::unique_ptr<Fp8Weights> fp8;
  if (precision.fp8) {
    fp8 = std::make_unique<Fp8Weights>(ctx, local, masters.tree);
    fp8->quantise(ctx, masters.tree);
  }
  Weights weights = fp8 ? fp8->weights_of(masters.tree, &copies.tree)
                        : weights_of(local, masters.tree, &copies.tree);
  block::Params<Operand> w = weights.layers[0];
  block::Params<Tensor> dw = grads.tree.layers[0];
  const int64_t E = c.n_routed_experts, D = c.hidden_size, T = tokens;
  Tensor gate, bias, dgate;
  const Block gate_memory = ctx.memory.take_tensor(DType::kF32, {E, D}, &gate);
  const Block bias_memory = ctx.memory.take_tensor(DType::kF32, {E}, &bias);
  const Block dgate_memory = ctx.memory.take_tensor(DType::kF32, {E, D}, &dgate);
  Block wide_memory, x_memory, dy_memory;
  ops::cast(ctx, random_rows(ctx, "gate", {E, D}, 0.02, &wide_memory), gate);
  ops::fill(ctx, 0.0, bias);
  ops::fill(ctx, 0.0, dgate);
  w.moe.gate.weight = gate;
  w.moe.gate.bias = bias;
  dw.moe.gate.weight = dgate;

  RowPool pool(ctx, c, DType::kBF16, experts::max_pages(local, T * c.num_experts_per_tok));
  BalancedExchange exchange(ctx, pool, T, c.num_experts_per_tok);
  const block::Layer layer{c, w, exchange, true};
  const Batch batch = one_sequence(ctx, c, T);
  const Tensor x = random_rows(ctx, "x", {T, D}, 1.0, &x_memory);
  const Tensor dy = random_rows(ctx, "dy", {T, D}, 1e-4, &dy_memory);
  Tensor y, dx;
  const Block y_memory = ctx.memory.take_tensor(DType::kBF16, {T, D}, &y);
  const Block dx_memory = ctx.memory.take_tensor(DType::kBF16, {T, D}, &dx);
  std::vector<double> forward, input, weight;
  const auto timed = [&](std::vector<double>& times, const auto& fn) {
    device::synchronize(ctx.device, ctx.stream);
    const Timer timer;
    fn();
    device::synchronize(ctx.device, ctx.stream);
    times.push_back(timer.seconds());
  };
  for (int64_t i = 0; i < count + 2; ++i) {
    block::Saved saved;
    block::Deferred deferred;
    timed(forward, [&] { saved = block::forward(ctx, layer, batch.seq, x, y); });
    timed(input,
          [&] { deferred = block::backward_input(ctx, layer, std::move(saved), 1e-4, dy, dx); });
    timed(weight, [&] { block::backward_weight(ctx, std::move(deferred), dw); });
    if (i < 2) {  // to warm up
      forward.clear();
      input.clear();
      weight.clear();
    }
  }
  row.update({{"bench", "layer"},
              {"products", precision.fp8 ? "fp8" : "bf16"},
              {"tokens", T},
              {"expert_rows", T * c.num_experts_per_tok},
              {"local_experts", kLocalExperts},
              {"forward_ms", 1e3 * quantile(forward, 0.5)},
              {"backward_input_ms", 1e3 * quantile(input, 0.5)},
              {"backward_weight_ms", 1e3 * quantile(weight, 0.5)}});
  fmt::print("{}\n", row.dump());
}

}  // namespace hadal::cli
