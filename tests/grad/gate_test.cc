// Gate and balance loss: the product's backward against complex step of the reference.
//
//   T tokens   S sequences   D model width   E experts   K choices of a token
// SPDX-License-Identifier: Apache-2.0
#include "model/gate.h"

#include "tests/grad/harness.h"

namespace hadal::test {
namespace {

// balance_scale 0: the balance loss takes no part.
void check(const std::string& name, const Config& c, double balance_scale) {
  Machine machine(2);
  Context& ctx = machine.ctx;
  Arrays weights = random_weights(c);
  Product product = make_product(machine, c, weights, DType::kF64);
  const Batch batch = make_batch(ctx, c, random_sequences(c, kLengths, "gate"), 0, DType::kF64);
  const Shape shape{kTokens, c.hidden_size}, choices{kTokens, c.num_experts_per_tok};
  const Array<double> x = ref::random("x", shape, 0.0, 1.0);
  const Array<double> dweight = ref::random("dweight", choices, 0.0, 1.0);

  const Tensor px = machine.put(x, DType::kF64), pdweight = machine.put(dweight, DType::kF64);
  Tensor pdx = machine.tensor(DType::kF64, shape);
  gate::Saved saved = gate::forward(ctx, c, product.w.layers[1].moe.gate, batch.seq, px);
  const ref::Routing<double> want = ref::gate_forward(c, weights.layers[1].moe.gate, kLengths, x);
  expect_close_to_norm("weight", ref::from_tensor<double>(saved.topk_weight), want.weight,
                       kGradientTolerance);
  expect_close_to_norm("balance", ref::from_tensor<double>(saved.balance), want.balance,
                       kGradientTolerance);
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t k = 0; k < c.num_experts_per_tok; ++k)
      EXPECT_EQ(saved.topk_idx.row(t).data<int32_t>()[k],
                want.choice[static_cast<size_t>(t)][static_cast<size_t>(k)]);
  gate::Deferred deferred = gate::backward_input(
      ctx, c, product.w.layers[1].moe.gate, std::move(saved), px, pdweight, balance_scale, pdx);
  gate::backward_weight(ctx, std::move(deferred), product.grads.layers[1].moe.gate);

  ComplexArrays w = as_complex(c, weights);
  Array<Complex> cx = ref::as<Complex>(x);
  const auto f = [&] {
    const auto r = ref::gate_forward(c, w.layers[1].moe.gate, kLengths, cx);
    Complex total = ref::dot(dweight, r.weight);
    for (const Complex& loss : r.balance.data) total += balance_scale * loss;
    return total;
  };
  GradientCheck gradients("gate, " + name, c, Scope::kElements);
  gradients.input("x", pdx, cx, f);
  gradients.params("layers.1.ffn.gate.", product.grads, w, f);
}

TEST(GateGrad, Sigmoid) { check("sigmoid", tiny_config(), 0.0); }

TEST(GateGrad, SigmoidWithBalanceLoss) { check("sigmoid with balance loss", tiny_config(), 0.7); }

TEST(GateGrad, WeightsNotNormalised) {
  Config c = tiny_config();
  c.norm_topk_prob = false;
  c.routed_scaling_factor = 1.5;
  check("not normalised", c, 0.3);
}

TEST(GateGrad, SoftmaxWithGroupMaximum) {
  Config c = tiny_config();
  c.scoring_func = ScoringFunc::kSoftmax;
  c.topk_method = TopkMethod::kGroupLimitedGreedy;
  c.norm_topk_prob = false;
  check("softmax", c, 0.7);
}

TEST(GateGrad, SoftmaxNormalised) {
  Config c = tiny_config();
  c.scoring_func = ScoringFunc::kSoftmax;
  c.n_group = 1;
  c.topk_group = 1;
  check("softmax, normalised", c, 0.7);
}

}  // namespace
}  // namespace hadal::test
