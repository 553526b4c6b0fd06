// Planned against allocated: the memory of our own training step, and the operations it is made of.
// SPDX-License-Identifier: Apache-2.0
#include "plan/runtime_memory.h"

#include <gtest/gtest.h>

#include "plan/runtime_ops.h"
#include "train/learner.h"

namespace hadal::plan {
namespace {

// A few layers of the quickstart's shape.
TrainPlan small_plan(int64_t layers, int64_t mtp, int64_t q_lora_rank) {
  TrainPlan p = read_train_plan("configs/plans/quickstart_cpu.json", {}, Rates::kWithout);
  p.model.num_hidden_layers = layers;
  p.model.num_nextn_predict_layers = mtp;
  p.model.q_lora_rank = q_lora_rank;
  p.model.vocab_size = 512;
  p.sequence_length = 64;
  p.batch_sequences = p.micro_batch_sequences = 2;
  return p;
}

size_t allocated(const TrainPlan& p) {
  ThreadPool threads(1);
  Pool memory;
  Context ctx{.device = {}, .stream = {}, .threads = threads, .memory = memory};
  train::Learner learner(ctx, p.model, DType::kF32, p.micro_batch_tokens());
  init_params(ctx, p.model, 1, learner.masters().tree);
  learner.masters_changed();
  std::vector<Sequence> batch(static_cast<size_t>(p.micro_batch_sequences));
  for (Sequence& s : batch)
    for (int64_t t = 0; t < p.sequence_length; ++t) {
      s.ids.push_back(static_cast<int32_t>(t * 5 % 512));
      s.targets.push_back(static_cast<int32_t>(t * 7 % 512));
    }
  learner.step({batch}, {.lr = 1e-3}, 1);
  return memory.peak_bytes();
}

TEST(RuntimeMemory, IsWhatThePoolHoldsAtMost) {
  using Shape3 = std::tuple<int64_t, int64_t, int64_t>;
  for (const auto& [layers, mtp, rank] :
       {Shape3{3, 1, 96}, Shape3{2, 0, 96}, Shape3{2, 1, 0}, Shape3{1, 0, 96}}) {
    const TrainPlan p = small_plan(layers, mtp, rank);
    // Layer 0 is dense: the last of these has no experts.
    const auto measured = static_cast<double>(allocated(p));
    EXPECT_NEAR(runtime_memory(p).device() / measured, 1.0, 0.01)
        << layers << " layers, " << mtp << " MTP, q_lora_rank " << rank;
  }
}

TEST(RuntimeOps, ListsEveryOperationOnce) {
  const TrainPlan p = small_plan(3, 1, 96);
  const OpList ops = runtime::all_ops(p);
  EXPECT_GT(ops.size(), 40u);
  for (size_t i = 1; i < ops.size(); ++i)
    EXPECT_FALSE(ops[i].op == ops[i - 1].op && ops[i].shape == ops[i - 1].shape);
  // Products of a forward: twice the matrices that a token uses, for each token.
  double flops = 0.0;
  const LayerShape s = layer_shape(p);
  for (const bool is_moe : {false, true, true, true}) {
    for (const OpUse& use : part_ops(s, Part::kAttention, Pass::kForward))
      if (use.op == "gemm_nt") flops += work_of(use.op, use.shape);
    for (const OpUse& use : part_ops(s, is_moe ? Part::kMoe : Part::kDense, Pass::kForward))
      if (use.op == "gemm_nt" || use.op == "gemm_nt_f32" || use.op == "grouped_gemm_nt")
        flops += static_cast<double>(use.times) * 2.0 * static_cast<double>(use.shape[0]) *
                 static_cast<double>(use.shape[1]) * static_cast<double>(use.shape[2]);
  }
  const Config& c = p.model;
  const double attention = static_cast<double>(
      c.hidden_size * (c.q_lora_rank + c.latent_dim() + c.num_attention_heads * c.v_head_dim) +
      c.num_attention_heads *
          (c.q_lora_rank * c.qk_head_dim() + c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)));
  const double moe = static_cast<double>(
      c.hidden_size *
      (3 * c.moe_intermediate_size * (c.num_experts_per_tok + 1) + c.n_routed_experts));
  const double dense = static_cast<double>(3 * c.hidden_size * c.intermediate_size);
  EXPECT_DOUBLE_EQ(flops, 2.0 * 128.0 * (4 * attention + dense + 3 * moe));
}

}  // namespace
}  // namespace hadal::plan
