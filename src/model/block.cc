// One transformer layer: the stages, their backward, and decode.
//
//   T tokens   D model width
// SPDX-License-Identifier: Apache-2.0
#include "model/block.h"

#include <utility>

#include "model/bytes.h"
#include "model/linear.h"
#include "ops/copy.h"
#include "ops/few_tokens.h"
#include "ops/norm.h"

namespace hadal::block {
namespace {

// y_tiles: none, or y once more for products in FP8.
void norm(Context& ctx, const Layer& l, In x, const Operand& gain, Out y, Out rstd,
          const ops::TileRows& y_tiles) {
  const double eps = l.config.rms_norm_eps;
  if (y_tiles.data.empty()) return ops::rmsnorm_forward(ctx, x, gain.data, eps, y, rstd);
  ops::rmsnorm_forward_tiles(ctx, x, gain.data, eps, y, rstd, y_tiles);
}

}  // namespace

Saved attn_forward(Context& ctx, const Layer& l, const Packed& seq, In x) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  const DType act = x.dtype(), stat = stat_dtype(act);
  Saved s;
  s.seq = seq;
  s.x = x;
  s.memory = ctx.memory.take(ByteCount().add(act, {T, D}).add(stat, {T}).add(stat, {T}).total());
  s.h = s.memory.tensor(act, {T, D});
  s.attn_rstd = s.memory.tensor(stat, {T});
  s.ffn_rstd = s.memory.tensor(stat, {T});
  const bool fp8 = linear::is_fp8(l.w.attn.wkv_a);
  ByteCount bytes;
  bytes.add(act, {T, D});
  if (fp8) bytes.add_tile_rows(T, D);
  Block memory = ctx.memory.take(bytes.total());
  const Tensor x_n = memory.tensor(act, {T, D});
  const ops::TileRows x_tiles = fp8 ? linear::tile_rows(memory, T, D) : ops::TileRows{};
  norm(ctx, l, x, l.w.attn_norm, Tensor(x_n), Tensor(s.attn_rstd), x_tiles);         // [T, D]
  s.attn = mla::forward(ctx, l.config, l.w.attn, seq, x_n, s.h, l.tensor, x_tiles);  // [T, D]
  ops::add_acc(ctx, x, s.h);                                                         // [T, D]
  return s;
}

void dispatch_forward(Context& ctx, const Layer& l, Saved& s) {
  const Shape shape = s.h.shape();
  const DType act = s.h.dtype();
  // Experts' rows are quantised as they are sent.
  const Operand& first = l.is_moe ? l.w.moe.shared.w1 : l.w.mlp.w1;
  const bool fp8 = linear::is_fp8(first);
  ByteCount bytes;
  bytes.add(act, shape).add(act, shape);
  if (fp8) bytes.add_tile_rows(shape[0], shape[1]);
  s.scratch = ctx.memory.take(bytes.total());
  s.h_n = s.scratch.tensor(act, shape);
  s.y_mlp = s.scratch.tensor(act, shape);
  if (fp8) s.h_n_tiles = linear::tile_rows(s.scratch, shape[0], shape[1]);
  norm(ctx, l, s.h, l.w.ffn_norm, Tensor(s.h_n), Tensor(s.ffn_rstd), s.h_n_tiles);
  if (l.is_moe)
    s.moe = moe::dispatch_forward(ctx, l.config, l.w.moe, l.exchange, s.seq, s.h_n, l.tensor);
}

void mlp_forward(Context& ctx, const Layer& l, Saved& s) {
  if (l.is_moe)
    return moe::mlp_forward(ctx, l.config, l.w.moe, l.exchange, s.h_n, s.moe, s.h_n_tiles);
  const Gathered h_n = gather(ctx, l.tensor, s.seq.num_tokens, {s.h_n});
  PartialSums sum(ctx, l.tensor, s.seq.num_tokens, {s.y_mlp});
  // Gathered rows are quantised here: the norm's tiles are of this rank's tokens.
  const ops::TileRows tiles = l.tensor.is_alone() ? s.h_n_tiles : ops::TileRows{};
  s.mlp = mlp::forward(ctx, l.w.mlp, h_n.rows[0], sum.all(0), l.config.precision, tiles);
  sum.finish(ctx);  // [T, D]
}

void combine_forward(Context& ctx, const Layer& l, Saved& s, Out y) {
  if (l.is_moe) moe::combine_forward(ctx, l.config, l.w.moe, l.exchange, s.moe, s.y_mlp);
  ops::add(ctx, s.h, s.y_mlp, y);  // [T, D]
  s.scratch = Block();
}

Saved forward(Context& ctx, const Layer& l, const Packed& seq, In x, Out y) {
  Saved s = attn_forward(ctx, l, seq, x);
  dispatch_forward(ctx, l, s);
  mlp_forward(ctx, l, s);
  combine_forward(ctx, l, s, y);
  return s;
}

Deferred combine_backward(Context& ctx, const Layer& l, Saved& s, In dy) {
  const Shape shape = s.h.shape();
  const DType act = s.h.dtype(), stat = stat_dtype(act);
  const int64_t D = shape[1];
  Deferred d;
  d.is_moe = l.is_moe;
  d.memory = ctx.memory.take(ByteCount()
                                 .add(act, shape)
                                 .add(act, shape)
                                 .add(act, shape)
                                 .add(act, shape)
                                 .add(stat, {D})
                                 .add(stat, {D})
                                 .total());
  d.x_n = d.memory.tensor(act, shape);
  d.h_n = d.memory.tensor(act, shape);
  d.dh = d.memory.tensor(act, shape);
  d.dy = d.memory.tensor(act, shape);
  d.dattn_norm = d.memory.tensor(stat, {D});
  d.dffn_norm = d.memory.tensor(stat, {D});
  ops::cast(ctx, dy, d.dy);  // [T, D]
  if (l.is_moe) d.moe = moe::combine_backward(ctx, l.config, l.exchange, s.moe, d.dy);
  return d;
}

void mlp_backward(Context& ctx, const Layer& l, Saved& s, Deferred& d) {
  ops::rmsnorm_recompute(ctx, s.h, l.w.ffn_norm.data, s.ffn_rstd, d.h_n);  // [T, D]
  if (l.is_moe)
    return moe::mlp_backward(ctx, l.config, l.w.moe, l.exchange, s.moe, d.h_n, d.dy, d.moe);
  Gathered all = gather(ctx, l.tensor, s.seq.num_tokens, {d.h_n, d.dy});
  PartialSums sum(ctx, l.tensor, s.seq.num_tokens, {d.dh});
  d.mlp = mlp::backward_input(ctx, l.w.mlp, std::move(s.mlp), all.rows[0], all.rows[1], sum.all(0),
                              l.config.precision);
  sum.finish(ctx);  // [T, D]
  d.mlp_memory = std::move(all.memory);
}

void dispatch_backward(Context& ctx, const Layer& l, Saved& s, double balance_scale, Deferred& d) {
  if (l.is_moe)
    moe::dispatch_backward(ctx, l.config, l.w.moe, l.exchange, std::move(s.moe), d.h_n,
                           balance_scale, d.moe, d.dh);  // [T, D]
  // NOTE: d.dh holds the gradient of the norm's output here and that of h below.
  Tensor dh_n;
  const Block memory = ctx.memory.take_tensor(d.dh.dtype(), d.dh.shape(), &dh_n);
  ops::cast(ctx, d.dh, dh_n);
  ops::rmsnorm_backward(ctx, s.h, l.w.ffn_norm.data, s.ffn_rstd, dh_n, d.dh, d.dffn_norm);
  ops::add_acc(ctx, d.dy, d.dh);  // [T, D]
}

void attn_backward(Context& ctx, const Layer& l, Saved&& saved, Deferred& d, Out dx) {
  Saved s = std::move(saved);
  Tensor dx_n;
  const Block memory = ctx.memory.take_tensor(d.dh.dtype(), d.dh.shape(), &dx_n);
  ops::rmsnorm_recompute(ctx, s.x, l.w.attn_norm.data, s.attn_rstd, d.x_n);  // [T, D]
  d.attn = mla::backward_input(ctx, l.config, l.w.attn, std::move(s.attn), d.x_n, d.dh, dx_n);
  ops::rmsnorm_backward(ctx, s.x, l.w.attn_norm.data, s.attn_rstd, dx_n, dx, d.dattn_norm);
  ops::add_acc(ctx, d.dh, Acc(dx));  // [T, D]
}

Deferred backward_input(Context& ctx, const Layer& l, Saved&& saved, double balance_scale, In dy,
                        Out dx) {
  Saved s = std::move(saved);
  Deferred d = combine_backward(ctx, l, s, dy);
  mlp_backward(ctx, l, s, d);
  dispatch_backward(ctx, l, s, balance_scale, d);
  attn_backward(ctx, l, std::move(s), d, dx);
  return d;
}

void mlp_backward_weight(Context& ctx, Deferred& d, Grads& dw) {
  if (d.is_moe)
    moe::mlp_backward_weight(ctx, d.moe, dw.moe);
  else
    mlp::backward_weight(ctx, std::move(d.mlp), dw.mlp);
}

void dispatch_backward_weight(Context& ctx, Deferred& d, Grads& dw) {
  if (d.is_moe) moe::gate_backward_weight(ctx, d.moe, dw.moe);
  ops::add_acc(ctx, d.dffn_norm, dw.ffn_norm);  // [D]
}

void attn_backward_weight(Context& ctx, Deferred& d, Grads& dw) {
  mla::backward_weight(ctx, std::move(d.attn), dw.attn);
  ops::add_acc(ctx, d.dattn_norm, dw.attn_norm);  // [D]
}

void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw) {
  Deferred d = std::move(deferred);
  mlp_backward_weight(ctx, d, dw);
  dispatch_backward_weight(ctx, d, dw);
  attn_backward_weight(ctx, d, dw);
}

void backward(Context& ctx, const Layer& l, Saved&& saved, double balance_scale, In dy, Out dx,
              Grads& dw) {
  Saved s = std::move(saved);
  Deferred d = combine_backward(ctx, l, s, dy);  // dispatch(B)
  mlp_backward(ctx, l, s, d);                    //                 mlp(B), of shared experts first
  mlp_backward_weight(ctx, d, dw);               // combine(B)      mlp(W)
  dispatch_backward(ctx, l, s, balance_scale, d);
  dispatch_backward_weight(ctx, d, dw);
  attn_backward(ctx, l, std::move(s), d, dx);
  attn_backward_weight(ctx, d, dw);
}

// The order of DeepSeek's trace. On the left what starts a transfer, on the right what hides it.
Saved overlap(Context& ctx, const ForwardArgs& f, BackwardArgs&& b) {
  block::Saved saved = std::move(b.saved);
  Deferred d = std::move(b.deferred);                // combine(B)
  Saved s = attn_forward(ctx, f.layer, f.seq, f.x);  //                 attn(F)
  dispatch_forward(ctx, f.layer, s);                 // dispatch(F)
  mlp_backward(ctx, b.layer, saved, d);              // dispatch(B)     mlp(B)
  mlp_backward_weight(ctx, d, b.dw);                 //                 mlp(W)
  mlp_forward(ctx, f.layer, s);                      // combine(F)      mlp(F)
  dispatch_backward(ctx, b.layer, saved, b.balance_scale, d);
  dispatch_backward_weight(ctx, d, b.dw);
  attn_backward(ctx, b.layer, std::move(saved), d, b.dx);  //           attn(B)
  b.next();                                                // combine(B) of the layer before
  attn_backward_weight(ctx, d, b.dw);                      //           attn(W)
  combine_forward(ctx, f.layer, s, f.y);
  return s;
}

namespace {

// The ranks of decode()'s two halves.
DecodeGroup ffn_group(const Layer& l) { return {.tensor = l.tensor, .tokens = l.tokens}; }
DecodeGroup attention_group(const Layer& l) {
  return ffn_group(l).has_all_tokens() ? ffn_group(l) : DecodeGroup{};
}

// Where the gate's logits of this rank's rows are of use; else it sees those of all ranks.
bool gates_own_rows(const Layer& l) { return l.is_moe && ffn_group(l).has_all_tokens(); }

ops::DecodeAttention decode_attention_of(const Layer& l) {
  const Config& c = l.config;
  const mla::Weights& attn = l.w.attn;
  return {.wq = attn.wq,
          .wq_a = attn.wq_a,
          .wq_b = attn.wq_b,
          .wkv_a = attn.wkv_a,
          .wkv_b = attn.wkv_b,
          .wo = attn.wo,
          .attn_norm = l.w.attn_norm.data,
          .q_norm = attn.q_norm.data,
          .kv_norm = attn.kv_norm.data,
          .ffn_norm = l.w.ffn_norm.data,
          .gate_weight = gates_own_rows(l) ? l.w.moe.gate.weight.data : Tensor(),
          .layout = mla::rope_layout(c),
          .eps = c.rms_norm_eps,
          .scale = softmax_scale(c),
          .num_heads = c.num_attention_heads,
          .nope_dim = c.qk_nope_head_dim,
          .rope_dim = c.qk_rope_head_dim,
          .v_dim = c.v_head_dim,
          .sums = attention_group(l).tensor.sums()};
}

// x [T, D] += the FFN of its norm n [T, D]; logits [T, E] of the gate, where they are known.
void decode_mlp(Context& ctx, const Layer& l, In n, In logits, Acc x) {
  if (l.is_moe)
    moe::decode(ctx, l.config, l.w.moe, l.exchange, ffn_group(l), n, logits, x);  // [T, D] +=
  else
    mlp::decode(ctx, l.w.mlp, ffn_group(l), n, x);  // [T, D] +=
}

// decode() with the attention half in one op, its sum over the ranks too, where there is one; false
// where there is not.
bool decode_fused(Context& ctx, const Layer& l, const Packed& seq, const ops::LatentPages& cache,
                  Acc x) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  const ops::DecodeAttention attention = decode_attention_of(l);
  bool pays = false;
  if (T == 0 || !attention_group(l).sums_in_ops()) return false;
  ops::decode_attention_pays(ctx, attention, seq, cache, x, &pays);
  if (!pays) return false;
  Tensor n, logits;
  const Block n_memory = ctx.memory.take_tensor(x.dtype(), {T, D}, &n);
  const Block logits_memory = ctx.memory.take_tensor(
      stat_dtype(x.dtype()), {T, gates_own_rows(l) ? l.config.n_routed_experts : 0}, &logits);
  ops::decode_attention(ctx, attention, seq, cache, x, n, logits);  // [T, D] +=  [T, D]  [T, E]
  decode_mlp(ctx, l, n, gates_own_rows(l) ? In(logits) : In(), x);  // [T, D] +=
  return true;
}

}  // namespace

void decode(Context& ctx, const Layer& l, const Packed& seq, const ops::LatentPages& cache, Acc x) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  if (ctx.numerics == Numerics::kFastest && decode_fused(ctx, l, seq, cache, x)) return;
  const DType act = x.dtype();
  Tensor n, rstd;
  const Block n_memory = ctx.memory.take_tensor(act, {T, D}, &n);
  const Block rstd_memory = ctx.memory.take_tensor(stat_dtype(act), {T}, &rstd);
  if (T > 0) {
    ops::rmsnorm_forward(ctx, x, l.w.attn_norm.data, l.config.rms_norm_eps, n, rstd);  // [T, D]
    add_sum(ctx, attention_group(l), n, x, [&](In rows, Acc part) {
      mla::decode(ctx, l.config, l.w.attn, seq, cache, rows, part);  // [T, D] +=
    });
    ops::rmsnorm_forward(ctx, x, l.w.ffn_norm.data, l.config.rms_norm_eps, n, rstd);  // [T, D]
  }
  decode_mlp(ctx, l, n, Tensor(), x);  // [T, D] +=
}

}  // namespace hadal::block
