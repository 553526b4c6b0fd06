// Mixture of experts, gate included: the product's backward against complex step of the reference.
//
//   T tokens   D model width
// SPDX-License-Identifier: Apache-2.0
#include "model/moe.h"

#include "tests/grad/harness.h"

namespace hadal::test {
namespace {

constexpr double kBalanceScale = 0.7;

void check(const std::string& name, const Config& c) {
  Machine machine(2);
  Context& ctx = machine.ctx;
  Arrays weights = random_weights(c);
  // The last expert is out of reach: its gradient is zero, not missing.
  weights.layers[1].moe.gate.bias[c.n_routed_experts - 1] = -10.0;
  Product product = make_product(machine, c, weights, DType::kF64);
  const Batch batch = make_batch(ctx, c, random_sequences(c, kLengths, "moe"), 0, DType::kF64);
  const Shape shape{kTokens, c.hidden_size};
  const Array<double> x = ref::random("x", shape, 0.0, 1.0),
                      dy = ref::random("dy", shape, 0.0, 1.0);

  RowPool pool(ctx, c, DType::kF64,
               ops::max_pages(kTokens * c.num_experts_per_tok, c.n_routed_experts));
  LocalExchange exchange(pool, c.n_routed_experts);
  const Tensor px = machine.put(x, DType::kF64), pdy = machine.put(dy, DType::kF64);
  Tensor py = machine.tensor(DType::kF64, shape), pdx = machine.tensor(DType::kF64, shape);
  const moe::Weights& w_moe = product.w.layers[1].moe;
  moe::Saved saved = moe::forward(ctx, c, w_moe, exchange, batch.seq, px, py);
  moe::Deferred deferred =
      moe::backward_input(ctx, c, w_moe, exchange, std::move(saved),
                          {.x = px, .dy = pdy, .balance_scale = kBalanceScale}, pdx);
  moe::backward_weight(ctx, std::move(deferred), product.grads.layers[1].moe);
  EXPECT_EQ(pool.num_free_pages(), pool.num_pages());

  ComplexArrays w = as_complex(c, weights);
  Array<Complex> cx = ref::as<Complex>(x);
  ref::Routing<double> routing;
  expect_close_to_norm("y", ref::from_tensor<double>(py),
                       ref::moe_forward(c, weights.layers[1].moe, kLengths, x, &routing),
                       kGradientTolerance);
  EXPECT_EQ(routing.load.back(), 0);
  const auto f = [&] {
    ref::Routing<Complex> r;
    Complex total = ref::dot(dy, ref::moe_forward(c, w.layers[1].moe, kLengths, cx, &r));
    for (const Complex& loss : r.balance.data) total += kBalanceScale * loss;
    return total;
  };
  GradientCheck gradients("moe, " + name, c, Scope::kElements);
  gradients.input("x", pdx, cx, f);
  gradients.params("layers.1.ffn.", product.grads, w, f);
}

TEST(MoeGrad, SharedExpert) { check("one shared expert", tiny_config()); }

TEST(MoeGrad, TwoSharedExperts) {
  Config c = tiny_config();
  c.n_shared_experts = 2;
  check("two shared experts", c);
}

TEST(MoeGrad, NoSharedExpert) {
  Config c = tiny_config();
  c.n_shared_experts = 0;
  c.norm_topk_prob = false;
  check("no shared expert, not normalised", c);
}

}  // namespace
}  // namespace hadal::test
