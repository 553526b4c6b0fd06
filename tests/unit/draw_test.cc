// Drawing with a rule for each row, and tokens that the host does not know yet.
//
//   T rows   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "ops/draw.h"

#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

using ops::SampleRule;

template <class T>
Tensor put(Machine& machine, const std::vector<T>& values) {
  const Tensor t = machine.tensor(DTypeOf<T>::value, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), t.data<T>());
  return t;
}

TEST(Draw, EachRowByItsOwnRule) {
  Machine machine(2);
  const std::vector<SampleRule> list = {
      {},
      {.temperature = 1.0, .seed = 3},
      {.temperature = 0.7, .top_k = 5, .seed = 4},
      {.temperature = 1.3, .top_p = 0.8, .seed = uint64_t{1} << 63},
      {.temperature = 2.0, .top_k = 40, .top_p = 0.5, .seed = 6},
  };
  const auto T = static_cast<int64_t>(list.size());
  const Tensor logits = machine.put(ref::random("logits", {T, 300}, 0, 2), DType::kF32);
  const std::vector<int32_t> positions = {7, 9, 1, 100, 5};
  std::vector<double> temperature, top_p;
  std::vector<int64_t> top_k, seed;
  for (const SampleRule& rule : list) {
    temperature.push_back(rule.temperature);
    top_p.push_back(rule.top_p);
    top_k.push_back(rule.top_k);
    seed.push_back(static_cast<int64_t>(rule.seed));
  }
  const ops::SampleRules rules{.temperature = put(machine, temperature),
                               .top_p = put(machine, top_p),
                               .top_k = put(machine, top_k),
                               .seed = put(machine, seed)};
  Tensor tokens = machine.tensor(DType::kI32, {T});
  ops::sample_each(machine.ctx, rules, logits, put(machine, positions), tokens);
  for (int64_t t = 0; t < T; ++t) {
    Tensor one = machine.tensor(DType::kI32, {1});
    ops::sample(machine.ctx, list[static_cast<size_t>(t)], logits.rows(t, 1),
                put(machine, positions).rows(t, 1), one);
    EXPECT_EQ(tokens.data<int32_t>()[t], one.data<int32_t>()[0]) << "row " << t;
  }
  EXPECT_ERROR(ops::sample_each(machine.ctx, rules, logits.rows(0, 4),
                                put(machine, positions).rows(0, 4), tokens.rows(0, 4)),
               "temperature is f64 [5]; it must be dense, a value for each of 4 rows");
}

TEST(Draw, TokensThatAreNotKnownYet) {
  Machine machine(2);
  Tensor ids = machine.tensor(DType::kI32, {4});
  const Tensor drawn = put<int32_t>(machine, {70, 71, 72});
  ops::fill_tokens(machine.ctx, put<int32_t>(machine, {5, -3, 0, -1}), drawn, ids);
  EXPECT_EQ(integers(ids), (std::vector<int64_t>{5, 72, 0, 70}));
  EXPECT_ERROR(ops::fill_tokens(machine.ctx, put<int32_t>(machine, {5, -4, 0, -1}), drawn, ids),
               "token 1 of the step is row 3 of 3 drawn ones");
}

}  // namespace
}  // namespace hadal::test
