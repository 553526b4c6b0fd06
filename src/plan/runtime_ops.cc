// Operations of our own training step, module by module.
//
//   T tokens   S sequences   D model width   H heads   E experts   El of this rank   K choices
//   R routed rows
//   F hidden width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "plan/runtime_ops.h"

#include <algorithm>

#include "core/check.h"
#include "model/bytes.h"
#include "plan/runtime_mesh.h"

namespace hadal::plan::runtime {
namespace {

struct Lister {
  explicit Lister(const LayerShape& s)
      : c(s.plan->model),
        S(s.plan->micro_batch_sequences),
        T(s.tokens),
        D(c.hidden_size),
        H(c.num_attention_heads),
        Dr(c.qk_rope_head_dim),
        Dq(H * c.qk_head_dim()),
        Dkv(H * (c.qk_nope_head_dim + c.v_head_dim)),
        Do(H * c.v_head_dim),
        Rq(c.q_lora_rank),
        Rkv(c.kv_lora_rank),
        E(c.n_routed_experts),
        El(E / s.plan->mesh.ep),
        K(c.num_experts_per_tok),
        R(s.routed_rows / K * K),
        device(device_of(s.plan->recipe)) {}

  void nt(int64_t m, int64_t n, int64_t k) { add("gemm_nt", {m, n, k}); }      // [m,n] = [m,k]
  void nn(int64_t m, int64_t n, int64_t k) { add("gemm_nn", {m, n, k}); }      // [m,n] = [m,k]
  void tn(int64_t t, int64_t n, int64_t k) { add("gemm_tn_acc", {t, n, k}); }  // [n,k] += [t,.]
  void add(const char* op, OpShape shape, int64_t times = 1) {
    list.push_back({op, std::move(shape), times});
  }
  OpShape attention() const { return {S, s_length(), H, c.qk_head_dim(), c.v_head_dim}; }
  int64_t s_length() const { return T / S; }

  const Config& c;
  const int64_t S, T, D, H, Dr, Dq, Dkv, Do, Rq, Rkv, E, El, K, R;
  const DeviceKind device;
  OpList list;
};

using Fill = void (*)(Lister&);
void nothing(Lister&) {}

// mla.cc: project(), rotate().
void rotate(Lister& l) {
  l.add("rope_apply", {l.T, l.H, l.Dr});
  l.add("rope_apply", {l.T, 1, l.Dr});
}

void project(Lister& l) {
  l.nt(l.T, l.Dq, l.Rq > 0 ? l.Rq : l.D);
  l.nt(l.T, l.Dkv, l.Rkv);
  l.add("cast", {l.T * l.Dr});
  rotate(l);
}

void attention_forward(Lister& l) {
  l.add("rmsnorm_forward", {l.T, l.D});
  if (l.Rq > 0) {
    l.nt(l.T, l.Rq, l.D);
    l.add("rmsnorm_forward", {l.T, l.Rq});
  }
  l.nt(l.T, l.c.latent_dim(), l.D);
  l.add("rmsnorm_forward", {l.T, l.Rkv});
  project(l);
  l.add("mla_attention_forward", l.attention());
  l.nt(l.T, l.D, l.Do);
  l.add("add_acc", {l.T * l.D});
}

void attention_backward(Lister& l) {
  l.add("rmsnorm_recompute", {l.T, l.D});
  if (l.Rq > 0) l.add("rmsnorm_recompute", {l.T, l.Rq});
  l.add("rmsnorm_recompute", {l.T, l.Rkv});
  project(l);
  l.nn(l.T, l.Do, l.D);
  l.add("mla_attention_backward", l.attention());
  rotate(l);
  l.nn(l.T, l.Rkv, l.Dkv);
  l.add("rmsnorm_backward", {l.T, l.Rkv});
  l.add("cast", {l.T * l.Dr});
  l.nn(l.T, l.D, l.c.latent_dim());
  if (l.Rq > 0) {
    l.nn(l.T, l.Rq, l.Dq);
    l.add("rmsnorm_backward", {l.T, l.Rq});
    l.add("gemm_nn_acc", {l.T, l.D, l.Rq});
  } else {
    l.add("gemm_nn_acc", {l.T, l.D, l.Dq});
  }
  l.add("rmsnorm_backward", {l.T, l.D});
  l.add("add_acc", {l.T * l.D});
  l.add("cast", {l.T * l.D}, 2);  // dx of the layer above, and the block's own copy
}

void attention_weight(Lister& l) {
  if (l.Rq > 0) {
    l.tn(l.T, l.Rq, l.D);
    l.tn(l.T, l.Dq, l.Rq);
    l.add("add_acc", {l.Rq});
  } else {
    l.tn(l.T, l.Dq, l.D);
  }
  l.tn(l.T, l.c.latent_dim(), l.D);
  l.tn(l.T, l.Dkv, l.Rkv);
  l.tn(l.T, l.D, l.Do);
  l.add("add_acc", {l.Rkv});
  l.add("add_acc", {l.D});
}

// mlp.cc
void mlp_forward(Lister& l, int64_t F) {
  l.nt(l.T, F, l.D);
  l.nt(l.T, F, l.D);
  l.add("swiglu_forward", {l.T, F});
  l.nt(l.T, l.D, F);
}

void mlp_backward(Lister& l, int64_t F) {
  l.nn(l.T, F, l.D);
  l.add("swiglu_backward", {l.T, F});
  l.nn(l.T, l.D, F);
  l.add("gemm_nn_acc", {l.T, l.D, F});
}

void mlp_weight(Lister& l, int64_t F) {
  l.tn(l.T, F, l.D);
  l.tn(l.T, F, l.D);
  l.tn(l.T, l.D, F);
  l.add("add_acc", {l.D});  // of the norm
}

// block.cc, around the MLP or the experts.
void norm_forward(Lister& l) {
  l.add("rmsnorm_forward", {l.T, l.D});
  l.add("add", {l.T * l.D});
}

void norm_backward(Lister& l) {
  l.add("rmsnorm_recompute", {l.T, l.D});
  l.add("cast", {l.T * l.D});
  l.add("rmsnorm_backward", {l.T, l.D});
  l.add("add_acc", {l.T * l.D});
}

void dense_forward(Lister& l) {
  norm_forward(l);
  mlp_forward(l, l.c.intermediate_size);
}
void dense_backward(Lister& l) {
  norm_backward(l);
  mlp_backward(l, l.c.intermediate_size);
}
void dense_weight(Lister& l) { mlp_weight(l, l.c.intermediate_size); }

// moe.cc, gate.cc, experts.cc, exchange.cc; a rank that has all experts exchanges by itself.
void moe_forward(Lister& l) {
  const int64_t F = l.c.moe_intermediate_size;
  norm_forward(l);
  l.add("gemm_nt_f32", {l.T, l.E, l.D});
  l.add("gate_forward", {l.T, l.E, l.K});
  l.add("balance_loss_forward", {l.T, l.E, l.S});
  if (l.El == l.E) {
    l.add("expert_layout", {l.R, l.E});
    l.add("scatter_rows", {l.R, l.D, l.K});
    l.add("scatter_choices", {l.R, l.E});
  }
  if (l.c.n_shared_experts > 0) {
    mlp_forward(l, l.c.shared_intermediate_size());
    l.add("add_acc", {l.T * l.D});
  }
  l.add("grouped_gemm_nt", {l.R, F, l.D, l.El}, 2);
  l.add("grouped_swiglu_forward", {l.R, F, l.El});
  l.add("grouped_gemm_nt", {l.R, l.D, F, l.El});
  if (l.El == l.E) l.add("combine_rows", {l.R, l.D, l.K});
  l.add("count_choices", {l.R, l.E});
}

void moe_backward(Lister& l) {
  const int64_t F = l.c.moe_intermediate_size;
  norm_backward(l);
  if (l.El == l.E) l.add("scatter_rows", {l.R, l.D, l.K});
  if (l.c.n_shared_experts > 0) {
    mlp_backward(l, l.c.shared_intermediate_size());
    l.add("add_acc", {l.T * l.D});
  }
  l.add("grouped_gemm_nn", {l.R, F, l.D, l.El});
  l.add("grouped_swiglu_backward", {l.R, F, l.El});
  l.add("grouped_gemm_nn", {l.R, l.D, F, l.El});
  l.add("grouped_gemm_nn_acc", {l.R, l.D, F, l.El});
  if (l.El == l.E) {
    l.add("combine_rows", {l.R, l.D, l.K});
    l.add("gather_choices", {l.R, l.E});
  }
  l.add("gate_backward", {l.T, l.E, l.K});
  l.add("balance_loss_backward", {l.T, l.E, l.S});
  l.add("gemm_nn_acc_f32", {l.T, l.D, l.E});
}

void moe_weight(Lister& l) {
  const int64_t F = l.c.moe_intermediate_size;
  l.add("gemm_tn_acc_f32", {l.T, l.E, l.D});
  l.add("grouped_gemm_tn_acc", {l.R, F, l.D, l.El}, 2);
  l.add("grouped_gemm_tn_acc", {l.R, l.D, F, l.El});
  if (l.c.n_shared_experts > 0) mlp_weight(l, l.c.shared_intermediate_size());
}

// head.cc, with the norm before it; in chunks where all logits are not kept at once.
struct Chunks {
  explicit Chunks(const Lister& l)
      : tokens(std::min(l.T, loss_chunk_tokens(l.c, l.device))),
        count((l.T + tokens - 1) / tokens) {}
  int64_t tokens, count;
};

void logits(Lister& l, const Chunks& chunks) {
  l.add("gemm_nt_f32", {chunks.tokens, l.c.vocab_size, l.D}, chunks.count);
}

void head_forward(Lister& l) {
  const Chunks chunks(l);
  l.add("rmsnorm_forward", {l.T, l.D});
  logits(l, chunks);
  l.add("cross_entropy_forward", {chunks.tokens, l.c.vocab_size}, chunks.count);
  l.add("sum_acc", {l.T});
}

void head_backward(Lister& l) {
  const Chunks chunks(l);
  if (chunks.count > 1) logits(l, chunks);
  l.add("cross_entropy_backward", {chunks.tokens, l.c.vocab_size}, chunks.count);
  l.add("gemm_nn", {chunks.tokens, l.D, l.c.vocab_size}, chunks.count);
  l.add("rmsnorm_backward", {l.T, l.D});
}

void head_weight(Lister& l) {
  const Chunks chunks(l);
  if (chunks.count > 1) {
    logits(l, chunks);
    l.add("cross_entropy_backward", {chunks.tokens, l.c.vocab_size}, chunks.count);
  }
  l.add("gemm_tn_acc", {chunks.tokens, l.c.vocab_size, l.D}, chunks.count);
  l.add("add_acc", {l.D});
}

// embed.h, and the rotation table that a batch brings.
void embed_forward(Lister& l) {
  l.add("rope_table", {l.T, l.Dr});
  l.add("embed_forward", {l.T, l.D});
}
void embed_weight(Lister& l) { l.add("embed_backward_acc", {l.T, l.D, l.c.vocab_size}); }

// mtp.cc; the norm after its block is counted with the head.
void mtp_forward(Lister& l) {
  l.add("embed_forward", {l.T, l.D});  // rows of the state; the embedding itself is a kEmbed
  l.add("rmsnorm_forward", {l.T, l.D}, 2);
  l.nt(l.T, l.D, 2 * l.D);
}
void mtp_backward(Lister& l) {
  l.add("embed_forward", {l.T, l.D});
  l.add("rmsnorm_recompute", {l.T, l.D}, 2);
  l.nn(l.T, 2 * l.D, l.D);
  l.add("rmsnorm_backward", {l.T, l.D}, 2);
  l.add("embed_backward_acc", {l.T, l.D, l.T});  // rows of the state
}
void mtp_weight(Lister& l) {
  l.tn(l.T, l.D, 2 * l.D);
  l.add("add_acc", {l.D}, 2);
}

constexpr Fill kFill[][3] = {
    {attention_forward, attention_backward, attention_weight},
    {dense_forward, dense_backward, dense_weight},
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

OpUse exchange_op(const LayerShape& s, Trip trip) {
  constexpr const char* kNames[] = {"exchange_dispatch", "exchange_combine",
                                    "exchange_combine_backward", "exchange_dispatch_backward"};
  const Config& c = s.plan->model;
  return {kNames[static_cast<size_t>(trip)],
          {s.tokens, c.hidden_size, c.num_experts_per_tok, c.n_routed_experts, s.plan->mesh.ep}};
}

// stage.cc: run_backward() and forward() copy what comes in, and what goes out backwards.
OpList edge_ops(const TrainPlan& p, const StageRange& stage, Pass pass) {
  const int64_t copies = pass == Pass::kForward         ? !stage.has_embed
                         : pass == Pass::kBackwardInput ? !stage.has_embed + !stage.has_head
                                                        : 0;
  if (copies == 0) return {};
  return {{"cast", {p.micro_batch_tokens() * p.model.hidden_size}, copies}};
}

OpUse message_op(const TrainPlan& p) {
  return {"transfer", {p.micro_batch_tokens() * p.model.hidden_size}};
}

OpList optimizer_ops(const TrainPlan& plan, int pp) {
  const Config& c = plan.model;
  const RankShare held = share_of(plan, pp);
  int64_t experts = 0, dense = 0, embedding = 0;
  for_each_param(c, [&](const ParamInfo& info) {
    if (!info.trained() || (held.holds && !held.holds(info))) return;
    (info.expert >= 0 ? experts : dense) += info.shape.num_elements();
    if (info.name == "embed") embedding = info.shape.num_elements();
  });
  const bool pair = embedding > 0 && shares_embedding(plan);
  const int64_t share = experts / held.experts.ways + dense / held.dense.ways;
  // The last pipeline rank leaves its copy of the embedding to the first.
  const int64_t counted = pair && pp > 0 ? share - embedding / held.dense.ways : share;
  const int64_t ranks = plan.mesh.num_ranks();
  OpList ops = {
      {"fill_f32", {experts + dense}}, {"sum_squares_acc", {counted}}, {"adamw", {share}}};
  if (plan.recipe == Recipe::kBf16) ops.push_back({"cast_f32", {share}});
  if (ranks == 1) return ops;
  const auto regions = [&](const char* op) {
    if (held.experts.ways > 1 && experts > 0) ops.push_back({op, {experts, held.experts.ways}});
    if (held.dense.ways > 1) ops.push_back({op, {dense, held.dense.ways}});
  };
  if (pair) ops.push_back({"all_reduce", {embedding, 2}});
  regions("reduce_scatter");
  regions("all_gather");
  // What was measured, counts of tokens, and the norm.
  const int64_t depths = c.num_nextn_predict_layers, moe = c.num_moe_layers();
  ops.push_back({"all_reduce_f64", {1 + depths + moe, ranks}});
  if (moe > 0) ops.push_back({"all_reduce_f64", {moe * c.n_routed_experts, ranks}});
  ops.push_back({"all_reduce_f64", {1, ranks}});
  return ops;
}

OpList all_ops(const TrainPlan& plan) {
  const LayerShape s = layer_shape(plan);
  const auto has = [&](Part part) {
    return part == Part::kDense           ? plan.model.first_k_dense_replace > 0
           : part == Part::kMoe           ? plan.model.num_moe_layers() > 0
           : part == Part::kMtpProjection ? plan.model.num_nextn_predict_layers > 0
                                          : true;
  };
  OpList all;
  const auto add = [&](const OpList& ops) { all.insert(all.end(), ops.begin(), ops.end()); };
  for (int pp = 0; pp < plan.mesh.pp; ++pp) add(optimizer_ops(plan, pp));
  for (const Pass pass : kPasses) {
    for (const Part part : kParts)
      if (has(part)) add(runtime::part_ops(s, part, pass));
    for (const StageRange& stage : stage_ranges(parallel_of(plan), plan.model))
      add(edge_ops(plan, stage, pass));
  }
  if (plan.mesh.pp > 1) add({message_op(plan)});
  if (plan.mesh.ep > 1)
    for (const Trip trip :
         {Trip::kDispatch, Trip::kCombine, Trip::kCombineBackward, Trip::kDispatchBackward})
      add({exchange_op(s, trip)});
  const auto key = [](const OpUse& use) { return std::pair(use.op, use.shape); };
  std::sort(all.begin(), all.end(),
            [&](const OpUse& a, const OpUse& b) { return key(a) < key(b); });
  all.erase(std::unique(all.begin(), all.end(),
                        [&](const OpUse& a, const OpUse& b) { return key(a) == key(b); }),
            all.end());
  return all;
}

}  // namespace hadal::plan::runtime
