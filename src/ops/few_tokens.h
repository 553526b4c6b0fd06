// Fused ops for steps of a few tokens, where each launch and each pass over memory counts.
//
//   T tokens   D model width   F hidden width   K choices of a token   H heads
//   R latent width   Dr rope width
//
// They compute what their parts in gemm.h, activation.h, norm.h, rope.h and attention.h compute.
// Deterministic; a token's result does not depend on the other tokens.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "ops/attention.h"
#include "ops/peer.h"
#include "ops/rope.h"

namespace hadal::ops {

// w1, w3 [F,D], w2 [D,F] of each expert; the shared expert's, or a dense MLP's, may be empty.
struct MoeWeights {
  std::span<const Operand> w1, w3, w2;
  Operand shared_w1, shared_w3, shared_w2;
  // The first of the experts that are here, where others are elsewhere, whose choices are left out;
  // -1: all are here.
  int64_t first_expert = -1;
  // Ranks whose terms are added to those of this one; on GPUs alone.
  const PeerSums* sums = nullptr;
};
// y [T,D] += sum over the choices of weight * w2[e] swiglu(w1[e] x, w3[e] x), and the shared
// expert's with weight 1. x [T,D]; topk_idx [T,K] i32, topk_weight [T,K]; K may be 0. Hidden rows
// are rounded to the type of x, sums over F and experts are in the statistics type.
// Whether moe_of_few() is there for these and pays: not on the CPU, not in Numerics::kInvariant.
HADAL_OP(moe_of_few_pays, Context& ctx, const MoeWeights& w, In x, bool* pays)
HADAL_OP(moe_of_few, Context& ctx, const MoeWeights& w, In x, In topk_idx, In topk_weight, Acc y)

// The attention half of a layer over the latent cache, with the weights that it needs.
struct DecodeAttention {
  Operand wq, wq_a, wq_b;  // wq, or wq_a and wq_b
  Operand wkv_a, wkv_b, wo;
  Tensor attn_norm, q_norm, kv_norm, ffn_norm;  // gains; q_norm with wq_a
  Tensor gate_weight;                           // [E,D]; empty in a dense layer
  RopeLayout layout;
  double eps, scale;  // of norms; of scores
  int64_t num_heads, nope_dim, rope_dim, v_dim;
  const PeerSums* sums = nullptr;  // ranks that have the other heads
};
// Whether decode_attention() is there for these and pays: not on the CPU, not in
// Numerics::kInvariant.
HADAL_OP(decode_attention_pays, Context& ctx, const DecodeAttention& layer, const Packed& seq,
         const LatentPages& cache, In x, bool* pays)
// x [T,D] += attention of its norm, the tokens' latents into the cache first; normed [T,D] = the
// FFN's norm of that; logits [T,E] of the gate. REQUIRES: decode_attention_pays().
HADAL_OP(decode_attention, Context& ctx, const DecodeAttention& layer, const Packed& seq,
         const LatentPages& cache, Acc x, Out normed, Out logits)

struct LatentNorm {
  RopeLayout layout;
  double eps;
  Tensor gain;  // [R]
};
// What attention over the cache reads. kv_lat [T,R+Dr]: its latent is normed, its key turned, both
// rounded and stored in the cache at the tokens' positions; q_pe [T,H,Dr] is turned into q_out.
HADAL_OP(latent_inputs, Context& ctx, const Packed& seq, const LatentNorm& norm, In kv_lat, In q_pe,
         const LatentPages& cache, Out q_out)

}  // namespace hadal::ops
