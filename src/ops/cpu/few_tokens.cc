// The fused ops for a few tokens on the CPU: their parts, one after the other.
//
//   T tokens   D model width   F hidden width   K choices of a token   H heads
//   R latent width   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#include "ops/few_tokens.h"

#include <algorithm>

#include "ops/activation.h"
#include "ops/copy.h"
#include "ops/gemm.h"
#include "ops/norm.h"

namespace hadal::ops::cpu {
namespace {

// sum [1,D] += weight * w2 swiglu(w1 x, w3 x)                                x [1,D]
void add_expert(Context& ctx, const Operand& w1, const Operand& w3, const Operand& w2, In x,
                double weight, Acc sum) {
  const int64_t F = w1.data.dim(0);
  const DType stat = sum.dtype();
  Tensor gate_up, hidden, weighted;
  const Block gate_up_memory = ctx.memory.take_tensor(x.dtype(), {1, 2 * F}, &gate_up);
  const Block hidden_memory = ctx.memory.take_tensor(stat, {1, F}, &hidden);
  const Block weighted_memory = ctx.memory.take_tensor(x.dtype(), {1, F}, &weighted);
  gemm_nt(ctx, x, w1, gate_up.cols(0, F));
  gemm_nt(ctx, x, w3, gate_up.cols(F, F));
  swiglu_forward(ctx, gate_up, hidden);
  for (int64_t i = 0; i < F; ++i) {
    if (stat == DType::kF64)
      hidden.data<double>()[i] *= weight;
    else
      hidden.data<float>()[i] *= static_cast<float>(weight);
  }
  cast(ctx, hidden, weighted);
  gemm_nt_acc(ctx, weighted, w2, sum);
}

}  // namespace

void moe_of_few_pays(Context&, const MoeWeights&, In, bool* pays) { *pays = false; }

void moe_of_few(Context& ctx, const MoeWeights& w, In x, In topk_idx, In topk_weight, Acc y) {
  const int64_t T = x.dim(0), D = x.dim(1), K = topk_idx.dim(1);
  const auto num_experts = static_cast<int64_t>(w.w1.size());
  HADAL_CHECK(w.sums == nullptr, "moe_of_few on ", x.str(), ": sums over ranks are for GPUs");
  Tensor sum;
  const Block memory = ctx.memory.take_tensor(stat_dtype(x.dtype()), {1, D}, &sum);
  for (int64_t t = 0; t < T; ++t) {
    const Tensor row = x.rows(t, 1);
    fill(ctx, 0.0, sum);
    for (int64_t k = 0; k < K; ++k) {
      const int64_t choice = topk_idx.row(t).data<int32_t>()[k * topk_idx.stride(1)];
      const int64_t e = choice - std::max<int64_t>(w.first_expert, 0);
      const bool is_here = e >= 0 && e < num_experts;
      HADAL_CHECK(is_here || w.first_expert >= 0, "expert ", choice, " of token ", t,
                  " is outside 0 .. ", num_experts - 1);
      if (!is_here) continue;
      const auto i = static_cast<size_t>(e);
      const Tensor weights = topk_weight.row(t);
      add_expert(ctx, w.w1[i], w.w3[i], w.w2[i], row,
                 load_element(weights.raw(), weights.dtype(), k * weights.stride(0)), sum);
    }
    if (!w.shared_w1.empty()) add_expert(ctx, w.shared_w1, w.shared_w3, w.shared_w2, row, 1.0, sum);
    Tensor to = y.rows(t, 1);
    add_acc(ctx, sum, to);
  }
}

void decode_attention_pays(Context&, const DecodeAttention&, const Packed&, const LatentPages&, In,
                           bool* pays) {
  *pays = false;
}

void decode_attention(Context&, const DecodeAttention&, const Packed&, const LatentPages&, Acc x,
                      Out, Out) {
  HADAL_FAIL("decode_attention on ", x.str(), ": not on the CPU; ask decode_attention_pays first");
}

void latent_inputs(Context& ctx, const Packed& seq, const LatentNorm& norm, In kv_lat, In q_pe,
                   const LatentPages& cache, Out q_out) {
  const int64_t T = kv_lat.dim(0), W = kv_lat.dim(1), Dr = q_pe.dim(2), R = W - Dr;
  Tensor latent, rstd;
  const Block latent_memory = ctx.memory.take_tensor(kv_lat.dtype(), {T, W}, &latent);
  const Block rstd_memory = ctx.memory.take_tensor(stat_dtype(kv_lat.dtype()), {T}, &rstd);
  rmsnorm_forward(ctx, kv_lat.cols(0, R), norm.gain, norm.eps, latent.cols(0, R), rstd);  // [T, R]
  cast(ctx, kv_lat.cols(R, Dr), latent.cols(R, Dr));                                      // [T, Dr]
  Tensor k_pe(latent.cols(R, Dr).raw(), latent.dtype(), {T, 1, Dr}, {W, Dr, 1, 0});
  cpu::rope_apply(ctx, norm.layout, RopeDirection::kForward, seq.rope, k_pe);  // [T, 1, Dr]
  cpu::latent_cache_write(ctx, seq, latent, cache);
  cast(ctx, q_pe, q_out);  // [T, H, Dr]
  cpu::rope_apply(ctx, norm.layout, RopeDirection::kForward, seq.rope,
                  Acc(static_cast<Tensor&>(q_out)));
}

}  // namespace hadal::ops::cpu
