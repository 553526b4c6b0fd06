// One MoE layer of DeepSeek-V3 on a rank that holds a few of its experts: forward, and the two
// halves of its backward pass.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include "cli/bench.h"
#include "cli/bench_rank.h"
#include "core/timer.h"
#include "model/block.h"

namespace hadal::cli {

using nlohmann::json;

void bench_layer(Context& ctx, const Config& c, const Precision& precision, int64_t tokens,
                 int64_t count, json row) {
  RankLayers rank(ctx, c, precision, 1);
  const int64_t D = c.hidden_size, T = tokens;
  RowPool pool(ctx, rank.config(), DType::kBF16, rank.pages(T));
  BalancedExchange exchange(ctx, pool, T, c.num_experts_per_tok);
  const block::Layer layer{rank.config(), rank.weights().layers[0], exchange, true};
  const Batch batch = one_sequence(ctx, rank.config(), T);
  Block x_memory, dy_memory;
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
    timed(weight,
          [&] { block::backward_weight(ctx, std::move(deferred), rank.grads().layers[0]); });
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
