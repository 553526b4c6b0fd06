// One layer, dense and MoE: the product's backward against complex step of the reference.
//
//   T tokens   D model width
// SPDX-License-Identifier: Apache-2.0
#include "model/block.h"

#include "tests/grad/harness.h"

namespace hadal::test {
namespace {

constexpr double kBalanceScale = 0.7;

void check(const std::string& name, size_t layer_idx) {
  const Config c = tiny_config();
  const bool is_moe = c.is_moe_layer(static_cast<int64_t>(layer_idx));
  Machine machine(2);
  Context& ctx = machine.ctx;
  Arrays weights = random_weights(c);
  Product product = make_product(machine, c, weights, DType::kF64);
  const Batch batch = make_batch(ctx, c, random_sequences(c, kLengths, "block"), 0, DType::kF64);
  const Shape shape{kTokens, c.hidden_size};
  const Array<double> x = ref::random("x", shape, 0.0, 1.0),
                      dy = ref::random("dy", shape, 0.0, 1.0);

  RowPool pool(ctx, c, DType::kF64,
               ops::max_pages(kTokens * c.num_experts_per_tok, c.n_routed_experts));
  LocalExchange exchange(pool, c.n_routed_experts);
  const block::Layer layer{
      .config = c, .w = product.w.layers[layer_idx], .exchange = exchange, .is_moe = is_moe};
  const Tensor px = machine.put(x, DType::kF64), pdy = machine.put(dy, DType::kF64);
  Tensor py = machine.tensor(DType::kF64, shape), pdx = machine.tensor(DType::kF64, shape);
  block::Saved saved = block::forward(ctx, layer, batch.seq, px, py);
  block::Deferred deferred =
      block::backward_input(ctx, layer, std::move(saved), kBalanceScale, pdy, pdx);
  block::backward_weight(ctx, std::move(deferred), product.grads.layers[layer_idx]);

  ComplexArrays w = as_complex(c, weights);
  Array<Complex> cx = ref::as<Complex>(x);
  const auto f = [&] {
    ref::Routing<Complex> r;
    Complex total =
        ref::dot(dy, ref::block_forward(c, w.layers[layer_idx], is_moe, kLengths, cx, &r));
    for (const Complex& loss : r.balance.data) total += kBalanceScale * loss;
    return total;
  };
  GradientCheck gradients("block, " + name, c, Scope::kElements);
  gradients.input("x", pdx, cx, f);
  gradients.params(concat("layers.", layer_idx, "."), product.grads, w, f);
}

TEST(BlockGrad, Dense) { check("dense", 0); }
TEST(BlockGrad, Moe) { check("MoE", 1); }

}  // namespace
}  // namespace hadal::test
