// The matrix products of a config, one by one.
//
//   M rows   N columns of the result   K inner width
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include "cli/bench.h"
#include "core/panels.h"
#include "ops/copy.h"
#include "ops/gemm.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

struct Case {
  const char* name;
  Shape weight;
};

std::vector<Case> cases_of(const Config& c) {
  const int64_t D = c.hidden_size, H = c.num_attention_heads;
  return {{"wkv_a", {c.latent_dim(), D}},
          {"wo", {D, H * c.v_head_dim}},
          {"w1", {c.intermediate_size, D}},
          {"w2", {D, c.intermediate_size}},
          {"expert w1", {c.moe_intermediate_size, D}},
          {"expert w2", {D, c.moe_intermediate_size}},
          {"head", {c.vocab_size, D}}};
}

}  // namespace

void bench_ops(Context& ctx, const Config& config, const std::string& format, int64_t count,
               const json& row) {
  const DType act = format == "f32" ? DType::kF32 : DType::kBF16;
  for (const Case& one : cases_of(config)) {
    const int64_t N = one.weight[0], K = one.weight[1];
    // Enough copies that caches hold none when its turn comes again.
    std::vector<Block> memory;
    std::vector<Operand> weights;
    double bytes = 0.0;
    while (weights.empty() || (bytes < 128e6 && weights.size() < 64)) {
      weights.push_back(bench_weight(ctx, one.weight, format, memory));
      Operand& w = weights.back();
      if (fits_panels(w)) w = pack_panels(ctx, w, w.data.raw());
      bytes += static_cast<double>(w.data.num_bytes());
      if (!w.scale.empty()) bytes += static_cast<double>(w.scale.num_bytes());
    }
    for (const int64_t M : {1, 8, 64, 512}) {
      Tensor x, y;
      const Block x_memory = ctx.memory.take_tensor(act, {M, K}, &x);
      const Block y_memory = ctx.memory.take_tensor(act, {M, N}, &y);
      ops::fill(ctx, 0.5, x);
      const size_t runs = M >= 64 ? 1 : weights.size();
      size_t next = 0;
      const Sampled s = sample(ctx, count, [&] {
        for (size_t i = 0; i < runs; ++i) ops::gemm_nt(ctx, x, weights[next++ % weights.size()], y);
      });
      const auto each = static_cast<double>(runs);
      json result = row;
      result.update({{"bench", "ops"},
                     {"op", "gemm_nt"},
                     {"case", one.name},
                     {"format", format},
                     {"shape", {M, N, K}}});
      result.update(s.to_json({.flops = each * 2.0 * static_cast<double>(M * N * K),
                               .bytes = each * bytes / static_cast<double>(weights.size()),
                               .is_int = format.starts_with("int")}));
      fmt::print("{}\n", result.dump());
    }
  }
}

}  // namespace hadal::cli
