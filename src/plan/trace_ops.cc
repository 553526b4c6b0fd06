// Operations of the parts of a layer, after the kernels of DeepSeek's training trace.
//
// Bytes of memory-bound kernels: what they read and write once. bf16 plans run the same products
// without casts and transposes.
// SPDX-License-Identifier: Apache-2.0
#include "plan/layer_ops.h"

namespace hadal::plan::trace {
namespace {

// Collects operations; tensor-parallel ranks share heads and hidden widths.
class Lister {
 public:
  explicit Lister(const LayerShape& s)
      : plan(*s.plan),
        c(plan.model),
        T(s.tokens),
        R(s.routed_rows),
        tp(plan.mesh.tp),
        D(c.hidden_size),
        H(c.num_attention_heads / tp),
        Dq(H * c.qk_head_dim()),
        Dkv(H * (c.qk_nope_head_dim + c.v_head_dim)),
        Do(H * c.v_head_dim),
        latents(c.q_lora_rank + c.kv_lora_rank),
        down(c.q_lora_rank + c.latent_dim()),
        fp8(plan.recipe == Recipe::kFp8) {}

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
  int64_t row_bytes() const { return fp8 ? 1 : 2; }
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

  const TrainPlan& plan;
  const Config& c;
  const int64_t T, R, tp, D, H, Dq, Dkv, Do, latents, down;
  const bool fp8;
  OpList list;
};

void attention_forward(Lister& l) {
  l.bytes("norm", 8 * l.T * l.D);
  l.cast(l.T * l.D);
  l.product(l.T, l.down, l.D);
  l.up_projections();
  l.add("attention_forward", {l.plan.sequence_length, l.H, l.c.qk_head_dim(), l.c.v_head_dim},
        l.plan.micro_batch_sequences);
  l.cast(l.T * l.Do);
  if (l.fp8) l.bytes("cast_fp8", l.T * l.Do * 7 / 2);  // the E5M6 cache of the output
  l.product(l.T, l.D, l.Do);
  l.add("rest_forward", {l.T, l.D});
}

void attention_backward(Lister& l) {
  l.cast(l.T * l.D);
  if (l.fp8) l.bytes("transpose_fp8", 2 * l.D * l.Do);  // the output matrix
  l.product(l.T, l.Do, l.D);
  if (l.plan.recompute != Recompute::kNone) {
    l.bytes("norm", 8 * l.T * l.D);
    l.up_projections();
  }
  l.add("attention_backward", {l.plan.sequence_length, l.H, l.c.qk_head_dim(), l.c.v_head_dim},
        l.plan.micro_batch_sequences);
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

void dense_forward(Lister& l, int64_t F) {
  l.product(l.T, 2 * F, l.D);
  l.swiglu(l.T, F);
  l.product(l.T, l.D, F);
}

void dense_backward(Lister& l, int64_t F) {
  l.product(l.T, F, l.D);
  l.swiglu_backward(l.T, F);
  l.product(l.T, l.D, 2 * F);
  l.requantise(l.T, 2 * F, l.D);
  l.requantise(l.T, l.D, F);
}

void dense_weight(Lister& l, int64_t F) {
  l.weight(l.T, 2 * F, l.D);
  l.weight(l.T, l.D, F);
}

// Routed experts of this rank: rows arrive, spread to their experts, and are summed again.
void routed_forward(Lister& l) {
  const int64_t F = l.c.moe_intermediate_size, D = l.D, R = l.R;
  l.bytes("permute", 2 * l.row_bytes() * R * D);
  l.grouped(R, 2 * F, D);
  l.swiglu(R, F);
  l.grouped(R, D, F);
  l.bytes("permute", 4 * R * D);
  if (l.fp8) l.bytes("transpose_fp8", 2 * 3 * F * D * l.c.n_routed_experts / l.plan.mesh.ep);
}

void routed_backward(Lister& l) {
  const int64_t F = l.c.moe_intermediate_size, D = l.D, R = l.R;
  l.bytes("permute", 2 * l.row_bytes() * R * D);
  l.grouped(R, F, D);
  l.swiglu_backward(R, F);
  l.grouped(R, D, 2 * F);
  l.bytes("permute", 4 * R * D);
  l.requantise(R, 2 * F, D);
  l.requantise(R, D, F);
}

void norm_forward(Lister& l) {
  l.bytes("norm", 8 * l.T * l.D);
  l.cast(l.T * l.D);
}

void norm_backward(Lister& l) {
  l.cast(l.T * l.D);
  l.bytes("norm", 10 * l.T * l.D);
}

void mlp_forward(Lister& l) {
  norm_forward(l);
  dense_forward(l, l.c.intermediate_size / l.tp);
}
void mlp_backward(Lister& l) {
  norm_backward(l);
  dense_backward(l, l.c.intermediate_size / l.tp);
}
void mlp_weight(Lister& l) { dense_weight(l, l.c.intermediate_size / l.tp); }

void moe_forward(Lister& l) {
  norm_forward(l);
  if (l.c.n_shared_experts > 0) dense_forward(l, l.c.shared_intermediate_size() / l.tp);
  routed_forward(l);
  l.add("router", {l.T, l.c.n_routed_experts});
}
void moe_backward(Lister& l) {
  norm_backward(l);
  if (l.c.n_shared_experts > 0) dense_backward(l, l.c.shared_intermediate_size() / l.tp);
  routed_backward(l);
  l.add("router", {l.T, l.c.n_routed_experts});
}
void moe_weight(Lister& l) {
  const int64_t F = l.c.moe_intermediate_size;
  if (l.c.n_shared_experts > 0) dense_weight(l, l.c.shared_intermediate_size() / l.tp);
  l.grouped_weight(l.R, 2 * F, l.D);
  l.grouped_weight(l.R, l.D, F);
}

void head_forward(Lister& l) {
  const int64_t V = l.c.vocab_size / l.tp;
  l.bytes("norm", 4 * l.T * l.D);
  l.add("gemm_bf16", {l.T, V, l.D});
  l.bytes("elementwise", 6 * l.T * V);
}
void head_backward(Lister& l) {
  const int64_t V = l.c.vocab_size / l.tp;
  l.bytes("elementwise", 6 * l.T * V);
  l.add("gemm_bf16", {l.T, l.D, V});
  l.bytes("norm", 6 * l.T * l.D);
}
void head_weight(Lister& l) { l.add("wgrad_bf16", {l.T, l.c.vocab_size / l.tp, l.D}); }

void embed_forward(Lister& l) { l.bytes("elementwise", 4 * l.T * l.D); }
void embed_weight(Lister& l) { l.bytes("elementwise", 10 * l.T * l.D); }

void mtp_forward(Lister& l) {
  l.bytes("norm", 8 * l.T * l.D);
  l.add("gemm_bf16", {l.T, l.D, 2 * l.D});
}
void mtp_backward(Lister& l) {
  l.add("gemm_bf16", {l.T, 2 * l.D, l.D});
  l.bytes("norm", 12 * l.T * l.D);
}
void mtp_weight(Lister& l) { l.add("wgrad_bf16", {l.T, l.D, 2 * l.D}); }

void nothing(Lister&) {}

// [part][pass]
constexpr void (*kFill[][3])(Lister&) = {
    {attention_forward, attention_backward, attention_weight},
    {mlp_forward, mlp_backward, mlp_weight},
    {moe_forward, moe_backward, moe_weight},
    {head_forward, head_backward, head_weight},
    {embed_forward, nothing, embed_weight},
    {mtp_forward, mtp_backward, mtp_weight},
};

}  // namespace

OpList part_ops(const LayerShape& s, Part part, Pass pass) {
  Lister l(s);
  kFill[static_cast<size_t>(part)][static_cast<size_t>(pass)](l);
  return std::move(l.list);
}

}  // namespace hadal::plan::trace
