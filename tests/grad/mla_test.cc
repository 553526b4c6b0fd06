// Latent attention: the product's backward against complex step of the reference.
//
//   T tokens   D model width
// SPDX-License-Identifier: Apache-2.0
#include "model/mla.h"

#include "tests/grad/harness.h"

namespace hadal::test {
namespace {

void check(const std::string& name, const Config& c, const ref::Lengths& lengths, Scope scope) {
  Machine machine(2);
  Context& ctx = machine.ctx;
  Arrays weights = random_weights(c);
  Product product = make_product(machine, c, weights, DType::kF64);
  const Batch batch = make_batch(ctx, c, random_sequences(c, lengths, "mla"), 0, DType::kF64);
  const Shape shape{batch.seq.num_tokens, c.hidden_size};
  const Array<double> x = ref::random("x", shape, 0.0, 1.0),
                      dy = ref::random("dy", shape, 0.0, 1.0);

  const Tensor px = machine.put(x, DType::kF64), pdy = machine.put(dy, DType::kF64);
  Tensor py = machine.tensor(DType::kF64, shape), pdx = machine.tensor(DType::kF64, shape);
  mla::Saved saved = mla::forward(ctx, c, product.w.layers[0].attn, batch.seq, px, py);
  mla::Deferred deferred =
      mla::backward_input(ctx, c, product.w.layers[0].attn, std::move(saved), px, pdy, pdx);
  mla::backward_weight(ctx, std::move(deferred), product.grads.layers[0].attn);

  ComplexArrays w = as_complex(c, weights);
  Array<Complex> cx = ref::as<Complex>(x);
  expect_close_to_norm("y", ref::from_tensor<double>(py),
                       ref::mla_forward(c, weights.layers[0].attn, lengths, x), kGradientTolerance);
  const auto f = [&] { return ref::dot(dy, ref::mla_forward(c, w.layers[0].attn, lengths, cx)); };
  GradientCheck gradients("mla, " + name, c, scope);
  gradients.input("x", pdx, cx, f);
  gradients.params("layers.0.attn.", product.grads, w, f);
}

TEST(MlaGrad, QueryLatent) { check("query latent", tiny_config(), kLengths, Scope::kElements); }

TEST(MlaGrad, NoQueryLatent) {
  Config c = tiny_config();
  c.q_lora_rank = 0;
  check("no query latent", c, kLengths, Scope::kElements);
}

TEST(MlaGrad, HalfSplitRopeWithYarn) {
  Config c = tiny_config();
  c.rope_interleave = false;
  c.rope = tiny_yarn();
  check("half-split rope, YaRN", c, kLengths, Scope::kElements);
}

// Longer than any tile of an op.
TEST(MlaGrad, LongSequences) {
  check("long sequences", tiny_config(), {1, 150, 70}, Scope::kDirections);
}

}  // namespace
}  // namespace hadal::test
