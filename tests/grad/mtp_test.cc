// One MTP module: the product's backward against complex step of the reference.
//
//   T tokens of the depth before   Tk tokens of this depth   D model width
// SPDX-License-Identifier: Apache-2.0
#include "model/mtp.h"

#include "tests/grad/harness.h"

namespace hadal::test {
namespace {

constexpr double kBalanceScale = 0.7;

// Depth k = 1 or 2; the sequence of 1 token takes part in neither.
void check(int64_t k) {
  const Config c = tiny_config();
  const auto module_idx = static_cast<size_t>(k - 1);
  Machine machine(2);
  Context& ctx = machine.ctx;
  Arrays weights = random_weights(c);
  Product product = make_product(machine, c, weights, DType::kF64);
  const std::vector<Sequence> sequences = random_sequences(c, kLengths, "mtp");
  const Batch batch = make_batch(ctx, c, sequences, k, DType::kF64);
  const Batch::Depth& depth = batch.mtp[module_idx];
  const ref::Positions before = ref::positions_of(as_reference(sequences), k - 1);
  const ref::Positions positions = ref::positions_of(as_reference(sequences), k);
  const auto T = static_cast<int64_t>(before.ids.size()),
             Tk = static_cast<int64_t>(positions.ids.size());
  ASSERT_EQ(depth.seq.num_tokens, Tk);
  const Array<double> h = ref::random("h", {T, c.hidden_size}, 0.0, 1.0);
  const Array<double> dout = ref::random("dout", {Tk, c.hidden_size}, 0.0, 1.0);

  RowPool pool(ctx, c, DType::kF64,
               ops::max_pages(kTokens * c.num_experts_per_tok, c.n_routed_experts));
  LocalExchange exchange(pool, c.n_routed_experts);
  const mtp::Module module{
      .config = c, .w = product.w.mtp[module_idx], .embed = product.w.embed, .exchange = exchange};
  const Tensor ph = machine.put(h, DType::kF64), pdout = machine.put(dout, DType::kF64);
  Tensor pdh = machine.tensor(DType::kF64, h.shape);
  mtp::Saved saved = mtp::forward(ctx, module, depth, ph);
  ref::Routing<double> routing;
  expect_close_to_norm(
      "out", ref::from_tensor<double>(saved.out),
      ref::mtp_forward(c, weights.mtp[module_idx], weights.embed, positions, h, &routing),
      kGradientTolerance);
  mtp::Deferred deferred = mtp::backward_input(
      ctx, module, depth, std::move(saved), {.dout = pdout, .balance_scale = kBalanceScale}, pdh);
  mtp::backward_weight(ctx, std::move(deferred), product.grads.mtp[module_idx],
                       product.grads.embed);

  ComplexArrays w = as_complex(c, weights);
  Array<Complex> ch = ref::as<Complex>(h);
  const auto f = [&] {
    ref::Routing<Complex> r;
    Complex total =
        ref::dot(dout, ref::mtp_forward(c, w.mtp[module_idx], w.embed, positions, ch, &r));
    for (const Complex& loss : r.balance.data) total += kBalanceScale * loss;
    return total;
  };
  GradientCheck gradients(concat("mtp, depth ", k), c, Scope::kElements);
  gradients.input("h", pdh, ch, f);
  gradients.input("embed", product.grads.embed, w.embed, f);
  std::memset(product.grads.embed.raw(), 0, static_cast<size_t>(product.grads.embed.num_bytes()));
  gradients.params(concat("mtp.", module_idx, "."), product.grads, w, f);
}

TEST(MtpGrad, FirstDepth) { check(1); }
TEST(MtpGrad, SecondDepth) { check(2); }

}  // namespace
}  // namespace hadal::test
