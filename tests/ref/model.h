// Naive DeepSeek-V3 model with its MTP chain and training objective (training notes, section 9).
//
//   T tokens   S sequences   D model width   V vocabulary   k MTP depth (1, 2, ...)
//
// At depth k a sequence of n tokens has the positions i = 0 .. n-k-1: each sees the state of depth
// k-1 at i and the embedding of token i+k, and predicts the target of position i+k. The state of
// depth 0 is the main model's after its final norm, of depth k the one after shared_head.norm.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tests/ref/moe.h"

namespace hadal::ref {

struct Sequence {
  std::vector<int64_t> ids, targets;  // a target of -1 is none
};

// The positions of one depth, all sequences end to end.
struct Positions {
  Lengths lengths;                            // sequences that take part
  std::vector<int64_t> ids, targets, parent;  // parent: row of the depth before
};

inline Positions positions_of(const std::vector<Sequence>& sequences, int64_t k) {
  Positions p;
  int64_t first_parent = 0;  // where the sequence begins in depth k-1
  for (const Sequence& s : sequences) {
    const auto length = static_cast<int64_t>(s.ids.size());
    const int64_t n = std::max<int64_t>(0, length - k);
    for (int64_t i = 0; i < n; ++i) {
      p.ids.push_back(s.ids[static_cast<size_t>(i + k)]);
      p.targets.push_back(s.targets[static_cast<size_t>(i + k)]);
      p.parent.push_back(first_parent + i);
    }
    if (n > 0) p.lengths.push_back(n);
    first_parent += std::max<int64_t>(0, length - (k - 1));
  }
  return p;
}

// Sum over rows of -log softmax(logits)[target]; rows without a target add nothing.
template <class S>
S cross_entropy_sum(const Array<S>& logits, const std::vector<int64_t>& targets) {
  S loss{};
  for (int64_t t = 0; t < logits.dim(0); ++t) {
    const int64_t target = targets[static_cast<size_t>(t)];
    if (target < 0) continue;
    double max = -INFINITY;
    for (int64_t v = 0; v < logits.dim(1); ++v) max = std::max(max, real_part(logits(t, v)));
    S total{};
    for (int64_t v = 0; v < logits.dim(1); ++v)
      total += std::exp(logits(t, v) - static_cast<S>(max));
    loss += std::log(total) + static_cast<S>(max) - logits(t, target);
  }
  return loss;
}

inline double num_targets(const std::vector<int64_t>& targets) {
  return static_cast<double>(
      std::count_if(targets.begin(), targets.end(), [](int64_t v) { return v >= 0; }));
}

template <class S>
struct MtpState {
  Array<S> hidden;  // [Tk, D]   after shared_head.norm
  Array<S> logits;  // [Tk, V]
  S loss_sum{};
};

template <class S>
struct ModelState {
  std::vector<Array<S>> hidden;  // embedding, then each layer's output, the last after the norm
  Array<S> logits;               // [T, V]
  S loss_sum{};
  std::vector<MtpState<S>> mtp;
  std::vector<Routing<S>> routing;  // of each MoE layer, MTP blocks last
};

// Block input of an MTP module: eh_proj [enorm(e) ; hnorm(h)].             e, h [Tk, D]
template <class S>
Array<S> mtp_input(const Config& c, const mtp::Params<Array<S>>& w, const Array<S>& e,
                   const Array<S>& h) {
  const int64_t T = e.dim(0), D = c.hidden_size;
  const Array<S> en = rmsnorm(e, w.enorm, c.rms_norm_eps), hn = rmsnorm(h, w.hnorm, c.rms_norm_eps);
  Array<S> z({T, 2 * D});
  for (int64_t t = 0; t < T; ++t)
    for (int64_t d = 0; d < D; ++d) {
      z(t, d) = en(t, d);
      z(t, D + d) = hn(t, d);
    }
  return linear(z, w.eh_proj);
}

// State of a depth, from that of the depth before.                         [T, D] -> [Tk, D]
template <class S>
Array<S> mtp_forward(const Config& c, const mtp::Params<Array<S>>& w, const Array<S>& embed,
                     const Positions& p, const Array<S>& before, Routing<S>* routing) {
  const Array<S> z = mtp_input(c, w, rows(embed, p.ids), rows(before, p.parent));
  return rmsnorm(block_forward(c, w.block, true, p.lengths, z, routing), w.norm, c.rms_norm_eps);
}

template <class S>
ModelState<S> model_forward(const Config& c, const ModelParams<Array<S>>& w,
                            const std::vector<Sequence>& sequences, int64_t num_mtp) {
  const Positions main = positions_of(sequences, 0);
  ModelState<S> m;
  m.hidden.push_back(rows(w.embed, main.ids));
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const bool is_moe = l >= c.first_k_dense_replace;
    Routing<S> routing;
    m.hidden.push_back(block_forward(c, w.layers[static_cast<size_t>(l)], is_moe, main.lengths,
                                     m.hidden.back(), &routing));
    if (is_moe) m.routing.push_back(routing);
  }
  m.hidden.back() = rmsnorm(m.hidden.back(), w.norm, c.rms_norm_eps);
  const Array<S>& head = c.tie_word_embeddings ? w.embed : w.head;
  m.logits = linear(m.hidden.back(), head);
  m.loss_sum = cross_entropy_sum(m.logits, main.targets);
  for (int64_t k = 1; k <= num_mtp; ++k) {
    const Positions p = positions_of(sequences, k);
    const Array<S>& before = k == 1 ? m.hidden.back() : m.mtp.back().hidden;
    MtpState<S> state;
    Routing<S> routing;
    state.hidden = mtp_forward(c, w.mtp[static_cast<size_t>(k - 1)], w.embed, p, before, &routing);
    state.logits = linear(state.hidden, head);
    state.loss_sum = cross_entropy_sum(state.logits, p.targets);
    m.mtp.push_back(state);
    m.routing.push_back(routing);
  }
  return m;
}

// Mean main loss + lambda / Dm * sum of the depths' mean losses + alpha * sum over MoE layers of
// the mean balance loss of the sequences that take part.
template <class S>
S objective(const Config& c, const ModelParams<Array<S>>& w, const std::vector<Sequence>& sequences,
            int64_t num_mtp, double lambda, double alpha) {
  const ModelState<S> m = model_forward(c, w, sequences, num_mtp);
  S total = m.loss_sum / static_cast<S>(num_targets(positions_of(sequences, 0).targets));
  for (int64_t k = 1; k <= num_mtp; ++k)
    total += static_cast<S>(lambda / static_cast<double>(num_mtp) /
                            num_targets(positions_of(sequences, k).targets)) *
             m.mtp[static_cast<size_t>(k - 1)].loss_sum;
  for (const Routing<S>& r : m.routing)
    for (int64_t s = 0; s < r.balance.size(); ++s)
      total += static_cast<S>(alpha / static_cast<double>(r.balance.size())) * r.balance[s];
  return total;
}

}  // namespace hadal::ref
