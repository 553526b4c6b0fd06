// Naive gate, mixture of experts and transformer layer (training notes, section 7).
//
//   T tokens   S sequences   D model width   E experts   K choices of a token
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <numeric>

#include "tests/ref/layers.h"

namespace hadal::ref {

// Indices of the k largest values, largest first; of equal ones the smaller index.
inline std::vector<int64_t> top_k(const std::vector<double>& values, int64_t k) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(k));
  return order;
}

template <class S>
struct Routing {
  Array<S> scores;                           // [T, E]   unbiased
  std::vector<std::vector<int64_t>> choice;  // [T][K]   ascending
  Array<S> weight;                           // [T, K]   normalised and scaled
  Array<S> balance;           // [S]      balance loss of each sequence, without alpha
  std::vector<int64_t> load;  // [E]
};

// The experts of a token with biased scores b: the best K in the best groups.
inline std::vector<int64_t> choose(const Config& c, const std::vector<double>& b) {
  const int64_t E = c.n_routed_experts, per_group = E / c.n_group;
  std::vector<double> group_score;
  for (int64_t g = 0; g < c.n_group; ++g) {
    std::vector<double> members(b.begin() + g * per_group, b.begin() + (g + 1) * per_group);
    std::sort(members.rbegin(), members.rend());
    const bool two_best = c.topk_method == TopkMethod::kNoauxTc && per_group > 1;
    group_score.push_back(two_best ? members[0] + members[1] : members[0]);
  }
  std::vector<double> masked(b.size(), -INFINITY);
  for (int64_t g : top_k(group_score, c.topk_group))
    std::copy_n(b.begin() + g * per_group, per_group, masked.begin() + g * per_group);
  std::vector<int64_t> chosen = top_k(masked, c.num_experts_per_tok);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

// Scores of one token from its logits.
template <class S>
void score(const Config& c, const Array<S>& logits, int64_t t, Array<S>& scores) {
  const int64_t E = c.n_routed_experts;
  if (c.scoring_func == ScoringFunc::kSigmoid) {
    for (int64_t e = 0; e < E; ++e) scores(t, e) = sigmoid(logits(t, e));
    return;
  }
  double max = -INFINITY;
  for (int64_t e = 0; e < E; ++e) max = std::max(max, real_part(logits(t, e)));
  S total{};
  for (int64_t e = 0; e < E; ++e)
    total += (scores(t, e) = std::exp(logits(t, e) - static_cast<S>(max)));
  for (int64_t e = 0; e < E; ++e) scores(t, e) /= total;
}

inline std::vector<double> real_row(const auto& a, int64_t t) {
  std::vector<double> row;
  for (int64_t d = 0; d < a.dim(1); ++d) row.push_back(real_part(a(t, d)));
  return row;
}

// sum_i f_i P_i of the n tokens from `first` (report, eqs 17-20); f is a constant.
template <class S>
S balance_loss(const Config& c, const Array<S>& scores, int64_t first, int64_t n) {
  const int64_t E = c.n_routed_experts, K = c.num_experts_per_tok;
  std::vector<double> f(static_cast<size_t>(E), 0.0);
  std::vector<S> p(static_cast<size_t>(E), S{});
  for (int64_t t = first; t < first + n; ++t) {
    for (int64_t e : top_k(real_row(scores, t), K))
      f[static_cast<size_t>(e)] += static_cast<double>(E) / static_cast<double>(K * n);
    S total{};
    for (int64_t e = 0; e < E; ++e) total += scores(t, e);
    for (int64_t e = 0; e < E; ++e)
      p[static_cast<size_t>(e)] += scores(t, e) / total / static_cast<S>(static_cast<double>(n));
  }
  S loss{};
  for (size_t e = 0; e < f.size(); ++e) loss += static_cast<S>(f[e]) * p[e];
  return loss;
}

template <class S>
Routing<S> gate_forward(const Config& c, const gate::Params<Array<S>>& w, const Lengths& lengths,
                        const Array<S>& x) {
  const int64_t T = x.dim(0), E = c.n_routed_experts, K = c.num_experts_per_tok;
  const Array<S> logits = linear(x, w.weight);
  Routing<S> r;
  r.scores = Array<S>({T, E});
  r.weight = Array<S>({T, K});
  r.balance = Array<S>({static_cast<int64_t>(lengths.size())});
  r.load.assign(static_cast<size_t>(E), 0);
  for (int64_t t = 0; t < T; ++t) {
    score(c, logits, t, r.scores);
    std::vector<double> biased = real_row(r.scores, t);
    for (int64_t e = 0; e < E; ++e) biased[static_cast<size_t>(e)] += real_part(w.bias[e]);
    r.choice.push_back(choose(c, biased));
    S total{};
    for (int64_t e : r.choice.back()) {
      total += r.scores(t, e);
      ++r.load[static_cast<size_t>(e)];
    }
    for (int64_t k = 0; k < K; ++k) {
      const S s = r.scores(t, r.choice.back()[static_cast<size_t>(k)]);
      r.weight(t, k) = (c.norm_topk_prob ? s / (total + static_cast<S>(1e-20)) : s) *
                       static_cast<S>(c.routed_scaling_factor);
    }
  }
  int64_t first = 0;
  for (size_t s = 0; s < lengths.size(); ++s) {
    r.balance[static_cast<int64_t>(s)] = balance_loss(c, r.scores, first, lengths[s]);
    first += lengths[s];
  }
  return r;
}

// y[t] = sum_k weight[t, k] * Expert_k(x[t])
template <class S>
Array<S> experts_forward(const experts::Params<Array<S>>& w, const Routing<S>& r,
                         const Array<S>& x) {
  Array<S> y(x.shape);
  for (int64_t t = 0; t < x.dim(0); ++t) {
    const Array<S> row = rows(x, {t});
    for (size_t k = 0; k < r.choice[static_cast<size_t>(t)].size(); ++k) {
      const auto e = static_cast<size_t>(r.choice[static_cast<size_t>(t)][k]);
      const Array<S> out = swiglu(w.w1[e], w.w3[e], w.w2[e], row);
      for (int64_t d = 0; d < y.dim(1); ++d)
        y(t, d) += r.weight(t, static_cast<int64_t>(k)) * out[d];
    }
  }
  return y;
}

template <class S>
Array<S> moe_forward(const Config& c, const moe::Params<Array<S>>& w, const Lengths& lengths,
                     const Array<S>& x, Routing<S>* routing) {
  *routing = gate_forward(c, w.gate, lengths, x);
  const Array<S> routed = experts_forward(w.experts, *routing, x);
  return c.n_shared_experts > 0 ? sum(routed, mlp_forward(w.shared, x)) : routed;
}

// routing: filled by MoE layers, left alone by dense ones.
template <class S>
Array<S> block_forward(const Config& c, const block::Params<Array<S>>& w, bool is_moe,
                       const Lengths& lengths, const Array<S>& x, Routing<S>* routing) {
  const Array<S> h =
      sum(x, mla_forward(c, w.attn, lengths, rmsnorm(x, w.attn_norm, c.rms_norm_eps)));
  const Array<S> n = rmsnorm(h, w.ffn_norm, c.rms_norm_eps);
  return sum(h, is_moe ? moe_forward(c, w.moe, lengths, n, routing) : mlp_forward(w.mlp, n));
}

}  // namespace hadal::ref
