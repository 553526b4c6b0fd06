// The sums of a memory plan.
// SPDX-License-Identifier: Apache-2.0
#include "cli/memory_plan.h"

#include <fmt/core.h>

#include <algorithm>
#include <fstream>

#include "core/check.h"
#include "core/device_memory.h"
#include "io/panels.h"
#include "model/bytes.h"

namespace hadal::cli {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

// Bytes that the machine can still give.
int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string name; file >> name;) {
    int64_t kilobytes = 0;
    if (name == "MemAvailable:" && file >> kilobytes) return kilobytes << 10;
    file.ignore(1000, '\n');
  }
  return INT64_MAX;  // unknown
}

// The first rank; the others have as much.
Share rank_of(const PlanInput& p) {
  return {.ways = static_cast<int>(p.options.ranks), .index = 0};
}

bool splits_sequences(const PlanInput& p) {
  return p.options.ranks > 1 && p.options.attention == AttentionSplit::kSequences;
}

double weight_bytes(const PlanInput& p) {
  const bool keeps = p.model.format == io::WeightFormat::kKeep;
  const bool is_mapped = p.options.machine.device == "cpu" && keeps;
  const RankShare share = decode_share(p.model.config(), rank_of(p), p.options.attention);
  double bytes = 0.0;
  for (const io::HfParam& param : p.model.checkpoint->params) {
    if (!share.holds(param.info)) continue;
    const Shape part = decode_shape(param.info, share);
    const auto count = static_cast<double>(part.num_elements());
    const auto whole = static_cast<double>(param.info.shape.num_elements());
    if (is_mapped) {
      // Some columns of a matrix are no piece of the file.
      const bool is_piece = part[part.rank - 1] == param.info.shape[part.rank - 1];
      if (io::goes_into_panels(param) || !is_piece)
        bytes += static_cast<double>(param.data->bytes) * count / whole;
      continue;
    }
    double size = static_cast<double>(io::stored_type_size(param.data->type));
    if (!keeps) size = p.model.format == io::WeightFormat::kF32 ? 4.0 : 2.0;
    bytes += count * size;
    if (param.scale != nullptr) bytes += count * 4.0 / (kScaleBlock * kScaleBlock);
  }
  return bytes;
}

double step_bytes(const PlanInput& p, int64_t num_tokens) {
  const int ranks = rank_of(p).ways;
  const Config part = split_config(p.model.config(), ranks);
  const Config& c = splits_sequences(p) ? p.model.config() : part;
  // Of which this rank has its part of the widths and its experts.
  const int64_t mlp_tokens = splits_sequences(p) ? num_tokens * ranks : num_tokens;
  const int64_t local_experts = decode_experts(p.model.config(), rank_of(p)).count;
  const auto T = static_cast<double>(num_tokens);
  const auto size = static_cast<double>(dtype_size(p.model.act));
  const auto H = static_cast<double>(c.num_attention_heads);
  const double attention =
      static_cast<double>(c.hidden_size * 4 + c.q_lora_rank * 2 + c.latent_dim()) +
      H * static_cast<double>(c.qk_nope_head_dim + c.qk_rope_head_dim + c.latent_dim() +
                              c.kv_lora_rank + c.v_head_dim);
  const double mlp = 3.0 * static_cast<double>(std::max(part.intermediate_size,
                                                        c.shared_intermediate_size() / ranks));
  // Rows of experts are in pages; x and gate|up of them live in the decoder's own pool.
  const int64_t choices = mlp_tokens * std::min(c.num_experts_per_tok, local_experts);
  const auto rows =
      static_cast<double>(experts::max_pages(choices, local_experts) * ops::kPageRows);
  const double moe = rows * static_cast<double>(2 * c.hidden_size + 3 * c.moe_intermediate_size);
  // Its part of a sum, and the others'; where sequences are split, also the rows of all ranks that
  // the MLP reads, and what its two halves make of them.
  const double sums =
      ranks > 1 ? (splits_sequences(p) ? 5.0 : 2.0) * static_cast<double>(c.hidden_size) : 0.0;
  const auto mlp_T = static_cast<double>(mlp_tokens);
  double bytes = (T * attention + mlp_T * (mlp + sums) + moe) * size;
  if (p.options.machine.device == "cuda") {
    // Long contexts are attended to in splits of 16 pages or more, each with a result of its own.
    const double splits = std::clamp(static_cast<double>(p.limits.max_tokens) / 1024.0, 1.0, 256.0);
    bytes += splits * T * H * (static_cast<double>(c.kv_lora_rank) * 2.0 + 4.0);
  }
  return bytes;
}

int64_t num_pages(const Decoder::Limits& limits) {
  if (limits.num_pages > 0) return limits.num_pages;
  return limits.max_seqs *
         ((limits.max_tokens + ops::kCachePageTokens - 1) / ops::kCachePageTokens);
}

}  // namespace

MemoryPlan plan_memory(const PlanInput& p) {
  const Config& c = p.model.config();
  const auto stat = static_cast<double>(dtype_size(stat_dtype(p.model.act)));
  MemoryPlan plan;
  plan.weights = weight_bytes(p);
  plan.cache =
      static_cast<double>(num_pages(p.limits) * ops::kCachePageTokens *
                          cache_bytes_per_token(c, p.model.act, p.limits.cache, p.limits.num_mtp));
  // Parts of the vocabulary are gathered beside.
  const bool gathers = p.options.ranks > 1 && !splits_sequences(p);
  plan.logits = static_cast<double>(p.num_logits * c.vocab_size) * stat * (gathers ? 2.0 : 1.0);
  plan.step =
      step_bytes(p, p.limits.max_step_tokens) + static_cast<double>(p.num_states * c.hidden_size) *
                                                    static_cast<double>(dtype_size(p.model.act));
  if (p.options.machine.device == "cuda") {  // recorded steps have memory of their own
    plan.logits *= 2.0;
    plan.step += step_bytes(p, p.limits.max_seqs) + 64e6;
  }
  return plan;
}

std::string describe(const MemoryPlan& plan, const PlanInput& p) {
  return fmt::format(
      "memory{}: weights {}, cache {:.1f} MiB ({} tokens in pages of {}), logits {:.1f} MiB, "
      "a step of {} tokens at most {:.1f} MiB\n",
      p.options.ranks > 1 ? fmt::format(" of each of {} ranks", p.options.ranks) : "",
      plan.weights > 0 ? fmt::format("{:.1f} MiB", plan.weights / kMiB) : "mapped from the file",
      plan.cache / kMiB, num_pages(p.limits) * ops::kCachePageTokens, ops::kCachePageTokens,
      plan.logits / kMiB, p.limits.max_step_tokens, plan.step / kMiB);
}

void check_fits(const MemoryPlan& plan, const PlanInput& p, Device where) {
  const bool on_cpu = where.kind == DeviceKind::kCpu;
  const int64_t sharing = on_cpu ? p.options.ranks : 1;  // ranks with this memory
  const int64_t needed = static_cast<int64_t>(plan.total()) * sharing;
  const int64_t available =
      on_cpu ? available_memory() : static_cast<int64_t>(device::memory_free(where));
  HADAL_CHECK(
      needed<available, plan.weights> 0 ? "weights, cache and a step" : "the cache and a step",
      sharing > 1 ? concat(" of ", sharing, " ranks") : "", " need ", needed >> 20, " MiB, and ",
      available >> 20,
      " MiB are available; lower --cache-tokens, --max-seqs, --context or --chunk");
}

}  // namespace hadal::cli
