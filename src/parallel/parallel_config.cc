// ParallelConfig: stages and checks.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/parallel_config.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"
#include "model/bytes.h"

namespace hadal {

const char* exchange_name(ExchangeKind kind) {
  return kind == ExchangeKind::kWindows ? "windows" : "messages";
}

ExchangeKind parse_exchange(const std::string& name) {
  for (const ExchangeKind kind : {ExchangeKind::kMessages, ExchangeKind::kWindows})
    if (name == exchange_name(kind)) return kind;
  HADAL_FAIL("there is no exchange ", name, "; choose one of: messages, windows");
}

ScheduleShape schedule_shape(const ParallelConfig& p, int64_t num_microbatches) {
  return {.kind = p.schedule,
          .num_ranks = p.mesh.pp,
          .num_microbatches = static_cast<int>(num_microbatches),
          .stages_per_rank = p.stages_per_rank};
}

int num_stages(const ParallelConfig& p) {
  // Both directions of DualPipe go through the same stages.
  return p.schedule == ScheduleKind::kDualPipe ? p.mesh.pp
                                               : p.mesh.pp * stages_per_rank(schedule_shape(p, 1));
}

std::vector<StageRange> stage_ranges(const ParallelConfig& p, const Config& model) {
  const int S = num_stages(p);
  if (p.layers.empty()) return split_stages(model, S, {});
  const int64_t total = std::accumulate(p.layers.begin(), p.layers.end(), int64_t{0});
  HADAL_CHECK(static_cast<int>(p.layers.size()) == S, "parallel.layers has ", p.layers.size(),
              " numbers for ", S, " stages");
  HADAL_CHECK(total == model.num_hidden_layers, "parallel.layers add up to ", total,
              ", and the model has ", model.num_hidden_layers, " layers");
  std::vector<StageRange> ranges;
  int64_t first = 0;
  for (const int64_t n : p.layers) {
    HADAL_CHECK(n >= 1, "parallel.layers gives a stage ", n, " layers; it needs at least 1");
    ranges.push_back({.first_layer = first, .num_layers = n});
    first += n;
  }
  ranges.front().has_embed = true;
  ranges.back().has_head = true;
  ranges.back().num_mtp = model.num_nextn_predict_layers;
  return ranges;
}

std::vector<int> holders_of(const ParallelConfig& p, int stage) {
  Schedule s;
  s.kind = p.schedule;
  s.num_ranks = p.mesh.pp;
  s.num_stages = num_stages(p);
  std::vector<int> ranks;
  for (int d = 0; d < s.num_directions(); ++d) ranks.push_back(s.rank_of(d, stage));
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

std::vector<LocalStage> stages_of(const ParallelConfig& p, const Config& model, int pp) {
  const std::vector<StageRange> ranges = stage_ranges(p, model);
  std::vector<LocalStage> stages;
  for (int s = 0; s < static_cast<int>(ranges.size()); ++s) {
    const std::vector<int> ranks = holders_of(p, s);
    if (std::find(ranks.begin(), ranks.end(), pp) != ranks.end())
      stages.push_back({.stage = s, .range = ranges[static_cast<size_t>(s)]});
  }
  return stages;
}

bool contains(const StageRange& range, const ParamInfo& info, const Config& model) {
  if (info.layer >= model.num_hidden_layers) return range.num_mtp > 0;
  if (info.layer >= 0)
    return info.layer >= range.first_layer && info.layer < range.first_layer + range.num_layers;
  if (info.name == "embed")
    return range.has_embed || range.num_mtp > 0 || (range.has_head && model.tie_word_embeddings);
  return range.has_head;  // norm, head
}

bool limits_rows(const ParallelConfig& p) { return p.mesh.ep > 1 && p.row_capacity > 0.0; }

int64_t row_pool_pages(const ParallelConfig& p, const Config& c, int pp, int64_t max_tokens,
                       int64_t num_microbatches) {
  int64_t layers = 0;  // of the stage with most of them
  for (const LocalStage& s : stages_of(p, c, pp)) {
    int64_t of_stage = s.range.num_mtp;
    for (int64_t l = 0; l < s.range.num_layers; ++l)
      of_stage += c.is_moe_layer(s.range.first_layer + l) ? 1 : 0;
    layers = std::max(layers, of_stage);
  }
  const int64_t ep = p.mesh.ep, local = c.n_routed_experts / ep;
  max_tokens = (max_tokens + p.mesh.tp - 1) / p.mesh.tp;  // those of this rank
  const int64_t most =
      ep * max_tokens * std::min(c.num_experts_per_tok, std::max<int64_t>(1, local));
  const double share = static_cast<double>(max_tokens * c.num_experts_per_tok);
  const int64_t rows = limits_rows(p)
                           ? std::min(most, static_cast<int64_t>(std::ceil(p.row_capacity * share)))
                           : most;
  const int64_t of_layer =
      ep == 1 ? experts::max_pages(c, max_tokens) : experts::max_pages(rows, local);
  const int live =
      live_chunks(make_schedule(schedule_shape(p, num_microbatches)), pp).with_deferred;
  return std::max<int64_t>(1, live * layers * of_layer);
}

void check_parallel(const ParallelConfig& p, const Config& model, int64_t batch_sequences,
                    int64_t micro_batch_sequences) {
  const Mesh& m = p.mesh;
  // DualPipe's stages are held twice, but there are only pp of them.
  check_mesh(m, {.num_ranks = m.num_ranks(),
                 .num_layers = model.num_hidden_layers,
                 .num_experts = model.n_routed_experts,
                 .num_heads = model.num_attention_heads,
                 .dense_width = model.first_k_dense_replace > 0 ? model.intermediate_size : 0,
                 .num_stages_per_rank = num_stages(p) / m.pp,
                 .batch_sequences = batch_sequences});
  HADAL_CHECK(m.ep == 1 || model.num_moe_layers() > 0, "mesh: ep is ", m.ep,
              ", but the model has no routed experts; set it to 1");
  HADAL_CHECK(p.ranks_per_node % m.tp == 0, "mesh: tp = ", m.tp,
              " does not divide parallel.ranks_per_node = ", p.ranks_per_node,
              ": a tensor group stays within a node");
  const int per_node = p.ranks_per_node / m.tp;  // of an expert group and its copies
  HADAL_CHECK(per_node == 0 || per_node % m.ep == 0 || m.ep % per_node == 0,
              "parallel.ranks_per_node = ", p.ranks_per_node, " and ep * tp = ", m.ep * m.tp,
              ": one has to divide the other, so that nodes have the same share of the experts");
  const int64_t of_rank = batch_sequences / m.dp;
  check_schedule(schedule_shape(p, (of_rank + micro_batch_sequences - 1) / micro_batch_sequences));
  stage_ranges(p, model);
}

}  // namespace hadal
