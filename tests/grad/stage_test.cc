// The whole model with its objective: the product's backward against complex step of the reference,
// and the delayed split against the joint backward.
//
//   T tokens   D model width   Dm MTP depths
// SPDX-License-Identifier: Apache-2.0
#include "model/stage.h"

#include "tests/grad/run.h"

namespace hadal::test {
namespace {

constexpr Objective kObjective;

// Three micro-batches; sequences of 1 and 2 tokens take no part in some MTP depths, and the last
// micro-batch in none.
MicroBatches micro_batches(const Config& c) {
  return {random_sequences(c, {1, 5, 9}, "first"), random_sequences(c, {7, 2}, "second"),
          random_sequences(c, {1}, "third")};
}

void expect_losses(const Config& c, const ref::ModelState<double>& want, const stage::Meter& got) {
  EXPECT_NEAR(got.main.data<double>()[0], want.loss_sum, 1e-12 * want.loss_sum);
  for (size_t k = 0; k < want.mtp.size(); ++k)
    EXPECT_NEAR(got.mtp.data<double>()[k], want.mtp[k].loss_sum, 1e-12 * want.mtp[k].loss_sum);
  for (size_t m = 0; m < want.routing.size(); ++m) {
    double balance = 0.0;
    for (double loss : want.routing[m].balance.data) balance += loss;
    EXPECT_NEAR(got.balance.data<double>()[m], balance, 1e-12 * balance);
    for (int64_t e = 0; e < c.n_routed_experts; ++e)
      EXPECT_EQ(got.counts.row(static_cast<int64_t>(m)).data<int64_t>()[e],
                want.routing[m].load[static_cast<size_t>(e)]);
  }
}

void check(const std::string& name, const Config& c) {
  c.validate();
  Machine machine(2);
  Arrays weights = random_weights(c);
  const MicroBatches parts = micro_batches(c);
  const std::vector<ref::Sequence> all = as_reference(all_sequences(parts));
  const int64_t num_mtp = c.num_nextn_predict_layers;
  Product product = make_product(machine, c, weights, DType::kF64);
  const stage::Meter meter =
      run_step(machine, c, product, parts, BackwardOrder::kJoint, kObjective);
  expect_losses(c, ref::model_forward(c, weights, all, num_mtp), meter);

  ComplexArrays w = as_complex(c, weights);
  const auto f = [&] {
    return ref::objective(c, w, all, num_mtp, kObjective.lambda, kObjective.alpha);
  };
  GradientCheck gradients("model, " + name, c, Scope::kDirections);
  gradients.params("", product.grads, w, f);
}

TEST(StageGrad, Untied) { check("untied head", tiny_config()); }

TEST(StageGrad, TiedHeadHalfSplitRopeYarn) {
  Config c = tiny_config();
  c.tie_word_embeddings = true;
  c.rope_interleave = false;
  c.rope = tiny_yarn();
  c.norm_topk_prob = false;
  check("tied head, half-split rope, YaRN", c);
}

TEST(StageGrad, NoQueryLatentNoMtpAllMoe) {
  Config c = tiny_config();
  c.q_lora_rank = 0;
  c.num_nextn_predict_layers = 0;
  c.first_k_dense_replace = 0;
  check("no query latent, no MTP", c);
}

TEST(StageGrad, SoftmaxGate) {
  Config c = tiny_config();
  c.scoring_func = ScoringFunc::kSoftmax;
  c.topk_method = TopkMethod::kGroupLimitedGreedy;
  c.norm_topk_prob = false;
  c.num_nextn_predict_layers = 1;
  check("softmax gate", c);
}

void expect_order_keeps_bits(BackwardOrder order, DType act, bool tied) {
  Config c = tiny_config();
  c.tie_word_embeddings = tied;
  Machine machine(2);
  Arrays weights = random_weights(c);
  Product joint = make_product(machine, c, weights, act);
  Product other = make_product(machine, c, weights, act);
  run_step(machine, c, joint, micro_batches(c), BackwardOrder::kJoint, kObjective);
  run_step(machine, c, other, micro_batches(c), order, kObjective);
  expect_same_grads(c, other.grads, joint.grads);
}

TEST(StageGrad, DelayedEqualsJoint) {
  for (DType act : {DType::kF64, DType::kF32, DType::kBF16}) {
    expect_order_keeps_bits(BackwardOrder::kDelayed, act, false);
    expect_order_keeps_bits(BackwardOrder::kDelayed, act, true);
  }
}

TEST(StageGrad, TwoStagesEqualOne) {
  for (DType act : {DType::kF64, DType::kF32, DType::kBF16})
    expect_order_keeps_bits(BackwardOrder::kTwoStages, act, false);
}

TEST(StageGrad, OverlappedEqualsJoint) {
  for (DType act : {DType::kF64, DType::kF32, DType::kBF16})
    for (const BackwardOrder order :
         {BackwardOrder::kOverlapped, BackwardOrder::kOverlappedStages}) {
      expect_order_keeps_bits(order, act, false);
      expect_order_keeps_bits(order, act, true);
    }
}

// The longest chain from a weight to its gradient and back.
int64_t num_products(const Config& c) {
  return 2 * 8 * (c.num_hidden_layers + c.num_nextn_predict_layers + 1);
}

// Each product of the chain adds at most kProductC * u relative to the norm of its result, and a
// residual branch does not grow what came before.
TEST(StageGrad, F32CloseToF64) {
  const Config c = tiny_config();
  Machine machine(2);
  Arrays weights = random_weights(c);
  for_each_param(
      c,
      [](const ParamInfo&, Array<double>& a) {
        for (double& v : a.data) v = static_cast<double>(static_cast<float>(v));
      },
      weights);
  Product f64 = make_product(machine, c, weights, DType::kF64);
  Product f32 = make_product(machine, c, weights, DType::kF32);
  run_step(machine, c, f64, micro_batches(c), BackwardOrder::kJoint, kObjective);
  run_step(machine, c, f32, micro_batches(c), BackwardOrder::kJoint, kObjective);
  const double tolerance = product_bound(DType::kF32, static_cast<double>(num_products(c)), 1.0);
  double worst = 0.0;
  for_each_param(
      c,
      [&](const ParamInfo& info, Tensor& got, Tensor& want) {
        worst = std::max(worst, expect_relative_l2("d" + info.name, ref::from_tensor<double>(got),
                                                   ref::from_tensor<double>(want), tolerance));
      },
      f32.grads, f64.grads);
  std::printf("[   worst  ] f32 against f64: %.2g, tolerance %.2g\n", worst, tolerance);
}

}  // namespace
}  // namespace hadal::test
