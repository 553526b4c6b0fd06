// The gate and its backward in two halves (notes, section 7).
//
//   T tokens   G rows   D model width   E experts   K choices of a token
// SPDX-License-Identifier: Apache-2.0
#include "model/gate.h"

#include <utility>

#include "model/bytes.h"
#include "ops/copy.h"
#include "ops/gemm.h"

namespace hadal::gate {

ops::GateRule rule(const Config& c) {
  return {.n_group = c.n_group,
          .topk_group = c.topk_group,
          .num_experts_per_tok = c.num_experts_per_tok,
          .scoring = c.scoring_func == ScoringFunc::kSigmoid ? ops::Scoring::kSigmoid
                                                             : ops::Scoring::kSoftmax,
          .group_score = c.topk_method == TopkMethod::kNoauxTc ? ops::GroupScore::kTopTwoSum
                                                               : ops::GroupScore::kMax,
          .norm_topk_prob = c.norm_topk_prob,
          .routed_scaling_factor = c.routed_scaling_factor};
}

namespace {

// Scores and choices. `known` holds the logits, or is empty.
Saved choose(Context& ctx, const Config& c, const Weights& w, const Packed& seq, In x, In known) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  const int64_t E = c.n_routed_experts, K = c.num_experts_per_tok;
  const DType stat = stat_dtype(x.dtype());
  Saved s;
  s.seq = seq.by_rows();
  const int64_t G = s.seq.num_seqs;
  s.memory = ctx.memory.take(saved_bytes(c, T, G, x.dtype()));
  s.scores = s.memory.tensor(stat, {T, E});
  s.topk_idx = s.memory.tensor(DType::kI32, {T, K});
  s.topk_weight = s.memory.tensor(stat, {T, K});
  s.fraction = s.memory.tensor(stat, {G, E});
  s.balance = s.memory.tensor(stat, {G});
  Tensor logits = known;
  Block memory;
  if (logits.empty()) {
    memory = ctx.memory.take_tensor(stat, {T, E}, &logits);
    ops::gemm_nt(ctx, x, w.weight, logits);  // [T, E]
  }
  ops::gate_forward(ctx, rule(c), logits, w.bias.data, s.scores, s.topk_idx, s.topk_weight);
  return s;
}

// dlogits [T, E] += the balance loss's
void balance_backward(Context& ctx, const Config& c, const Saved& s, double scale, Acc dlogits) {
  if (s.group.is_alone())
    return ops::balance_loss_backward(ctx, rule(c), s.seq, scale, s.scores, s.fraction, dlogits);
  Tensor all;
  const Block memory = ctx.memory.take_tensor(s.scores.dtype(), s.all_scores.shape(), &all);
  ops::fill(ctx, 0.0, all);
  ops::balance_loss_backward(ctx, rule(c), s.seq, scale, s.all_scores, s.fraction, all);
  ops::add_acc(ctx, s.group.own(all), dlogits);
}

}  // namespace

Saved forward(Context& ctx, const Config& c, const Weights& w, const Packed& seq, In x,
              const TensorGroup& group) {
  Saved s = choose(ctx, c, w, seq, x, Tensor());
  s.group = group;
  Gathered all = gather(ctx, group, seq.num_tokens, {s.scores});
  s.all_scores = all.rows[0];
  s.all_memory = std::move(all.memory);
  ops::balance_loss_forward(ctx, rule(c), s.seq, s.all_scores, s.balance,
                            s.fraction);  // [G]  [G, E]
  return s;
}

Saved decode(Context& ctx, const Config& c, const Weights& w, In x, In logits) {
  Packed no_rows;  // of the balance loss
  no_rows.num_tokens = x.dim(0);
  return choose(ctx, c, w, no_rows, x, logits);
}

Deferred backward_input(Context& ctx, const Config& c, const Weights& w, Saved&& saved, In x,
                        In dtopk_weight, double balance_scale, Acc dx) {
  const Saved s = std::move(saved);
  const auto [T, D] = HADAL_SHAPE(x, 2);
  Deferred d;
  d.x = x;
  d.memory = ctx.memory.take(deferred_bytes(c, T, x.dtype()));
  d.dlogits = d.memory.tensor(stat_dtype(x.dtype()), {T, c.n_routed_experts});
  ops::gate_backward(ctx, rule(c), s.scores, s.topk_idx, dtopk_weight, d.dlogits);  // [T, E]
  if (balance_scale != 0.0) balance_backward(ctx, c, s, balance_scale, d.dlogits);
  ops::gemm_nn_acc(ctx, d.dlogits, w.weight, dx);  // [T, D]
  return d;
}

void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw) {
  const Deferred d = std::move(deferred);
  ops::gemm_tn_acc(ctx, d.dlogits, d.x, dw.weight);  // [E, D] += [T, E]^T [T, D]
}

}  // namespace hadal::gate
