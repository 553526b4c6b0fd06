// Absorbed attention over the latent cache: the decode form of MLA (report, 2.1.1).
//
//   T new tokens   H heads   D model width   R = Rkv latent rank   Dn, Dr, Dv head widths
//
// The key part of wkv_b is multiplied into the query and its value part into the result, so that
// all heads attend to one key of Rkv + Dr and one value of Rkv per cached token.
// SPDX-License-Identifier: Apache-2.0
#include "model/bytes.h"
#include "model/mla.h"
#include "ops/attention.h"
#include "ops/few_tokens.h"
#include "ops/gemm.h"
#include "ops/norm.h"

namespace hadal::mla {

void decode(Context& ctx, const Config& c, const Weights& w, const Packed& seq,
            const ops::LatentPages& cache, In x, Acc y) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  HADAL_CHECK_SHAPE(y, T, D);
  const int64_t H = c.num_attention_heads, R = c.kv_lora_rank;
  const int64_t Dn = c.qk_nope_head_dim, Dr = c.qk_rope_head_dim, Dv = c.v_head_dim;
  const DType act = x.dtype();

  // Query and latent: down; query: norm, up.
  Tensor q, q_lat, q_n, rstd, kv_lat;
  const Block q_memory = ctx.memory.take_tensor(act, {T, H, Dn + Dr}, &q);
  const Block kv_lat_memory = ctx.memory.take_tensor(act, {T, R + Dr}, &kv_lat);
  if (c.q_lora_rank == 0) {
    const ops::WeightTo down[] = {{w.wq, q.view({T, H * (Dn + Dr)})}, {w.wkv_a, kv_lat}};
    ops::gemm_nt_all(ctx, x, down);  // [T, H*(Dn+Dr)]  [T, R+Dr]
  } else {
    const Block q_lat_memory = ctx.memory.take_tensor(act, {T, c.q_lora_rank}, &q_lat);
    const Block q_n_memory = ctx.memory.take_tensor(act, {T, c.q_lora_rank}, &q_n);
    const Block rstd_memory = ctx.memory.take_tensor(stat_dtype(act), {T}, &rstd);
    const ops::WeightTo down[] = {{w.wq_a, q_lat}, {w.wkv_a, kv_lat}};
    ops::gemm_nt_all(ctx, x, down);  // [T, Rq]  [T, R+Dr]
    ops::rmsnorm_forward(ctx, q_lat, w.q_norm.data, c.rms_norm_eps, q_n, rstd);  // [T, Rq]
    ops::gemm_nt(ctx, q_n, w.wq_b, q.view({T, H * (Dn + Dr)}));                  // [T, H*(Dn+Dr)]
  }

  // Latent and key of the new tokens, into the cache; the query, absorbed and turned.
  Tensor q_abs, o_lat, out;
  const Block q_abs_memory = ctx.memory.take_tensor(act, {T, H, R + Dr}, &q_abs);
  const Block o_lat_memory = ctx.memory.take_tensor(act, {T, H, R}, &o_lat);
  const Block out_memory = ctx.memory.take_tensor(act, {T, H, Dv}, &out);
  ops::latent_inputs(ctx, seq,
                     {.layout = rope_layout(c), .eps = c.rms_norm_eps, .gain = w.kv_norm.data},
                     kv_lat, q.cols(Dn, Dr), cache, q_abs.cols(R, Dr));  // [T, H, Dr]
  ops::gemm_nn_heads(ctx, q.cols(0, Dn), w.wkv_b, {.first = 0, .count = Dn, .stride = Dn + Dv},
                     q_abs.cols(0, R));  // [T, H, R]

  // Attend, un-absorb.
  ops::latent_attention(ctx, seq, softmax_scale(c), q_abs, cache, o_lat);  // [T, H, R]
  ops::gemm_nt_heads(ctx, o_lat, w.wkv_b, {.first = Dn, .count = Dv, .stride = Dn + Dv}, out);
  ops::gemm_nt_acc(ctx, out.view({T, H * Dv}), w.wo, y);  // [T, D] +=
}

}  // namespace hadal::mla
