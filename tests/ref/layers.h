// Naive RMSNorm, rope, latent attention and SwiGLU MLP (report, 2.1.1; training notes, section 8).
//
//   T tokens   S sequences   D model width   H heads   Dn, Dr, Dv  nope / rope / value width
//
// A packed batch is its sequences' lengths: tokens lie end to end, positions start at 0 in each.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <numbers>

#include "model/config.h"
#include "model/params.h"
#include "tests/ref/array.h"

namespace hadal::ref {

using Lengths = std::vector<int64_t>;

template <class S>
Array<S> rmsnorm(const Array<S>& x, const Array<S>& gain, double eps) {
  const int64_t T = x.dim(0), D = x.dim(1);
  Array<S> y(x.shape);
  for (int64_t t = 0; t < T; ++t) {
    S sum{};
    for (int64_t d = 0; d < D; ++d) sum += x(t, d) * x(t, d);
    const S rms = std::sqrt(sum / static_cast<S>(static_cast<double>(D)) + static_cast<S>(eps));
    for (int64_t d = 0; d < D; ++d) y(t, d) = gain[d] * x(t, d) / rms;
  }
  return y;
}

template <class S>
S sigmoid(const S& v) {
  return S(1) / (S(1) + std::exp(-v));
}

// YaRN's m(mscale).
inline double yarn_m(const RopeParameters& r, double mscale) {
  return r.factor > 1.0 ? 0.1 * mscale * std::log(r.factor) + 1.0 : 1.0;
}

// How rope turns and how attention scores are scaled, from the fields of config.json.
struct Rope {
  std::vector<double> freq;  // [Dr/2]   radians per position
  double magnitude = 1.0;    // of cos and sin
  double score_scale = 1.0;  // of scores before softmax
  bool interleaved = true;
};

inline Rope make_rope(const Config& c) {
  const RopeParameters& r = c.rope;
  const auto Dr = static_cast<double>(c.qk_rope_head_dim);
  Rope rope;
  rope.interleaved = c.rope_interleave;
  rope.score_scale = std::pow(static_cast<double>(c.qk_nope_head_dim + c.qk_rope_head_dim), -0.5);
  const bool yarn = r.rope_type == "yarn";
  // Index of the pair that turns `turns` times within the original context.
  const auto corr = [&](double turns) {
    const auto context = static_cast<double>(r.original_max_position_embeddings);
    return Dr * std::log(context / (2.0 * std::numbers::pi * turns)) /
           (2.0 * std::log(r.rope_theta));
  };
  double low = 0.0, high = 0.0;
  if (yarn) {
    low = std::min(std::max(std::floor(corr(r.beta_fast)), 0.0), Dr - 1.0);
    high = std::min(std::max(std::ceil(corr(r.beta_slow)), 0.0), Dr - 1.0);
    if (low == high) high += 0.001;
    rope.magnitude = r.mscale != 0.0 && r.mscale_all_dim != 0.0
                         ? yarn_m(r, r.mscale) / yarn_m(r, r.mscale_all_dim)
                         : yarn_m(r, 1.0);
    if (r.mscale_all_dim != 0.0) rope.score_scale *= std::pow(yarn_m(r, r.mscale_all_dim), 2.0);
  }
  for (int64_t j = 0; j < c.qk_rope_head_dim / 2; ++j) {
    const double plain = std::pow(r.rope_theta, -2.0 * static_cast<double>(j) / Dr);
    const double ramp =
        yarn ? std::min(std::max((static_cast<double>(j) - low) / (high - low), 0.0), 1.0) : 0.0;
    rope.freq.push_back(plain * (1.0 - ramp) + plain / r.factor * ramp);
  }
  return rope;
}

// Turns the Dr values at x by the angles of `position`.
template <class S>
void rotate(const Rope& rope, int64_t position, S* x) {
  const auto half = static_cast<int64_t>(rope.freq.size());
  for (int64_t j = 0; j < half; ++j) {
    const double angle = static_cast<double>(position) * rope.freq[static_cast<size_t>(j)];
    const S cos = static_cast<S>(rope.magnitude * std::cos(angle));
    const S sin = static_cast<S>(rope.magnitude * std::sin(angle));
    S& a = x[rope.interleaved ? 2 * j : j];
    S& b = x[rope.interleaved ? 2 * j + 1 : j + half];
    const S turned = a * cos - b * sin;
    b = a * sin + b * cos;
    a = turned;
  }
}

// Causal attention of one head over one sequence of n tokens: q, k [n, Dn+Dr], v [n, Dv] -> [n,
// Dv].
template <class S>
Array<S> attend(const Array<S>& q, const Array<S>& k, const Array<S>& v, double scale) {
  const int64_t n = q.dim(0), Dqk = q.dim(1), Dv = v.dim(1);
  Array<S> out({n, Dv});
  for (int64_t t = 0; t < n; ++t) {
    std::vector<S> weight;
    double max = -INFINITY;
    for (int64_t s = 0; s <= t; ++s) {
      S score{};
      for (int64_t d = 0; d < Dqk; ++d) score += q(t, d) * k(s, d);
      weight.push_back(score * static_cast<S>(scale));
      max = std::max(max, real_part(weight.back()));
    }
    S total{};
    for (S& w : weight) total += (w = std::exp(w - static_cast<S>(max)));
    for (int64_t s = 0; s <= t; ++s)
      for (int64_t d = 0; d < Dv; ++d)
        out(t, d) += weight[static_cast<size_t>(s)] / total * v(s, d);
  }
  return out;
}

template <class S>
Array<S> mla_forward(const Config& c, const mla::Params<Array<S>>& w, const Lengths& lengths,
                     const Array<S>& x) {
  const int64_t H = c.num_attention_heads, Rkv = c.kv_lora_rank;
  const int64_t Dn = c.qk_nope_head_dim, Dr = c.qk_rope_head_dim, Dv = c.v_head_dim;
  const Rope rope = make_rope(c);
  const Array<S> q =
      c.q_lora_rank == 0
          ? linear(x, w.wq)
          : linear(rmsnorm(linear(x, w.wq_a), w.q_norm, c.rms_norm_eps), w.wq_b);  // [T, H*(Dn+Dr)]
  const Array<S> latent = linear(x, w.wkv_a);                                      // [T, Rkv+Dr]
  const Array<S> kv =
      linear(rmsnorm(cols(latent, 0, Rkv), w.kv_norm, c.rms_norm_eps), w.wkv_b);  // [T, H*(Dn+Dv)]
  Array<S> out({x.dim(0), H * Dv});
  int64_t first = 0;
  for (int64_t n : lengths) {
    for (int64_t h = 0; h < H; ++h) {
      Array<S> qh({n, Dn + Dr}), kh({n, Dn + Dr}), vh({n, Dv});
      for (int64_t i = 0; i < n; ++i) {
        const int64_t t = first + i;
        for (int64_t d = 0; d < Dn + Dr; ++d) qh(i, d) = q(t, h * (Dn + Dr) + d);
        for (int64_t d = 0; d < Dn; ++d) kh(i, d) = kv(t, h * (Dn + Dv) + d);
        for (int64_t d = 0; d < Dr; ++d) kh(i, Dn + d) = latent(t, Rkv + d);
        for (int64_t d = 0; d < Dv; ++d) vh(i, d) = kv(t, h * (Dn + Dv) + Dn + d);
        rotate(rope, i, &qh(i, Dn));
        rotate(rope, i, &kh(i, Dn));
      }
      const Array<S> oh = attend(qh, kh, vh, rope.score_scale);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t d = 0; d < Dv; ++d) out(first + i, h * Dv + d) = oh(i, d);
    }
    first += n;
  }
  return linear(out, w.wo);
}

// w2 (silu(w1 x) * w3 x)
template <class S>
Array<S> swiglu(const Array<S>& w1, const Array<S>& w3, const Array<S>& w2, const Array<S>& x) {
  Array<S> hidden = linear(x, w1);
  const Array<S> up = linear(x, w3);
  for (int64_t i = 0; i < hidden.size(); ++i) hidden[i] *= sigmoid(hidden[i]) * up[i];
  return linear(hidden, w2);
}

template <class S>
Array<S> mlp_forward(const mlp::Params<Array<S>>& w, const Array<S>& x) {
  return swiglu(w.w1, w.w3, w.w2, x);
}

}  // namespace hadal::ref
