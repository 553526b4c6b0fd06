// Multi-head latent attention, training form (report, 2.1.1, eqs 1-11).
//
//   T tokens, Th of this rank   D model width   H heads   Rq, Rkv latent ranks
//   Dn, Dr, Dv head widths
// SPDX-License-Identifier: Apache-2.0
#include "model/mla.h"

#include <utility>

#include "model/bytes.h"
#include "model/linear.h"
#include "ops/attention.h"
#include "ops/copy.h"
#include "ops/norm.h"

namespace hadal::mla {
namespace {

// Queries, keys and values of the training form, up-projected from the normed latents.
struct Projected {
  Block memory;
  Tensor q;     // [T, H, Dn+Dr]   rotated
  Tensor kv;    // [T, H, Dn+Dv]
  Tensor k_pe;  // [T, Dr]         rotated
};

// Turns the last Dr columns of each head.
void rotate(Context& ctx, const Config& c, const Packed& seq, ops::RopeDirection direction,
            const Tensor& q, const Tensor& k_pe) {
  const int64_t T = seq.num_tokens, Dr = c.qk_rope_head_dim;
  ops::rope_apply(ctx, rope_layout(c), direction, seq.rope, q.cols(c.qk_nope_head_dim, Dr));
  const Tensor one_head(k_pe.raw(), k_pe.dtype(), {T, 1, Dr}, {k_pe.stride(0), Dr, 1});
  ops::rope_apply(ctx, rope_layout(c), direction, seq.rope, Tensor(one_head));
}

// What the up-projections read, of all tokens.
struct Latents {
  Block memory;
  Tensor q_in, kv_n, k_pe;  // [T, Rq], or [T, D] where Rq is 0   [T, Rkv]   [T, Dr] not rotated
};

Latents gather_latents(Context& ctx, const Config& c, const TensorGroup& group, const Packed& seq,
                       In q_in, In kv_n, In kv_lat) {
  Gathered all = gather(ctx, group, seq.num_tokens,
                        {q_in, kv_n, kv_lat.cols(c.kv_lora_rank, c.qk_rope_head_dim)});
  return {.memory = std::move(all.memory),
          .q_in = all.rows[0],
          .kv_n = all.rows[1],
          .k_pe = all.rows[2]};
}

Projected project(Context& ctx, const Config& c, const Weights& w, const Packed& seq,
                  const Latents& latents) {
  const int64_t T = seq.num_tokens, H = c.num_attention_heads;
  const Shape q_shape{T, H, c.qk_head_dim()};
  const Shape kv_shape{T, H, c.qk_nope_head_dim + c.v_head_dim};
  const Shape k_pe_shape{T, c.qk_rope_head_dim};
  const DType act = latents.kv_n.dtype();
  Projected p;
  p.memory = ctx.memory.take(
      ByteCount().add(act, q_shape).add(act, kv_shape).add(act, k_pe_shape).total());
  p.q = p.memory.tensor(act, q_shape);
  p.kv = p.memory.tensor(act, kv_shape);
  p.k_pe = p.memory.tensor(act, k_pe_shape);
  const Shape q_flat{T, H * c.qk_head_dim()}, kv_flat{T, kv_shape[1] * kv_shape[2]};
  const bool fp8 = linear::is_fp8(w.wkv_b);
  const Operand& wq = c.q_lora_rank == 0 ? w.wq : w.wq_b;
  linear::forward(ctx, linear::Rows(ctx, latents.q_in, fp8), wq,
                  p.q.view(q_flat));  // [T, H*(Dn+Dr)]
  linear::forward(ctx, linear::Rows(ctx, latents.kv_n, fp8), w.wkv_b,
                  p.kv.view(kv_flat));   // [T, H*(Dn+Dv)]
  ops::cast(ctx, latents.k_pe, p.k_pe);  // [T, Dr]
  rotate(ctx, c, seq, ops::RopeDirection::kForward, p.q, p.k_pe);
  return p;
}

}  // namespace

Saved forward(Context& ctx, const Config& c, const Weights& w, const Packed& seq, In x, Out y,
              const TensorGroup& group, const ops::TileRows& x_tiles) {
  const auto [Th, D] = HADAL_SHAPE(x, 2);
  HADAL_CHECK_SHAPE(y, Th, D);
  const int64_t H = c.num_attention_heads, T = seq.num_tokens;
  const DType act = x.dtype(), stat = stat_dtype(act);
  Saved s;
  s.seq = seq;
  s.group = group;
  s.memory = ctx.memory.take(saved_bytes(c, {T, Th}, act));
  s.kv_lat = s.memory.tensor(act, {Th, c.latent_dim()});
  s.kv_rstd = s.memory.tensor(stat, {Th});
  s.lse = s.memory.tensor(stat, {H, T});
  const int64_t out_width = H * c.v_head_dim;
  Tensor out;
  Block out_memory;
  if (c.precision.e5m6_attention) {
    s.out_words = s.memory.tensor(DType::kI32, {T, ops::e5m6_words(out_width)});
    s.out_scale = s.memory.tensor(DType::kF32, {T, ops::num_tiles(out_width)});
    out_memory = ctx.memory.take_tensor(act, {T, out_width}, &out);
  } else {
    s.out = out = s.memory.tensor(act, {T, out_width});
  }
  const bool fp8 = linear::is_fp8(w.wkv_a);

  const auto rows = linear::Rows::of(ctx, x, fp8, x_tiles);
  Tensor q_n, kv_n;
  Block q_n_memory;
  if (c.q_lora_rank > 0) {
    s.q_lat = s.memory.tensor(act, {Th, c.q_lora_rank});
    s.q_rstd = s.memory.tensor(stat, {Th});
    q_n_memory = ctx.memory.take_tensor(act, {Th, c.q_lora_rank}, &q_n);
    linear::forward(ctx, rows, w.wq_a, s.q_lat);                                       // [Th, Rq]
    ops::rmsnorm_forward(ctx, s.q_lat, w.q_norm.data, c.rms_norm_eps, q_n, s.q_rstd);  // [Th, Rq]
  }
  const Block kv_n_memory = ctx.memory.take_tensor(act, {Th, c.kv_lora_rank}, &kv_n);
  linear::forward(ctx, rows, w.wkv_a, s.kv_lat);  // [Th, Rkv+Dr]
  ops::rmsnorm_forward(ctx, s.kv_lat.cols(0, c.kv_lora_rank), w.kv_norm.data, c.rms_norm_eps, kv_n,
                       s.kv_rstd);  // [Th, Rkv]
  const Latents latents =
      gather_latents(ctx, c, group, seq, c.q_lora_rank == 0 ? x : q_n, kv_n, s.kv_lat);
  const Projected p = project(ctx, c, w, seq, latents);
  ops::mla_attention_forward(ctx, seq, softmax_scale(c), p.q, p.kv, p.k_pe,
                             out.view({T, H, c.v_head_dim}), s.lse);                   // [T, H, Dv]
  if (c.precision.e5m6_attention) ops::pack_e5m6(ctx, out, s.out_words, s.out_scale);  // [T, H*Dv]
  PartialSums sum(ctx, group, T, {y});
  linear::forward(ctx, linear::Rows(ctx, out, fp8), w.wo, sum.all(0));  // [T, D]
  sum.finish(ctx);                                                      // [Th, D]
  return s;
}

Deferred backward_input(Context& ctx, const Config& c, const Weights& w, Saved&& saved, In x, In dy,
                        Out dx) {
  Saved s = std::move(saved);
  const auto [Th, D] = HADAL_SHAPE(x, 2);
  HADAL_CHECK_SHAPE(dy, Th, D);
  HADAL_CHECK_SHAPE(dx, Th, D);
  const int64_t T = s.seq.num_tokens;
  const int64_t H = c.num_attention_heads, Rkv = c.kv_lora_rank, Dr = c.qk_rope_head_dim;
  const int64_t Dkv = c.qk_nope_head_dim + c.v_head_dim;
  const DType act = x.dtype(), stat = stat_dtype(act);
  Deferred d;
  d.memory = ctx.memory.take(deferred_bytes(c, {T, Th}, act));
  d.x = x;
  Gathered all_dy = gather(ctx, s.group, T, {dy});
  d.dy = all_dy.rows[0];
  d.dy_memory = std::move(all_dy.memory);
  d.fp8 = linear::is_fp8(w.wkv_a);
  const ops::TileRule rule = linear::gradient_rule(c.precision);
  d.out = s.out;
  if (d.out.empty()) {
    d.out = d.memory.tensor(act, {T, H * c.v_head_dim});
    ops::unpack_e5m6(ctx, s.out_words, s.out_scale, d.out);  // [T, H*Dv]
  }
  d.dq = d.memory.tensor(act, {T, H * c.qk_head_dim()});
  d.dkv = d.memory.tensor(act, {T, H * Dkv});
  d.dkv_lat = d.memory.tensor(act, {Th, c.latent_dim()});
  const Tensor kv_n = d.memory.tensor(act, {Th, Rkv});
  d.dkv_norm = d.memory.tensor(stat, {Rkv});

  // Recompute the normed latents and what comes from them.
  Tensor q_in = x;
  if (c.q_lora_rank > 0) {
    q_in = d.memory.tensor(act, {Th, c.q_lora_rank});
    d.dq_lat = d.memory.tensor(act, {Th, c.q_lora_rank});
    d.dq_norm = d.memory.tensor(stat, {c.q_lora_rank});
    ops::rmsnorm_recompute(ctx, s.q_lat, w.q_norm.data, s.q_rstd, q_in);  // [Th, Rq]
  }
  const Tensor c_kv = s.kv_lat.cols(0, Rkv);
  ops::rmsnorm_recompute(ctx, c_kv, w.kv_norm.data, s.kv_rstd, Tensor(kv_n));  // [Th, Rkv]
  Latents latents = gather_latents(ctx, c, s.group, s.seq, q_in, kv_n, s.kv_lat);
  d.q_in = latents.q_in;
  d.kv_n = latents.kv_n;
  const Projected p = project(ctx, c, w, s.seq, latents);
  d.latents_memory = std::move(latents.memory);

  // Through the output projection and attention.
  Tensor dout, dk_pe, dkv_n;
  const Block dout_memory = ctx.memory.take_tensor(act, {T, H, c.v_head_dim}, &dout);
  const Block dk_pe_memory = ctx.memory.take_tensor(act, {Th, Dr}, &dk_pe);
  const Block dkv_n_memory = ctx.memory.take_tensor(act, {Th, Rkv}, &dkv_n);
  PartialSums kv_sums(ctx, s.group, T, {dk_pe, dkv_n});
  linear::backward_input(ctx, linear::Rows(ctx, d.dy, d.fp8, rule), w.wo,
                         dout.view({T, H * c.v_head_dim}));  // [T, H*Dv]
  const Tensor dq = d.dq.view({T, H, c.qk_head_dim()});
  ops::mla_attention_backward(
      ctx, s.seq, softmax_scale(c),
      {.q = p.q, .kv = p.kv, .k_pe = p.k_pe, .out = d.out.view({T, H, c.v_head_dim}), .lse = s.lse},
      dout, {.dq = dq, .dkv = d.dkv.view({T, H, Dkv}), .dk_pe = kv_sums.all(0)});
  rotate(ctx, c, s.seq, ops::RopeDirection::kBackward, dq, kv_sums.all(0));

  // Through the key-value latent.
  linear::backward_input(ctx, linear::Rows(ctx, d.dkv, d.fp8, rule), w.wkv_b,
                         kv_sums.all(1));  // [T, Rkv]
  kv_sums.finish(ctx);                     // [Th, Dr]  [Th, Rkv]
  ops::rmsnorm_backward(ctx, c_kv, w.kv_norm.data, s.kv_rstd, dkv_n, d.dkv_lat.cols(0, Rkv),
                        d.dkv_norm);                                                    // [Th, Rkv]
  ops::cast(ctx, dk_pe, d.dkv_lat.cols(Rkv, Dr));                                       // [Th, Dr]
  linear::backward_input(ctx, linear::Rows(ctx, d.dkv_lat, d.fp8, rule), w.wkv_a, dx);  // [Th, D]

  // Through the query latent.
  const linear::Rows dq_rows(ctx, d.dq, d.fp8, rule);
  if (c.q_lora_rank == 0 && s.group.is_alone()) {
    linear::backward_input_acc(ctx, dq_rows, w.wq, Acc(dx));  // [T, D]
  } else {
    const Operand& wq = c.q_lora_rank == 0 ? w.wq : w.wq_b;
    Tensor dq_in;
    const Block dq_in_memory = ctx.memory.take_tensor(act, q_in.shape(), &dq_in);
    PartialSums sum(ctx, s.group, T, {dq_in});
    linear::backward_input(ctx, dq_rows, wq, sum.all(0));  // [T, Rq], or [T, D]
    sum.finish(ctx);
    if (c.q_lora_rank == 0) {
      ops::add_acc(ctx, dq_in, Acc(dx));  // [Th, D]
    } else {
      ops::rmsnorm_backward(ctx, s.q_lat, w.q_norm.data, s.q_rstd, dq_in, d.dq_lat, d.dq_norm);
      linear::backward_input_acc(ctx, linear::Rows(ctx, d.dq_lat, d.fp8, rule), w.wq_a,
                                 Acc(dx));  // [Th, D]
    }
  }
  d.saved = std::move(s.memory);
  return d;
}

void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw) {
  const Deferred d = std::move(deferred);
  const auto columns = [&](const Tensor& t) { return linear::Columns(ctx, t, d.fp8); };
  const linear::Columns x = columns(d.x), q_in = columns(d.q_in), dq = columns(d.dq);
  if (d.dq_lat.empty()) {
    linear::backward_weight(ctx, dq, q_in, dw.wq);  // [H*(Dn+Dr), D]    += [T, .]^T [T, D]
  } else {
    linear::backward_weight(ctx, columns(d.dq_lat), x, dw.wq_a);  // [Rq, D]
    linear::backward_weight(ctx, dq, q_in, dw.wq_b);              // [H*(Dn+Dr), Rq]
    ops::add_acc(ctx, d.dq_norm, dw.q_norm);                      // [Rq]
  }
  linear::backward_weight(ctx, columns(d.dkv_lat), x, dw.wkv_a);            // [Rkv+Dr, D]
  linear::backward_weight(ctx, columns(d.dkv), columns(d.kv_n), dw.wkv_b);  // [H*(Dn+Dv), Rkv]
  linear::backward_weight(ctx, columns(d.dy), columns(d.out), dw.wo);       // [D, H*Dv]
  ops::add_acc(ctx, d.dkv_norm, dw.kv_norm);                                // [Rkv]
}

}  // namespace hadal::mla
