// Planned against allocated: the memory of our own training step, and the operations it is made of.
// SPDX-License-Identifier: Apache-2.0
#include "plan/runtime_memory.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/rng.h"
#include "parallel/launch.h"
#include "plan/runtime_mesh.h"
#include "plan/runtime_ops.h"
#include "tests/unit/expect_error.h"
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

// The most that the pool of a rank held in a step; team: of one among others.
struct Held {
  size_t bytes = 0;
  double row_imbalance = 1.0;  // of the rank, in the last MoE layer: backward begins there
};
Held allocated(const TrainPlan& p, Team* team) {
  ThreadPool threads(1);
  Pool memory;
  Context ctx{.device = {}, .stream = {}, .threads = threads, .memory = memory};
  train::Learner learner(ctx, p.model, DType::kF32, p.micro_batch_tokens(),
                         {.team = team, .max_micro_batches = p.num_microbatches()});
  init_params(ctx, p.model, 1, learner.masters().tree);
  learner.masters_changed();
  const Rng rng(1, stream_id("runtime memory"));
  uint64_t drawn = 0;
  const auto id = [&] {
    return static_cast<int32_t>(rng.u64(drawn++) % static_cast<uint64_t>(p.model.vocab_size));
  };
  std::vector<std::vector<Sequence>> batches(static_cast<size_t>(p.num_microbatches() * p.mesh.dp));
  for (auto& batch : batches)
    for (int64_t i = 0; i < p.micro_batch_sequences; ++i) {
      Sequence s;
      for (int64_t t = 0; t < p.sequence_length; ++t) {
        s.ids.push_back(id());
        s.targets.push_back(id());
      }
      batch.push_back(std::move(s));
    }
  const train::StepResult r = learner.step(batches, {.lr = 1e-3}, 1);
  Held held{.bytes = memory.peak_bytes()};
  if (p.mesh.ep == 1) return held;
  const std::vector<int64_t>& layer = r.counts.back();
  const auto rows = [&](int64_t first, int64_t count) {
    return static_cast<double>(
        std::accumulate(layer.begin() + first, layer.begin() + first + count, int64_t{0}));
  };
  held.row_imbalance = p.mesh.ep * rows(team->first_expert(), team->num_local_experts()) /
                       rows(0, p.model.n_routed_experts);
  return held;
}

TEST(RuntimeMemory, IsWhatThePoolHoldsAtMost) {
  using Shape3 = std::tuple<int64_t, int64_t, int64_t>;
  for (const auto& [layers, mtp, rank] :
       {Shape3{3, 1, 96}, Shape3{2, 0, 96}, Shape3{2, 1, 0}, Shape3{1, 0, 96}}) {
    const TrainPlan p = small_plan(layers, mtp, rank);
    // Layer 0 is dense: the last of these has no experts.
    const auto measured = static_cast<double>(allocated(p, nullptr).bytes);
    EXPECT_NEAR(runtime_memory(p)[0].device() / measured, 1.0, 0.01)
        << layers << " layers, " << mtp << " MTP, q_lora_rank " << rank;
  }
}

// Every rank of a mesh within 3% of its plan, with the rows that it got.
void expect_planned(const TrainPlan& p) {
  check_train_plan(p);
  World world({.num_ranks = p.mesh.num_ranks()});
  const auto body = [&](int rank) {
    Team team(parallel_of(p), p.model, &world);
    const Held held = allocated(p, &team);
    const auto measured = static_cast<double>(held.bytes);
    TrainPlan routed = p;
    routed.row_imbalance = held.row_imbalance;
    const std::vector<RankMemory> planned = runtime_memory(routed);
    HADAL_CHECK(planned.size() == static_cast<size_t>(p.mesh.pp), "one plan for each stage");
    const double of_plan = planned[static_cast<size_t>(team.at().pp)].device();
    HADAL_CHECK(std::abs(of_plan / measured - 1.0) <= 0.03, "rank ", rank, " of ", p.name, " held ",
                measured, " bytes, and ", of_plan, " were planned");
  };
  EXPECT_NO_THROW(launch(world, body));
}

TEST(RuntimeMemory, OfRanksIsWhatTheirPoolsHoldAtMost) {
  for (const char* name : {"quickstart", "resume_check"})
    for (const char* mesh : {"dp", "ep", "pp"})
      expect_planned(read_train_plan(concat("configs/plans/", name, "_2ranks_", mesh, ".json"), {},
                                     Rates::kWithout));
}

TEST(RuntimeMemory, OfFourRanksLikewise) {
  TrainPlan p = read_train_plan("configs/plans/resume_check_2ranks_pp.json", {}, Rates::kWithout);
  p.cluster.devices_per_node = 4;
  p.mesh = {.pp = 2, .dp = 2, .ep = 1, .tp = 1};
  expect_planned(p);
  p.schedule = ScheduleKind::kInterleaved;
  p.model.num_hidden_layers = 4;
  expect_planned(p);
}

TEST(RuntimePlan, RefusesWhatTheRuntimeDoesNot) {
  TrainPlan p = read_train_plan("configs/plans/resume_check_2ranks_pp.json", {}, Rates::kWithout);
  p.schedule = ScheduleKind::kDualPipeV;
  EXPECT_ERROR(check_train_plan(p),
               "schedule is \"dualpipev\"; runs of hadal train in f32 are planned with 1f1b or "
               "interleaved, plan bf16 or fp8 with the others");
  p.schedule = ScheduleKind::k1F1B;
  p.mesh = {.pp = 1, .dp = 1, .ep = 1, .tp = 2};
  EXPECT_ERROR(check_train_plan(p),
               "mesh: tp is 2; runs of hadal train in f32 are planned with tp 1, plan bf16 or fp8 "
               "with others");
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

// Of all ranks together: the calls of one rank, and each parameter once.
TEST(RuntimeOps, OfRanksAddUpToThoseOfOne) {
  const auto plan_of = [](const char* path) { return read_train_plan(path, {}, Rates::kWithout); };
  const auto work = [](const OpList& ops, const char* op) {
    double sum = 0.0;
    for (const OpUse& use : ops)
      if (use.op == op) sum += static_cast<double>(use.times) * work_of(use.op, use.shape);
    return sum;
  };
  const TrainPlan one = plan_of("configs/plans/quickstart_cpu.json");
  const double all = work(runtime::optimizer_ops(one, 0), "adamw");
  for (const char* mesh : {"dp", "ep", "pp"}) {
    TrainPlan p = plan_of(concat("configs/plans/quickstart_2ranks_", mesh, ".json").c_str());
    p.row_imbalance = 1.0;
    double updated = 0.0, normed = 0.0;
    for (int r = 0; r < p.mesh.num_ranks(); ++r) {
      const OpList ops = runtime::optimizer_ops(p, coord_of(p.mesh, r).pp);
      updated += work(ops, "adamw");
      normed += work(ops, "sum_squares_acc");
    }
    // Two stages both have the embedding, and update it alike.
    const double again = p.mesh.pp > 1 ? 2048.0 * 192.0 : 0.0;
    EXPECT_EQ(updated, all + again) << mesh;
    EXPECT_EQ(normed, all) << mesh;
    for (const Pass pass : kPasses)
      for (const char* op : {"grouped_gemm_nt", "grouped_gemm_nn", "grouped_gemm_tn_acc"}) {
        const double tokens = static_cast<double>(p.micro_batch_tokens()) /
                              static_cast<double>(one.micro_batch_tokens());
        EXPECT_EQ(work(part_ops(layer_shape(p), Part::kMoe, pass), op),
                  tokens * work(part_ops(layer_shape(one), Part::kMoe, pass), op))
            << mesh << " " << op;
      }
  }
  // What is reduced is what is gathered: experts are alone on their rank with ep = 2.
  const TrainPlan ep = plan_of("configs/plans/quickstart_2ranks_ep.json");
  const OpList ops = runtime::optimizer_ops(ep, 0);
  const double experts = 3.0 * 192.0 * 96.0 * 32.0 * 4.0;  // of 3 layers and the MTP block
  EXPECT_EQ(work(ops, "reduce_scatter"), all - experts);
  EXPECT_EQ(work(ops, "all_gather"), all - experts);
}

}  // namespace
}  // namespace hadal::plan
