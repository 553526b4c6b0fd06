// hadal info: parameters, cache size and memory of a model, from its config alone.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "cli/model_config.h"
#include "cli/options.h"
#include "core/check.h"
#include "model/bytes.h"

namespace hadal::cli {
namespace {

struct Options {
  std::string model, config;
  int64_t tokens = 4096;
  bool json = false;
};

// What training one micro-batch keeps, all layers saved at once.
struct TrainingPlan {
  size_t saved = 0, deferred = 0;  // deferred: of the largest layer
};

TrainingPlan plan(const Config& c, int64_t T, DType act) {
  TrainingPlan p;
  const auto add = [&](bool is_moe) {
    p.saved += block::saved_bytes(c, T, 1, is_moe, act) + tensor_bytes(act, {T, c.hidden_size});
    p.deferred = std::max(p.deferred, block::deferred_bytes(c, T, is_moe, act));
  };
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) add(c.is_moe_layer(l));
  for (int64_t k = 0; k < c.num_nextn_predict_layers; ++k) add(true);
  const DeviceKind device = act == DType::kBF16 ? DeviceKind::kCuda : DeviceKind::kCpu;
  p.saved +=
      static_cast<size_t>(1 + c.num_nextn_predict_layers) * head::saved_bytes(c, T, act, device);
  return p;
}

std::string billions(int64_t n) {
  if (n >= 1000000000) return fmt::format("{:.2f}B", static_cast<double>(n) / 1e9);
  return fmt::format("{:.3f}M", static_cast<double>(n) / 1e6);
}

std::string gib(double bytes) {
  return bytes >= 1e9 ? fmt::format("{:.2f} GiB", bytes / 1073741824.0)
                      : fmt::format("{:.2f} MiB", bytes / 1048576.0);
}

void run(const Options& o) {
  HADAL_CHECK(o.model.empty() != o.config.empty(), "give either --model DIR or --config FILE");
  HADAL_CHECK(o.tokens > 0 && o.tokens <= (int64_t{1} << 24), "--tokens is ", o.tokens,
              "; allowed: 1 to ", int64_t{1} << 24);
  const Config c =
      read_model_config(o.config.empty() ? resolve_model(o.model) + "/config.json" : o.config);
  const ParamCounts n = count_params(c);
  const int64_t cache = cache_bytes_per_token(c, DType::kBF16, CacheFormat::kCompute, 0);
  const int64_t fp8_cache = cache_bytes_per_token(c, DType::kBF16, CacheFormat::kFp8, 0);
  const TrainingPlan p = plan(c, o.tokens, DType::kBF16);
  const int64_t all = n.main + n.mtp;
  if (o.json) {
    const nlohmann::json root = {
        {"parameters", n.main},        {"mtp_parameters", n.mtp},
        {"activated", n.activated},    {"activated_head_only", n.activated_head_only},
        {"kv_bytes_per_token", cache}, {"kv_bytes_per_token_fp8", fp8_cache},
        {"tokens", o.tokens},          {"saved_bytes", p.saved},
        {"deferred_bytes", p.deferred}};
    fmt::print("{}\n", root.dump(2));
    return;
  }
  fmt::print("parameters            {} without MTP\n", billions(n.main));
  for (int64_t k = 0; k < c.num_nextn_predict_layers; ++k)
    fmt::print("MTP module {}          {}, embedding and head shared\n", k + 1,
               billions(n.mtp / c.num_nextn_predict_layers));
  fmt::print("activated per token   {} with embedding and head, {} with the head only\n",
             billions(n.activated), billions(n.activated_head_only));
  fmt::print("KV cache              {} bytes per token in bf16, {} in FP8 ({} layers of {} + {})\n",
             cache, fp8_cache, c.num_hidden_layers, c.kv_lora_rank, c.qk_rope_head_dim);
  fmt::print("weights               {} in bf16, {} in f32\n", gib(2.0 * static_cast<double>(all)),
             gib(4.0 * static_cast<double>(all)));
  fmt::print("training state        {} (f32 masters, gradients and moments)\n",
             gib(16.0 * static_cast<double>(all)));
  fmt::print(
      "activations, bf16     {} saved for {} tokens on one rank, {} deferred by its largest "
      "layer\n",
      gib(static_cast<double>(p.saved)), o.tokens, gib(static_cast<double>(p.deferred)));
}

}  // namespace

void add_info_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("info", "parameters, cache and memory of a model");
  command->add_option("--model", o->model, "checkpoint directory");
  command->add_option("--config", o->config, "config.json, or a run config");
  command->add_option("--tokens", o->tokens, "tokens of a micro-batch in the memory plan")
      ->capture_default_str();
  command->add_flag("--json", o->json, "print JSON");
  command->footer("Example: hadal info --config configs/deepseek_v3.json");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
