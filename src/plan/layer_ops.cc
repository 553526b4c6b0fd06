// Operations of the parts of a layer on a GPU.
//
// Bytes of memory-bound kernels: what they read and write once. bf16 plans run the same products
// without casts and transposes.
// SPDX-License-Identifier: Apache-2.0
#include "plan/layer_ops.h"

#include <cmath>

#include "core/check.h"
#include "plan/host_ops.h"

namespace hadal::plan {
namespace {

// Collects operations; tensor-parallel ranks share heads and hidden widths.
class Lister {
 public:
  explicit Lister(const LayerShape& s)
      : c(s.plan->model),
        T(s.tokens),
        R(s.routed_rows),
        tp(s.plan->mesh.tp),
        D(c.hidden_size),
        H(c.num_attention_heads / tp),
        Dq(H * c.qk_head_dim()),
        Dkv(H * (c.qk_nope_head_dim + c.v_head_dim)),
        Do(H * c.v_head_dim),
        latents(c.q_lora_rank + c.kv_lora_rank),
        down(c.q_lora_rank + c.latent_dim()),
        fp8(s.plan->recipe == Recipe::kFp8) {}

  void product(int64_t tokens, int64_t n, int64_t k) {
    add(fp8 ? "gemm_fp8" : "gemm_bf16", {tokens, n, k});
  }
  void grouped(int64_t rows, int64_t n, int64_t k) {
    add(fp8 ? "grouped_gemm_fp8" : "grouped_gemm_bf16", {rows, n, k});
  }
  void weight(int64_t tokens, int64_t n, int64_t k) {
    add(fp8 ? "wgrad_fp8" : "wgrad_bf16", {tokens, n, k});
  }
  void grouped_weight(int64_t rows, int64_t n, int64_t k) {
    add(fp8 ? "grouped_wgrad_fp8" : "grouped_wgrad_bf16", {rows, n, k});
  }
  // Both operands of a weight gradient are quantised again along tokens, in the input half.
  void requantise(int64_t tokens, int64_t n, int64_t k) {
    if (fp8) bytes("transpose_fp8", 2 * tokens * (n + k));
  }
  // A cast reads bf16 and writes FP8 where it is not part of another kernel.
  void cast(int64_t elements) {
    if (fp8) bytes("cast_fp8", 3 * elements);
  }
  void bytes(const char* op, int64_t count) { add(op, {count}); }
  void add(std::string op, OpShape shape, int64_t times = 1) {
    for (const int64_t dim : shape)
      if (dim == 0) return;
    list.push_back({std::move(op), std::move(shape), times});
  }
  // SwiGLU between the products of an MLP; FP8 writes its output quantised.
  void swiglu(int64_t rows, int64_t F) {
    bytes(fp8 ? "cast_fp8" : "elementwise", rows * F * (fp8 ? 5 : 6));
  }
  void swiglu_backward(int64_t rows, int64_t F) {
    bytes(fp8 ? "cast_fp8" : "elementwise", rows * F * (fp8 ? 12 : 14));
  }
  // Rotation of heads and assembly of keys.
  void rope() { bytes("elementwise", T * H * (4 * c.qk_head_dim() + 4 * c.qk_rope_head_dim)); }
  void up_projections() {
    bytes("norm", 4 * T * latents);
    cast(T * latents);
    product(T, Dq, c.q_lora_rank > 0 ? c.q_lora_rank : D);
    product(T, Dkv, c.kv_lora_rank);
    rope();
  }

  const Config& c;
  const int64_t T, R, tp, D, H, Dq, Dkv, Do, latents, down;
  const bool fp8;
  OpList list;
};

void attention_forward(Lister& l, const LayerShape& s) {
  l.bytes("norm", 8 * l.T * l.D);
  l.cast(l.T * l.D);
  l.product(l.T, l.down, l.D);
  l.up_projections();
  l.add("attention_forward", {s.plan->sequence_length, l.H, l.c.qk_head_dim(), l.c.v_head_dim},
        s.plan->micro_batch_sequences);
  l.cast(l.T * l.Do);
  if (l.fp8) l.bytes("cast_fp8", l.T * l.Do * 7 / 2);  // the E5M6 cache of the output
  l.product(l.T, l.D, l.Do);
  l.add("rest_forward", {l.T, l.D});
}

void attention_backward(Lister& l, const LayerShape& s) {
  l.cast(l.T * l.D);
  if (l.fp8) l.bytes("transpose_fp8", 2 * l.D * l.Do);  // the output matrix
  l.product(l.T, l.Do, l.D);
  if (s.plan->recompute != Recompute::kNone) {
    l.bytes("norm", 8 * l.T * l.D);
    l.up_projections();
  }
  l.add("attention_backward", {s.plan->sequence_length, l.H, l.c.qk_head_dim(), l.c.v_head_dim},
        s.plan->micro_batch_sequences);
  l.rope();
  l.cast(l.T * (l.Dq + l.Dkv));
  l.product(l.T, l.c.q_lora_rank > 0 ? l.c.q_lora_rank : l.D, l.Dq);
  l.product(l.T, l.c.kv_lora_rank, l.Dkv);
  l.bytes("norm", 6 * l.T * l.latents);
  l.cast(l.T * l.down);
  l.product(l.T, l.D, l.down);
  l.bytes("norm", 10 * l.T * l.D);
  l.requantise(l.T, l.down, l.D);
  l.requantise(l.T, l.Dq, l.c.q_lora_rank > 0 ? l.c.q_lora_rank : l.D);
  l.requantise(l.T, l.Dkv, l.c.kv_lora_rank);
  l.requantise(l.T, l.D, l.Do);
  l.add("rest_backward", {l.T, l.D});
}

void attention_weight(Lister& l) {
  l.weight(l.T, l.down, l.D);
  l.weight(l.T, l.Dq, l.c.q_lora_rank > 0 ? l.c.q_lora_rank : l.D);
  l.weight(l.T, l.Dkv, l.c.kv_lora_rank);
  l.weight(l.T, l.D, l.Do);
  l.add("rest_weight", {l.T, l.D});
}

void dense(Lister& l, int64_t F, Pass pass) {
  switch (pass) {
    case Pass::kForward:
      l.product(l.T, 2 * F, l.D);
      l.swiglu(l.T, F);
      l.product(l.T, l.D, F);
      return;
    case Pass::kBackwardInput:
      l.product(l.T, F, l.D);
      l.swiglu_backward(l.T, F);
      l.product(l.T, l.D, 2 * F);
      l.requantise(l.T, 2 * F, l.D);
      l.requantise(l.T, l.D, F);
      return;
    case Pass::kBackwardWeight:
      l.weight(l.T, 2 * F, l.D);
      l.weight(l.T, l.D, F);
      return;
  }
}

// Routed experts of this rank: rows arrive, spread to their experts, and are summed again.
void routed(Lister& l, const LayerShape& s, Pass pass) {
  const int64_t F = l.c.moe_intermediate_size, D = l.D, R = l.R;
  const int64_t row_bytes = l.fp8 ? 1 : 2;
  switch (pass) {
    case Pass::kForward:
      l.bytes("permute", 2 * row_bytes * R * D);
      l.grouped(R, 2 * F, D);
      l.swiglu(R, F);
      l.grouped(R, D, F);
      l.bytes("permute", 4 * R * D);
      if (l.fp8) l.bytes("transpose_fp8", 2 * 3 * F * D * l.c.n_routed_experts / s.plan->mesh.ep);
      return;
    case Pass::kBackwardInput:
      l.bytes("permute", 2 * row_bytes * R * D);
      l.grouped(R, F, D);
      l.swiglu_backward(R, F);
      l.grouped(R, D, 2 * F);
      l.bytes("permute", 4 * R * D);
      l.requantise(R, 2 * F, D);
      l.requantise(R, D, F);
      return;
    case Pass::kBackwardWeight:
      l.grouped_weight(R, 2 * F, D);
      l.grouped_weight(R, D, F);
      return;
  }
}

}  // namespace

LayerShape layer_shape(const TrainPlan& p) {
  const int64_t T = p.micro_batch_tokens();
  const double rows = static_cast<double>(T * p.model.num_experts_per_tok) * p.row_imbalance;
  return {.plan = &p, .tokens = T, .routed_rows = std::llround(rows)};
}

OpList attention_ops(const LayerShape& s, Pass pass) {
  if (s.plan->recipe == Recipe::kF32) return host::attention_ops(s, pass);
  Lister l(s);
  switch (pass) {
    case Pass::kForward:
      attention_forward(l, s);
      break;
    case Pass::kBackwardInput:
      attention_backward(l, s);
      break;
    case Pass::kBackwardWeight:
      attention_weight(l);
      break;
  }
  return std::move(l.list);
}

OpList mlp_ops(const LayerShape& s, bool is_moe, Pass pass) {
  if (s.plan->recipe == Recipe::kF32) return host::mlp_ops(s, is_moe, pass);
  Lister l(s);
  if (pass == Pass::kForward) {
    l.bytes("norm", 8 * l.T * l.D);
    l.cast(l.T * l.D);
  } else if (pass == Pass::kBackwardInput) {
    l.cast(l.T * l.D);
    l.bytes("norm", 10 * l.T * l.D);
  }
  if (!is_moe) {
    dense(l, l.c.intermediate_size / l.tp, pass);
    return std::move(l.list);
  }
  if (l.c.n_shared_experts > 0) dense(l, l.c.shared_intermediate_size() / l.tp, pass);
  routed(l, s, pass);
  if (pass != Pass::kBackwardWeight) l.add("router", {l.T, l.c.n_routed_experts});
  return std::move(l.list);
}

OpList head_ops(const LayerShape& s, Pass pass) {
  if (s.plan->recipe == Recipe::kF32) return host::head_ops(s, pass);
  const Lister l(s);
  const int64_t V = l.c.vocab_size / l.tp;
  switch (pass) {
    case Pass::kForward:
      return {
          {"norm", {4 * l.T * l.D}}, {"gemm_bf16", {l.T, V, l.D}}, {"elementwise", {6 * l.T * V}}};
    case Pass::kBackwardInput:
      return {
          {"elementwise", {6 * l.T * V}}, {"gemm_bf16", {l.T, l.D, V}}, {"norm", {6 * l.T * l.D}}};
    case Pass::kBackwardWeight:
      return {{"wgrad_bf16", {l.T, V, l.D}}};
  }
  HADAL_UNREACHABLE("pass");
}

OpList embed_ops(const LayerShape& s, Pass pass) {
  if (s.plan->recipe == Recipe::kF32) return host::embed_ops(s, pass);
  const int64_t elements = s.tokens * s.plan->model.hidden_size;
  if (pass == Pass::kBackwardInput) return {};
  return {{"elementwise", {(pass == Pass::kForward ? 4 : 10) * elements}}};
}

OpList mtp_projection_ops(const LayerShape& s, Pass pass) {
  if (s.plan->recipe == Recipe::kF32) return host::mtp_projection_ops(s, pass);
  const int64_t T = s.tokens, D = s.plan->model.hidden_size;
  switch (pass) {
    case Pass::kForward:
      return {{"norm", {8 * T * D}}, {"gemm_bf16", {T, D, 2 * D}}};
    case Pass::kBackwardInput:
      return {{"gemm_bf16", {T, 2 * D, D}}, {"norm", {12 * T * D}}};
    case Pass::kBackwardWeight:
      return {{"wgrad_bf16", {T, D, 2 * D}}};
  }
  HADAL_UNREACHABLE("pass");
}

}  // namespace hadal::plan
