// The same bits whatever the number of threads and whatever else is in the batch.
//
//   T tokens   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "tests/grad/run.h"

namespace hadal::test {
namespace {

// Wide enough that every op splits its work.
Config wide_config() {
  Config c = tiny_config();
  c.vocab_size = 301;
  c.hidden_size = 72;
  c.intermediate_size = 150;
  c.moe_intermediate_size = 40;
  c.num_attention_heads = 4;
  c.q_lora_rank = 24;
  c.kv_lora_rank = 20;
  c.qk_nope_head_dim = 16;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 12;
  c.n_routed_experts = 16;
  c.num_experts_per_tok = 4;
  c.max_position_embeddings = 512;
  c.validate();
  return c;
}

const ref::Lengths kLong = {1, 67, 130, 33};

// Logits of the main model and of every MTP depth, copied out.
std::vector<Tensor> logits_of(Machine& machine, const Config& c, const Product& product,
                              const std::vector<Sequence>& sequences) {
  Context& ctx = machine.ctx;
  const DType act = product.w.embed.data.dtype();
  const Batch batch = make_batch(ctx, c, sequences, c.num_nextn_predict_layers, act);
  RowPool pool(ctx, c, act,
               ops::max_pages(batch.seq.num_tokens * c.num_experts_per_tok, c.n_routed_experts) *
                   c.num_moe_layers());
  LocalExchange exchange(pool, c.n_routed_experts);
  const stage::Stage whole = stage::whole_model(c, product.w, exchange, c.num_nextn_predict_layers);
  stage::Meter meter = stage::make_meter(ctx, whole);
  const stage::Saved saved = stage::forward(ctx, whole, batch, In(), meter);
  std::vector<Tensor> result;
  const auto keep = [&](const Tensor& logits) {
    Tensor copy = machine.tensor(logits.dtype(), logits.shape());
    std::memcpy(copy.raw(), logits.raw(), static_cast<size_t>(logits.num_bytes()));
    result.push_back(copy);
  };
  keep(saved.head.logits);
  for (const head::Saved& h : saved.mtp_head) keep(h.logits);
  return result;
}

class Invariance : public testing::TestWithParam<DType> {};

TEST_P(Invariance, LogitsAndGradientsAtAnyNumberOfThreads) {
  const Config c = wide_config();
  Arrays weights = random_weights(c);
  const std::vector<Sequence> sequences = random_sequences(c, kLong, "threads");
  Machine one(1);
  Product want = make_product(one, c, weights, GetParam());
  const std::vector<Tensor> logits = logits_of(one, c, want, sequences);
  run_step(one, c, want, {sequences}, BackwardOrder::kJoint, {});
  for (int num_threads : {2, 3}) {
    Machine machine(num_threads);
    Product got = make_product(machine, c, weights, GetParam());
    const std::vector<Tensor> other = logits_of(machine, c, got, sequences);
    for (size_t k = 0; k < logits.size(); ++k)
      expect_bits_equal(concat("logits of depth ", k), other[k], logits[k]);
    run_step(machine, c, got, {sequences}, BackwardOrder::kJoint, {});
    expect_same_grads(c, got.grads, want.grads);
  }
}

TEST_P(Invariance, LogitsOfASequenceAloneAndPacked) {
  const Config c = wide_config();
  Arrays weights = random_weights(c);
  Machine machine(2);
  const Product product = make_product(machine, c, weights, GetParam());
  const std::vector<Sequence> sequences = random_sequences(c, kLong, "packed");
  const std::vector<Tensor> packed = logits_of(machine, c, product, sequences);
  std::vector<int64_t> begin(packed.size(), 0);
  for (const Sequence& s : sequences) {
    const std::vector<Tensor> alone = logits_of(machine, c, product, {s});
    for (size_t k = 0; k < packed.size(); ++k) {
      expect_bits_equal(concat("logits of depth ", k), packed[k].rows(begin[k], alone[k].dim(0)),
                        alone[k]);
      begin[k] += alone[k].dim(0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Invariance, testing::Values(DType::kF64, DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

}  // namespace
}  // namespace hadal::test
