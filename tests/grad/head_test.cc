// Embedding and output head with its loss: backward against complex step of the reference.
//
//   T tokens   D model width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "model/head.h"

#include "model/bytes.h"
#include "model/embed.h"
#include "tests/grad/harness.h"

namespace hadal::test {
namespace {

constexpr double kScale = 0.3;

// Sequences of one batch as the reference's positions.
ref::Positions positions(const std::vector<Sequence>& sequences) {
  return ref::positions_of(as_reference(sequences), 0);
}

TEST(HeadGrad, MatchesComplexStep) {
  const Config c = tiny_config();
  Machine machine(2);
  Context& ctx = machine.ctx;
  Arrays weights = random_weights(c);
  Product product = make_product(machine, c, weights, DType::kF64);
  const std::vector<Sequence> sequences = random_sequences(c, kLengths, "head");
  const Batch batch = make_batch(ctx, c, sequences, 0, DType::kF64);
  const std::vector<int64_t> targets = positions(sequences).targets;
  EXPECT_GT(std::count(targets.begin(), targets.end(), -1), 0);
  const Shape shape{kTokens, c.hidden_size};
  const Array<double> h = ref::random("h", shape, 0.0, 1.0);

  const Tensor ph = machine.put(h, DType::kF64);
  Tensor pdh = machine.tensor(DType::kF64, shape);
  head::Saved saved = head::forward(ctx, c, product.w.head, ph, batch.targets);
  double loss = 0.0;
  for (int64_t t = 0; t < kTokens; ++t) loss += saved.loss.data<double>()[t];
  head::Deferred deferred =
      head::backward_input(ctx, c, product.w.head, std::move(saved), kScale, ph, pdh);
  head::backward_weight(ctx, c, product.w.head, std::move(deferred), product.grads.head);

  ComplexArrays w = as_complex(c, weights);
  Array<Complex> ch = ref::as<Complex>(h);
  const auto f = [&] { return kScale * ref::cross_entropy_sum(ref::linear(ch, w.head), targets); };
  EXPECT_NEAR(kScale * loss, f().real(), 1e-12);
  GradientCheck gradients("head", c, Scope::kElements);
  gradients.input("h", pdh, ch, f);
  gradients.params("head", product.grads, w, f);
}

// A batch that does not fit one chunk recomputes its logits; the bits are those of one chunk.
TEST(HeadGrad, ChunksGiveTheSameBits) {
  Config c = tiny_config();
  c.vocab_size = 5003;
  c.hidden_size = 3;
  const int64_t chunk = loss_chunk_tokens(c, DeviceKind::kCpu), T = chunk + 7;
  Machine machine(2);
  Context& ctx = machine.ctx;
  const Array<double> table = ref::random("head", {c.vocab_size, c.hidden_size}, 0.0, 1.0);
  const Operand w = machine.put(table, DType::kF32);
  const Tensor h = machine.put(ref::random("h", {T, c.hidden_size}, 0.0, 1.0), DType::kF32);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < T; ++t) ids.push_back(static_cast<int32_t>(t * 7 % c.vocab_size));
  const Tensor targets = machine.put(ids, {T});

  // The whole batch in chunks; then the two parts as batches of their own.
  Tensor dh = machine.tensor(DType::kF32, h.shape()),
         dh_parts = machine.tensor(DType::kF32, h.shape());
  Tensor dw = machine.tensor(DType::kF32, table.shape);
  Tensor dw_parts = machine.tensor(DType::kF32, table.shape);
  const auto run = [&](int64_t begin, int64_t count, Tensor dh_out, Tensor dw_out) {
    head::Saved saved = head::forward(ctx, c, w, h.rows(begin, count), targets.rows(begin, count));
    EXPECT_EQ(saved.logits.empty(), count > chunk);
    head::Deferred deferred = head::backward_input(ctx, c, w, std::move(saved), kScale,
                                                   h.rows(begin, count), dh_out.rows(begin, count));
    head::backward_weight(ctx, c, w, std::move(deferred), dw_out);
  };
  run(0, T, dh, dw);
  run(0, chunk, dh_parts, dw_parts);
  run(chunk, T - chunk, dh_parts, dw_parts);
  expect_bits_equal("dh", dh, dh_parts);
  expect_bits_equal("dw", dw, dw_parts);
}

TEST(EmbedGrad, MatchesComplexStep) {
  const Config c = tiny_config();
  Machine machine(2);
  Context& ctx = machine.ctx;
  Arrays weights = random_weights(c);
  Product product = make_product(machine, c, weights, DType::kF64);
  const std::vector<Sequence> sequences = random_sequences(c, kLengths, "embed");
  const Batch batch = make_batch(ctx, c, sequences, 0, DType::kF64);
  const Array<double> dx = ref::random("dx", {kTokens, c.hidden_size}, 0.0, 1.0);

  Tensor px = machine.tensor(DType::kF64, dx.shape);
  embed::forward(ctx, product.w.embed, batch.ids, px);
  embed::backward_weight(ctx, machine.put(dx, DType::kF64), batch.ids, product.grads.embed);

  const std::vector<int64_t> ids = positions(sequences).ids;
  expect_close("x", ref::from_tensor<double>(px), ref::rows(weights.embed, ids), 0.0);
  ComplexArrays w = as_complex(c, weights);
  const auto f = [&] { return ref::dot(dx, ref::rows(w.embed, ids)); };
  GradientCheck gradients("embed", c, Scope::kElements);
  gradients.params("embed", product.grads, w, f);
}

}  // namespace
}  // namespace hadal::test
