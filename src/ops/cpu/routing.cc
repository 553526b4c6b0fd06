// The gate and the balance loss on the CPU.
//
//   T tokens   S sequences   E experts   G groups   K choices of a token
//
// Movement of tokens to experts' rows is in ops/cpu/routing_rows.cc.
// SPDX-License-Identifier: Apache-2.0
#include "ops/routing.h"

#include <limits>

#include "ops/cpu/rows.h"

namespace hadal::ops::cpu {
namespace {

constexpr double kNormEps = 1e-20;  // added to the sum of a token's weights before dividing by it

template <class R>
R* row_of(const Tensor& t, int64_t row) {
  return t.data<R>() + row * t.stride(0);
}

// Marks the `count` largest of the values whose mark is kOpen as kTaken; ties go to smaller
// indices.
enum Mark : int32_t { kClosed, kOpen, kTaken };
template <class R>
void take_largest(const R* values, int64_t size, int64_t count, int32_t* marks) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t best = -1;
    for (int64_t e = 0; e < size; ++e) {
      if (marks[e] == kOpen && (best < 0 || values[e] > values[best])) best = e;
    }
    if (best < 0) HADAL_UNREACHABLE("fewer candidates than choices");
    marks[best] = kTaken;
  }
}

template <class R>
R group_value(GroupScore score, const R* biased, int64_t size) {
  R best = -std::numeric_limits<R>::infinity(), second = best;
  for (int64_t e = 0; e < size; ++e) {
    if (biased[e] > best) {
      second = best;
      best = biased[e];
    } else if (biased[e] > second) {
      second = biased[e];
    }
  }
  return score == GroupScore::kTopTwoSum && size > 1 ? best + second : best;
}

// Unbiased scores of one token.
template <class R>
void score_row(Scoring scoring, const R* logits, R* scores, int64_t E) {
  const RowOps<R>& kernels = row_kernels().of<R>();
  if (scoring == Scoring::kSigmoid) {
    kernels.sigmoid(logits, scores, E);
    return;
  }
  kernels.exp_shifted(logits, kernels.max(logits, E), R(1), scores, E);
  const R total = kernels.sum(scores, E);
  for (int64_t e = 0; e < E; ++e) scores[e] /= total;
}

// Marks the K chosen experts of one token with kTaken.
template <class R>
void choose(const GateRule& rule, const R* biased, int64_t E, R* group_values, int32_t* group_marks,
            int32_t* marks) {
  const int64_t G = rule.n_group, size = E / G;
  for (int64_t g = 0; g < G; ++g) {
    group_values[g] = group_value(rule.group_score, biased + g * size, size);
    group_marks[g] = kOpen;
  }
  take_largest(group_values, G, rule.topk_group, group_marks);
  // NOTE: experts of other groups are closed, not zero: a biased score may be negative.
  for (int64_t e = 0; e < E; ++e) marks[e] = group_marks[e / size] == kTaken ? kOpen : kClosed;
  take_largest(biased, E, rule.num_experts_per_tok, marks);
}

// dlogits (+)= gradient through the scoring, given the gradient of the scores.
template <class R>
void through_scoring(Scoring scoring, const R* scores, const R* dscores, R* dlogits, int64_t E) {
  if (scoring == Scoring::kSigmoid) {
    for (int64_t e = 0; e < E; ++e) dlogits[e] += dscores[e] * scores[e] * (R(1) - scores[e]);
    return;
  }
  const R along = row_kernels().of<R>().dot(dscores, scores, E);
  for (int64_t e = 0; e < E; ++e) dlogits[e] += scores[e] * (dscores[e] - along);
}

}  // namespace

void gate_forward(Context& ctx, const GateRule& rule, In logits, In bias, Out scores, Out topk_idx,
                  Out topk_weight) {
  const int64_t T = logits.dim(0), E = logits.dim(1), K = rule.num_experts_per_tok;
  with_arithmetic({logits.dtype()}, [&]<class R>(R) {
    const ScratchRows<R> values(ctx, 2, E);
    const ScratchRows<int32_t> marks(ctx, 2, E);
    const R* bias_row = bias.data<R>();
    for_rows(ctx, T, 16 * E, [&](int64_t begin, int64_t end, int thread) {
      R *biased = values.row(thread, 0), *group_values = values.row(thread, 1);
      int32_t *mark = marks.row(thread, 0), *group_mark = marks.row(thread, 1);
      for (int64_t t = begin; t < end; ++t) {
        R* score = row_of<R>(scores, t);
        score_row(rule.scoring, row_of<R>(logits, t), score, E);
        for (int64_t e = 0; e < E; ++e) biased[e] = score[e] + bias_row[e];
        choose(rule, biased, E, group_values, group_mark, mark);

        int32_t* idx = row_of<int32_t>(topk_idx, t);
        R* weight = row_of<R>(topk_weight, t);
        R total = 0;
        for (int64_t e = 0, k = 0; e < E && k < K; ++e) {
          if (mark[e] != kTaken) continue;
          idx[k] = static_cast<int32_t>(e);
          weight[k] = score[e];
          total += score[e];
          ++k;
        }
        const R divisor = rule.norm_topk_prob ? total + static_cast<R>(kNormEps) : R(1);
        const R factor = static_cast<R>(rule.routed_scaling_factor);
        for (int64_t k = 0; k < K; ++k) weight[k] = weight[k] / divisor * factor;
      }
    });
  });
}

void gate_backward(Context& ctx, const GateRule& rule, In scores, In topk_idx, In dtopk_weight,
                   Out dlogits) {
  const int64_t T = scores.dim(0), E = scores.dim(1), K = rule.num_experts_per_tok;
  with_arithmetic({scores.dtype()}, [&]<class R>(R) {
    const ScratchRows<R> scratch(ctx, 1, E);
    const R factor = static_cast<R>(rule.routed_scaling_factor);
    for_rows(ctx, T, 4 * E, [&](int64_t begin, int64_t end, int thread) {
      R* dscores = scratch.row(thread, 0);
      for (int64_t t = begin; t < end; ++t) {
        const R *score = row_of<R>(scores, t), *dweight = row_of<R>(dtopk_weight, t);
        const int32_t* idx = row_of<int32_t>(topk_idx, t);
        std::fill(dscores, dscores + E, R(0));
        R total = 0, along = 0;
        for (int64_t k = 0; k < K; ++k) {
          HADAL_CHECK(idx[k] >= 0 && idx[k] < E, "choice ", k, " of token ", t, " is expert ",
                      idx[k], ", but there are ", E, " experts");
          total += score[idx[k]];
          along += dweight[k] * score[idx[k]];
        }
        const R divisor = rule.norm_topk_prob ? total + static_cast<R>(kNormEps) : R(1);
        const R mean = rule.norm_topk_prob ? along / divisor : R(0);
        for (int64_t k = 0; k < K; ++k) dscores[idx[k]] = (dweight[k] - mean) / divisor * factor;
        R* dlogit = row_of<R>(dlogits, t);
        std::fill(dlogit, dlogit + E, R(0));
        through_scoring(rule.scoring, score, dscores, dlogit, E);
      }
    });
  });
}

void balance_loss_forward(Context& ctx, const GateRule& rule, const Packed& seq, In scores,
                          Out loss, Out fraction) {
  const int64_t T = scores.dim(0), E = scores.dim(1), K = rule.num_experts_per_tok;
  with_arithmetic({scores.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    const ScratchRows<int32_t> marks(ctx, 1, E);
    const ScratchRows<R> shares(ctx, 1, E);
    Tensor total, chosen;
    const Block total_memory = ctx.memory.take_tensor(DTypeOf<R>::value, {T}, &total);
    const Block chosen_memory = ctx.memory.take_tensor(DType::kI32, {T, K}, &chosen);

    // Sum the scores of each token and choose from them, without bias and groups.
    for_rows(ctx, T, 16 * E, [&](int64_t begin, int64_t end, int thread) {
      int32_t* mark = marks.row(thread, 0);
      for (int64_t t = begin; t < end; ++t) {
        const R* score = row_of<R>(scores, t);
        total.data<R>()[t] = kernels.sum(score, E);
        std::fill(mark, mark + E, kOpen);
        take_largest(score, E, K, mark);
        int32_t* idx = row_of<int32_t>(chosen, t);
        for (int64_t e = 0; e < E; ++e) {
          if (mark[e] == kTaken) *idx++ = static_cast<int32_t>(e);
        }
      }
    });

    // Average over each sequence, in token order.
    const int32_t* offsets = seq.offsets.data<int32_t>();
    ctx.threads.parallel_for(seq.num_seqs, [&](int64_t s, int thread) {
      const int64_t first = offsets[s], last = offsets[s + 1], length = last - first;
      R *f = row_of<R>(fraction, s), *share = shares.row(thread, 0);
      std::fill(f, f + E, R(0));
      std::fill(share, share + E, R(0));
      for (int64_t t = first; t < last; ++t) {
        const R *score = row_of<R>(scores, t), inverse = R(1) / total.data<R>()[t];
        for (int64_t e = 0; e < E; ++e) share[e] += score[e] * inverse;
        for (int64_t k = 0; k < K; ++k) f[row_of<int32_t>(chosen, t)[k]] += R(1);
      }
      R sum = 0;
      for (int64_t e = 0; length > 0 && e < E; ++e) {
        f[e] = f[e] * static_cast<R>(E) / static_cast<R>(K * length);
        sum += f[e] * (share[e] / static_cast<R>(length));
      }
      loss.data<R>()[s] = sum;
    });
  });
}

void balance_loss_backward(Context& ctx, const GateRule& rule, const Packed& seq, double scale,
                           In scores, In fraction, Acc dlogits) {
  const int64_t E = scores.dim(1), S = seq.num_seqs;
  with_arithmetic({scores.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    const ScratchRows<R> scratch(ctx, 1, E);
    const int32_t* offsets = seq.offsets.data<int32_t>();
    for_rows(ctx, offsets[S], 4 * E, [&](int64_t begin, int64_t end, int thread) {
      R* dscores = scratch.row(thread, 0);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t s = std::upper_bound(offsets, offsets + S + 1, t) - offsets - 1;
        const R length = static_cast<R>(offsets[s + 1] - offsets[s]);
        const R *score = row_of<R>(scores, t), *f = row_of<R>(fraction, s);
        const R total = kernels.sum(score, E);
        const R mean = kernels.dot(f, score, E) / total;
        const R each = static_cast<R>(scale) / length / total;
        for (int64_t e = 0; e < E; ++e) dscores[e] = each * (f[e] - mean);
        through_scoring(rule.scoring, score, dscores, row_of<R>(dlogits, t), E);
      }
    });
  });
}

void bias_update(Context&, In counts, double gamma, Acc bias) {
  const int64_t E = bias.dim(0);
  const int64_t* count = counts.data<int64_t>();
  int64_t total = 0;
  for (int64_t e = 0; e < E; ++e) total += count[e];
  with_arithmetic({bias.dtype()}, [&]<class R>(R) {
    R* b = bias.data<R>();
    const R step = static_cast<R>(gamma);
    for (int64_t e = 0; e < E; ++e) {
      if (E * count[e] < total) b[e] += step;
      if (E * count[e] > total) b[e] -= step;
    }
  });
}

}  // namespace hadal::ops::cpu
