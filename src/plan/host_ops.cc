// Operations of the CPU runtime, module by module.
// SPDX-License-Identifier: Apache-2.0
#include "plan/host_ops.h"

#include <algorithm>

#include "core/check.h"
#include "model/bytes.h"

namespace hadal::plan::host {
namespace {

struct Lister {
  explicit Lister(const LayerShape& s)
      : c(s.plan->model),
        T(s.tokens),
        D(c.hidden_size),
        H(c.num_attention_heads),
        Dq(H * c.qk_head_dim()),
        Dkv(H * (c.qk_nope_head_dim + c.v_head_dim)),
        Do(H * c.v_head_dim) {}

  void nt(int64_t m, int64_t n, int64_t k) { add("host_gemm_nt", {m, n, k}); }
  void nn(int64_t m, int64_t n, int64_t k) { add("host_gemm_nn", {m, n, k}); }
  void tn(int64_t tokens, int64_t n, int64_t k) { add("host_gemm_tn", {tokens, n, k}); }
  void add(const char* op, OpShape shape, int64_t times = 1) {
    list.push_back({op, std::move(shape), times});
  }

  const Config& c;
  const int64_t T, D, H, Dq, Dkv, Do;
  OpList list;
};

// mla.cc: project().
void project(Lister& l) {
  l.nt(l.T, l.Dq, l.c.q_lora_rank > 0 ? l.c.q_lora_rank : l.D);
  l.nt(l.T, l.Dkv, l.c.kv_lora_rank);
  l.add("host_rope", {l.T, l.H, l.c.qk_rope_head_dim});
}

void attention_forward(Lister& l, const LayerShape& s) {
  l.add("host_norm_forward", {l.T, l.D});
  if (l.c.q_lora_rank > 0) {
    l.nt(l.T, l.c.q_lora_rank, l.D);
    l.add("host_norm_forward", {l.T, l.c.q_lora_rank});
  }
  l.nt(l.T, l.c.latent_dim(), l.D);
  l.add("host_norm_forward", {l.T, l.c.kv_lora_rank});
  project(l);
  l.add("host_attention_forward", {s.plan->sequence_length, l.H, l.c.qk_head_dim(), l.c.v_head_dim},
        s.plan->micro_batch_sequences);
  l.nt(l.T, l.D, l.Do);
  l.add("host_add", {l.T * l.D});
}

void attention_backward(Lister& l, const LayerShape& s) {
  l.add("host_norm_recompute", {l.T, l.D});
  if (l.c.q_lora_rank > 0) l.add("host_norm_recompute", {l.T, l.c.q_lora_rank});
  l.add("host_norm_recompute", {l.T, l.c.kv_lora_rank});
  project(l);
  l.nn(l.T, l.Do, l.D);
  l.add("host_attention_backward",
        {s.plan->sequence_length, l.H, l.c.qk_head_dim(), l.c.v_head_dim},
        s.plan->micro_batch_sequences);
  l.add("host_rope", {l.T, l.H, l.c.qk_rope_head_dim});
  l.nn(l.T, l.c.kv_lora_rank, l.Dkv);
  l.add("host_norm_backward", {l.T, l.c.kv_lora_rank});
  l.nn(l.T, l.D, l.c.latent_dim());
  if (l.c.q_lora_rank > 0) {
    l.nn(l.T, l.c.q_lora_rank, l.Dq);
    l.add("host_norm_backward", {l.T, l.c.q_lora_rank});
    l.nn(l.T, l.D, l.c.q_lora_rank);
  } else {
    l.nn(l.T, l.D, l.Dq);
  }
  l.add("host_norm_backward", {l.T, l.D});
  l.add("host_add", {l.T * l.D});
  l.add("host_copy", {l.T * l.D}, 2);  // dx of the layer above
}

void attention_weight(Lister& l) {
  if (l.c.q_lora_rank > 0) {
    l.tn(l.T, l.c.q_lora_rank, l.D);
    l.tn(l.T, l.Dq, l.c.q_lora_rank);
  } else {
    l.tn(l.T, l.Dq, l.D);
  }
  l.tn(l.T, l.c.latent_dim(), l.D);
  l.tn(l.T, l.Dkv, l.c.kv_lora_rank);
  l.tn(l.T, l.D, l.Do);
}

void dense(Lister& l, int64_t F, Pass pass) {
  switch (pass) {
    case Pass::kForward:
      l.nt(l.T, F, l.D);
      l.nt(l.T, F, l.D);
      l.add("host_swiglu_forward", {l.T, F});
      l.nt(l.T, l.D, F);
      return;
    case Pass::kBackwardInput:
      l.nn(l.T, F, l.D);
      l.add("host_swiglu_backward", {l.T, F});
      l.nn(l.T, l.D, F);
      l.nn(l.T, l.D, F);
      return;
    case Pass::kBackwardWeight:
      l.tn(l.T, F, l.D);
      l.tn(l.T, F, l.D);
      l.tn(l.T, l.D, F);
      return;
  }
}

void routed(Lister& l, Pass pass) {
  const int64_t F = l.c.moe_intermediate_size, D = l.D, E = l.c.n_routed_experts;
  const int64_t R = l.T * l.c.num_experts_per_tok;
  switch (pass) {
    case Pass::kForward:
      l.nt(l.T, E, D);
      l.add("host_gate_forward", {l.T, E});
      l.add("host_scatter_rows", {R, D});
      l.add("host_grouped_nt", {R, F, D, E}, 2);
      l.add("host_swiglu_forward", {R, F});
      l.add("host_grouped_nt", {R, D, F, E});
      l.add("host_combine_rows", {R, D});
      return;
    case Pass::kBackwardInput:
      l.add("host_scatter_rows", {R, D});
      l.add("host_grouped_nn", {R, F, D, E});
      l.add("host_swiglu_backward", {R, F});
      l.add("host_grouped_nn", {R, D, F, E}, 2);
      l.add("host_combine_rows", {R, D});
      l.add("host_gate_backward", {l.T, E});
      l.nn(l.T, D, E);
      return;
    case Pass::kBackwardWeight:
      l.add("host_grouped_tn", {R, F, D, E}, 2);
      l.add("host_grouped_tn", {R, D, F, E});
      l.tn(l.T, E, D);
      return;
  }
}

}  // namespace

OpList attention_ops(const LayerShape& s, Pass pass) {
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
  Lister l(s);
  if (pass == Pass::kForward) {
    l.add("host_norm_forward", {l.T, l.D});
    l.add("host_add", {l.T * l.D});
  } else if (pass == Pass::kBackwardInput) {
    l.add("host_norm_recompute", {l.T, l.D});
    l.add("host_norm_backward", {l.T, l.D});
    l.add("host_copy", {l.T * l.D});
    l.add("host_add", {l.T * l.D});
  }
  if (!is_moe) {
    dense(l, l.c.intermediate_size, pass);
    return std::move(l.list);
  }
  if (l.c.n_shared_experts > 0) {
    dense(l, l.c.shared_intermediate_size(), pass);
    if (pass != Pass::kBackwardWeight) l.add("host_add", {l.T * l.D});
  }
  routed(l, pass);
  return std::move(l.list);
}

OpList head_ops(const LayerShape& s, Pass pass) {
  Lister l(s);
  const int64_t V = l.c.vocab_size;
  const bool again = l.T > loss_chunk_tokens(l.c);  // logits were not kept
  switch (pass) {
    case Pass::kForward:
      l.add("host_norm_forward", {l.T, l.D});
      l.nt(l.T, V, l.D);
      l.add("host_cross_entropy_forward", {l.T, V});
      break;
    case Pass::kBackwardInput:
      if (again) l.nt(l.T, V, l.D);
      l.add("host_cross_entropy_backward", {l.T, V});
      l.nn(l.T, l.D, V);
      l.add("host_norm_backward", {l.T, l.D});
      break;
    case Pass::kBackwardWeight:
      if (again) {
        l.nt(l.T, V, l.D);
        l.add("host_cross_entropy_backward", {l.T, V});
      }
      l.tn(l.T, V, l.D);
      break;
  }
  return std::move(l.list);
}

OpList embed_ops(const LayerShape& s, Pass pass) {
  Lister l(s);
  // Rows are copied one way and added the other.
  if (pass == Pass::kForward) l.add("host_copy", {l.T * l.D});
  if (pass == Pass::kBackwardWeight) l.add("host_add", {l.T * l.D});
  return std::move(l.list);
}

OpList mtp_projection_ops(const LayerShape& s, Pass pass) {
  Lister l(s);
  switch (pass) {
    case Pass::kForward:
      l.add("host_copy", {l.T * l.D});
      l.add("host_norm_forward", {l.T, l.D}, 2);
      l.nt(l.T, l.D, 2 * l.D);
      break;
    case Pass::kBackwardInput:
      l.add("host_norm_recompute", {l.T, l.D}, 2);
      l.nn(l.T, 2 * l.D, l.D);
      l.add("host_norm_backward", {l.T, l.D}, 2);
      l.add("host_add", {l.T * l.D});
      break;
    case Pass::kBackwardWeight:
      l.tn(l.T, l.D, 2 * l.D);
      break;
  }
  return std::move(l.list);
}

OpList optimizer_ops(const TrainPlan& plan) {
  const ParamCounts n = count_params(plan.model);
  const int64_t all = n.main + n.mtp;
  return {{"host_fill", {all}}, {"host_sum_squares", {all}}, {"host_adamw", {all}}};
}

OpList all_ops(const TrainPlan& plan) {
  const LayerShape s = layer_shape(plan);
  OpList all = optimizer_ops(plan);
  const auto add = [&](const OpList& ops) { all.insert(all.end(), ops.begin(), ops.end()); };
  for (const Pass pass : kPasses) {
    add(host::attention_ops(s, pass));
    if (plan.model.first_k_dense_replace > 0) add(host::mlp_ops(s, false, pass));
    if (plan.model.num_moe_layers() > 0) add(host::mlp_ops(s, true, pass));
    add(host::head_ops(s, pass));
    add(host::embed_ops(s, pass));
    if (plan.model.num_nextn_predict_layers > 0) add(host::mtp_projection_ops(s, pass));
  }
  const auto key = [](const OpUse& use) { return std::pair(use.op, use.shape); };
  std::sort(all.begin(), all.end(),
            [&](const OpUse& a, const OpUse& b) { return key(a) < key(b); });
  all.erase(std::unique(all.begin(), all.end(),
                        [&](const OpUse& a, const OpUse& b) { return key(a) == key(b); }),
            all.end());
  return all;
}

}  // namespace hadal::plan::host
