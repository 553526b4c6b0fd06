// Blocks of a training step, and the moment that needs most of them.
// SPDX-License-Identifier: Apache-2.0
#include "plan/runtime_memory.h"

#include <algorithm>
#include <cmath>

#include "model/bytes.h"
#include "plan/chunk.h"
#include "plan/runtime_mesh.h"

namespace hadal::plan {
namespace {

constexpr DType kStat = DType::kF32;
constexpr int64_t kPageRows = 128;

class Blocks {
 public:
  explicit Blocks(const TrainPlan& p)
      : plan(p),
        c(p.model),
        S(p.micro_batch_sequences),
        T(p.micro_batch_tokens()),
        D(c.hidden_size),
        ep(p.mesh.ep),
        local(c.n_routed_experts / p.mesh.ep),
        act(activation_dtype(p.recipe)) {}

  static double block(size_t bytes) { return static_cast<double>(block_bytes(bytes)); }
  double tensor(const Shape& shape) const { return block(tensor_bytes(act, shape)); }

  double row_pool(int pp) const {
    const int64_t pages = row_pool_pages(parallel_of(plan), c, pp, T, plan.num_microbatches());
    return block(static_cast<size_t>(pages) * experts::page_bytes(c, act) +
                 tensor_bytes(DType::kI32, {pages}) + tensor_bytes(DType::kI32, {1}));
  }

  // Rows of experts on this rank, in pages: all that can be of one rank, or, spread over ranks,
  // those of tokens that pick evenly (a normal distribution of the rows of each expert).
  int64_t row_pages(int64_t tokens) const {
    if (ep == 1) return experts::max_pages(c, tokens);
    const double n = static_cast<double>(ep * tokens);
    const double p =
        static_cast<double>(c.num_experts_per_tok) / static_cast<double>(c.n_routed_experts);
    const double mean = n * p * plan.row_imbalance, width = std::sqrt(2.0 * n * p * (1.0 - p));
    double pages = 0.0;  // of an expert: the chance of each
    for (double below = 0.0; below < n; below += kPageRows)
      pages += 0.5 * std::erfc((below + 0.5 - mean) / width);
    return std::max<int64_t>(1, std::llround(pages * static_cast<double>(local)));
  }
  // Tokens that come from, and go to, the ranks of the group, this one included.
  int64_t moved(int64_t tokens) const {
    return std::llround(static_cast<double>(tokens) * plan.row_imbalance *
                        destinations_per_token(c, static_cast<int>(ep)));
  }
  // parallel/expert_hop.h: RowBuffer.
  static double row_buffer(DType dtype, int64_t rows, int64_t width) {
    const int64_t pages = std::max<int64_t>(1, (rows + kPageRows - 1) / kPageRows);
    return block(tensor_bytes(dtype, {pages, kPageRows, width}));
  }
  // What an exchange keeps until its backward: the ticket, and the route of a hop.
  double ticket(int64_t tokens) const {
    if (ep == 1) return block(experts::saved_bytes(c, tokens, act));
    const int64_t R = moved(tokens), K = c.num_experts_per_tok;
    const int64_t most = std::max<int64_t>(1, experts::max_pages(R * std::min(K, local), local));
    return block(ByteCount()
                     .add(DType::kI32, {local})
                     .add(DType::kI32, {local + 1})
                     .add(DType::kI32, {most})
                     .add(DType::kI32, {R, K})
                     .add(kStat, {most * kPageRows})
                     .total()) +
           block(ByteCount()
                     .add(DType::kI32, {tokens, std::min(K, ep)})
                     .add(DType::kI32, {tokens, K})
                     .total());
  }
  // What a trip back takes while it is under way: sums that leave and sums that came.
  double trip(int64_t tokens) const {
    const int64_t R = moved(tokens), K = c.num_experts_per_tok;
    return ep == 1 ? 0.0 : 2.0 * (row_buffer(act, R, D) + row_buffer(kStat, R, K));
  }

  // A layer between forward and backward, without its pages.
  double saved(bool is_moe, int64_t tokens) const {
    double sum =
        block(ByteCount().add(act, {tokens, D}).add(kStat, {tokens}).add(kStat, {tokens}).total()) +
        block(mla::saved_bytes(c, tokens, act));
    if (!is_moe) return sum + block(mlp::saved_bytes(c.intermediate_size, tokens, act));
    sum += block(gate::saved_bytes(c, tokens, S, act)) + ticket(tokens);
    if (c.n_shared_experts > 0)
      sum += block(mlp::saved_bytes(c.shared_intermediate_size(), tokens, act));
    return sum;
  }

  // When the gradients of the MLP's weights are made: before attention's backward
  // (block::backward), or behind all of the layer's, as in an MTP module.
  enum class MlpWeights { kBeforeAttention, kLast };

  // What its backward takes beyond that, at most: while the MLP or the experts run, or while
  // attention does, when what the MLP had saved is gone.
  double backward(bool is_moe, int64_t tokens, MlpWeights when) const {
    const int64_t F = is_moe ? c.moe_intermediate_size : c.intermediate_size;
    const double kept = block(ByteCount()
                                  .add(act, {tokens, D})
                                  .add(act, {tokens, D})
                                  .add(act, {tokens, D})
                                  .add(act, {tokens, D})
                                  .add(kStat, {D})
                                  .add(kStat, {D})
                                  .total());
    const auto at_attention = [&](double deferred) {
      return when == MlpWeights::kLast ? deferred : 0.0;
    };
    if (!is_moe) {
      const double deferred = block(mlp::deferred_bytes(F, tokens, act));
      return kept + std::max(deferred + tensor({tokens, F}) + panels(tokens, F),
                             at_attention(deferred) + attention(tokens) -
                                 block(mlp::saved_bytes(F, tokens, act)));
    }
    const int64_t pages = row_pages(tokens);
    ByteCount rows;
    rows.add(act, {pages, kPageRows, D}).add(kStat, {pages * kPageRows});
    double deferred = block(ByteCount()
                                .add(act, {pages, kPageRows, D})
                                .add(act, {pages, kPageRows, F})
                                .add(act, {pages, kPageRows, 2 * F})
                                .total());
    double shared_saved = 0.0;
    if (const int64_t shared = c.shared_intermediate_size(); shared > 0) {
      rows.add(act, {tokens, D});
      deferred += block(mlp::deferred_bytes(shared, tokens, act));
      shared_saved = block(mlp::saved_bytes(shared, tokens, act));
    }
    const double while_experts =
        deferred + block(rows.total()) +
        std::max(tensor({pages, kPageRows, F}) + panels(tokens * c.num_experts_per_tok, D),
                 trip(tokens));
    const double while_attention = at_attention(deferred) +
                                   block(gate::deferred_bytes(c, tokens, act)) -
                                   block(gate::saved_bytes(c, tokens, S, act)) + attention(tokens);
    return kept - shared_saved + std::max(while_experts, while_attention);
  }

  // A product on the CPU puts its rows into panels first (ops/cpu/product.cc).
  double panels(int64_t rows, int64_t width) const {
    return act == kStat ? tensor({rows, width}) : 0.0;
  }

  // mla::backward_input, and its input's gradient; the last product is the widest.
  double attention(int64_t tokens) const {
    const int64_t H = c.num_attention_heads, Dkv = c.qk_nope_head_dim + c.v_head_dim;
    return tensor({tokens, D}) + block(mla::deferred_bytes(c, tokens, act)) +
           block(ByteCount()
                     .add(act, {tokens, H, c.qk_head_dim()})
                     .add(act, {tokens, H, Dkv})
                     .add(act, {tokens, c.qk_rope_head_dim})
                     .total()) +
           tensor({tokens, H, c.v_head_dim}) + tensor({tokens, c.qk_rope_head_dim}) +
           tensor({tokens, c.kv_lora_rank}) +
           (c.q_lora_rank > 0 ? tensor({tokens, c.q_lora_rank}) : 0.0) +
           panels(tokens, H * c.qk_head_dim());
  }

  // Between forward and backward of a stage, without the heads' logits.
  double saved_of(const StageRange& r) const {
    ByteCount states;
    for (int64_t l = 0; l <= r.num_layers; ++l) states.add(act, {T, D});
    if (r.has_head) states.add(act, {T, D}).add(kStat, {T});
    double sum = block(states.total());
    for (int64_t l = 0; l < r.num_layers; ++l) sum += saved(c.is_moe_layer(r.first_layer + l), T);
    for (int64_t k = 1; k <= r.num_mtp; ++k) {
      const int64_t Tk = tokens_of(k);
      ByteCount own;
      for (int i = 0; i < 4; ++i) own.add(act, {Tk, D});
      for (int i = 0; i < 3; ++i) own.add(kStat, {Tk});
      sum += block(own.total()) + saved(true, Tk);
    }
    return sum;
  }
  double heads_of(const StageRange& r) const {
    double sum = 0.0;
    for (int64_t k = 0; k <= (r.has_head ? r.num_mtp : -1); ++k)
      sum += block(head::saved_bytes(c, tokens_of(k), act, device_of(plan.recipe)));
    return sum;
  }
  // What backward of a stage takes beside what is saved: gradients of states, then either all
  // logits, or the backward of the first layer that it comes to.
  double backward_of(const StageRange& r) const {
    double layer = 0.0, heads = 0.0;
    if (r.num_mtp > 0) {
      const int64_t Tk = tokens_of(r.num_mtp);
      layer = backward(true, Tk, MlpWeights::kLast) + 3.0 * tensor({Tk, D}) + tensor({Tk, 2 * D}) +
              block(ByteCount()
                        .add(act, {Tk, 2 * D})
                        .add(act, {Tk, D})
                        .add(act, {Tk, D})
                        .add(kStat, {D})
                        .add(kStat, {D})
                        .add(kStat, {D})
                        .total());
    } else {
      layer = backward(c.is_moe_layer(r.first_layer + r.num_layers - 1), T,
                       MlpWeights::kBeforeAttention);
    }
    if (r.has_head) {
      // Logits of a chunk where all of them are not kept, and their gradients where in another
      // type.
      const int64_t chunk = std::min(T, loss_chunk_tokens(c, device_of(plan.recipe)));
      heads = heads_of(r) + panels(chunk, c.vocab_size);
      if (chunk < T) heads += block(tensor_bytes(kStat, {chunk, c.vocab_size}));
      if (act != kStat) heads += tensor({chunk, c.vocab_size});
    }
    return 2.0 * tensor({T, D}) + std::max(heads, layer);
  }

  const TrainPlan& plan;
  const Config& c;
  const int64_t S, T, D, ep, local;
  const DType act;

 private:
  int64_t tokens_of(int64_t depth) const { return std::max<int64_t>(0, T - depth * S); }
};

// Walks the program of a pipeline rank and keeps the backward with the most bytes.
void activations_of(const Blocks& b, const std::vector<LocalStage>& stages,
                    const std::vector<ScheduleStep>& steps, RankMemory& m) {
  const auto range_of = [&](const Chunk& chunk) {
    for (const LocalStage& s : stages)
      if (s.stage == chunk.stage) return s.range;
    HADAL_UNREACHABLE("a rank runs a stage that it does not hold");
  };
  const double state = b.tensor({b.T, b.D});
  double live = 0.0;
  for (const ScheduleStep& step : steps) {
    if (step.has_forward()) {
      const StageRange r = range_of(step.forward);
      live += b.saved_of(r) + b.heads_of(r);
    }
    if (!step.has_backward()) continue;
    const StageRange r = range_of(step.backward);
    const double others = live - b.heads_of(r), work = b.backward_of(r);
    // The gradients that came from the stage after, and that go to the one before.
    const double messages = (r.has_head ? 0.0 : state) + (r.has_embed ? 0.0 : state);
    if (others + work + messages > m.activations + m.workspace + m.communication) {
      m.activations = others;
      m.workspace = work;
      m.communication = messages;
    }
    live -= b.saved_of(r) + b.heads_of(r);
  }
}

RankMemory memory_of(const TrainPlan& p, const Blocks& b, const Schedule& schedule, int pp) {
  const RankShare share = share_of(p, pp);
  const ParamSizes n = param_sizes(p.model, share);
  const auto flat = [](DType dtype, int64_t elements) {
    return Blocks::block(tensor_bytes(dtype, {elements}));
  };
  const int64_t shares[] = {n.experts() / share.experts.ways, n.dense() / share.dense.ways};
  RankMemory m;
  if (b.act != kStat) m.weights = flat(b.act, n.matrices());
  m.masters = flat(kStat, n.all());
  m.gradients = flat(kStat, n.trained());
  m.moments = 2.0 * flat(kStat, shares[0] + shares[1]);
  activations_of(b, stages_of(parallel_of(p), p.model, pp), schedule.steps[static_cast<size_t>(pp)],
                 m);
  // A reduce-scatter takes the others' parts of this rank's share, when all else is gone.
  const double room = std::max(flat(kStat, shares[0] * (share.experts.ways - 1)),
                               flat(kStat, shares[1] * (share.dense.ways - 1)));
  if (room > m.activations + m.workspace + m.communication) {
    m.activations = m.workspace = 0.0;
    m.communication = room;
  }
  m.activations += b.row_pool(pp);
  return m;
}

}  // namespace

std::vector<RankMemory> runtime_memory(const TrainPlan& p) {
  const Blocks b(p);
  const Schedule schedule = make_schedule(p.schedule_shape());
  std::vector<RankMemory> ranks;
  for (int pp = 0; pp < p.mesh.pp; ++pp) ranks.push_back(memory_of(p, b, schedule, pp));
  return ranks;
}

}  // namespace hadal::plan
