// Dense MLP: the product's backward against complex step of the reference.
//
//   T tokens   D model width
// SPDX-License-Identifier: Apache-2.0
#include "model/mlp.h"

#include "tests/grad/harness.h"

namespace hadal::test {
namespace {

TEST(MlpGrad, MatchesComplexStep) {
  const Config c = tiny_config();
  Machine machine(2);
  Context& ctx = machine.ctx;
  Arrays weights = random_weights(c);
  Product product = make_product(machine, c, weights, DType::kF64);
  const Shape shape{kTokens, c.hidden_size};
  const Array<double> x = ref::random("x", shape, 0.0, 1.0),
                      dy = ref::random("dy", shape, 0.0, 1.0);

  const Tensor px = machine.put(x, DType::kF64), pdy = machine.put(dy, DType::kF64);
  Tensor py = machine.tensor(DType::kF64, shape), pdx = machine.tensor(DType::kF64, shape);
  mlp::Saved saved = mlp::forward(ctx, product.w.layers[0].mlp, px, py);
  mlp::Deferred deferred =
      mlp::backward_input(ctx, product.w.layers[0].mlp, std::move(saved), px, pdy, pdx);
  mlp::backward_weight(ctx, std::move(deferred), product.grads.layers[0].mlp);

  ComplexArrays w = as_complex(c, weights);
  Array<Complex> cx = ref::as<Complex>(x);
  expect_close_to_norm("y", ref::from_tensor<double>(py),
                       ref::mlp_forward(weights.layers[0].mlp, x), kGradientTolerance);
  const auto f = [&] { return ref::dot(dy, ref::mlp_forward(w.layers[0].mlp, cx)); };
  GradientCheck gradients("mlp", c, Scope::kElements);
  gradients.input("x", pdx, cx, f);
  gradients.params("layers.0.ffn.", product.grads, w, f);
}

}  // namespace
}  // namespace hadal::test
