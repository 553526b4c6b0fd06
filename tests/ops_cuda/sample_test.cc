// Sampling on CUDA against the CPU's: the same tokens.
// SPDX-License-Identifier: Apache-2.0
#include "ops/draw.h"
#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

TEST(OpsCuda, Sample) {
  const ops::SampleRule rules[] = {{},
                                   {.temperature = 1.0, .top_k = 0, .top_p = 1.0, .seed = 3},
                                   {.temperature = 0.7, .top_k = 5, .top_p = 1.0, .seed = 4},
                                   {.temperature = 1.3, .top_k = 0, .top_p = 0.8, .seed = 5},
                                   {.temperature = 2.0, .top_k = 40, .top_p = 0.5, .seed = 6}};
  for (DType type : kTypes)
    for (const ops::SampleRule& rule : rules)
      for (int64_t V : {1, 7, 1000, 20000})
        expect_twins(concat("sample ", dtype_name(type), " ", V), [&](Side& s) {
          const int64_t T = 20;
          const Tensor logits = s.random("logits", type, {T, V}, 2.0);
          const Tensor tokens = s.out(DType::kI32, {T});
          ops::sample(s.ctx, rule, logits, s.integers("p", {T}, 100000), Tensor(tokens));
          return std::vector<Tensor>{tokens};
        });
}

// Rows of equal logits in groups: ties go by the id.
TEST(OpsCuda, SampleTies) {
  for (int64_t values : {1, 3, 40})
    expect_twins(concat("sample ", values, " values"), [&](Side& s) {
      const int64_t T = 16, V = 3000;
      const Tensor logits = s.make(DType::kF32, {T, V}, [&](int64_t i) {
        return 0.1 * static_cast<double>(i * 7919 % values);
      });
      std::vector<Tensor> outs;
      for (const ops::SampleRule& rule : {ops::SampleRule{.temperature = 1.0, .seed = 3},
                                          ops::SampleRule{.temperature = 1.0, .top_k = 50},
                                          ops::SampleRule{.temperature = 0.5, .top_p = 0.3}}) {
        outs.push_back(s.out(DType::kI32, {T}));
        ops::sample(s.ctx, rule, logits, s.integers("p", {T}, 100000), Tensor(outs.back()));
      }
      return outs;
    });
}

TEST(OpsCuda, TopLogits) {
  for (DType type : kTypes)
    for (int64_t V : {20, 1000, 20000})
      for (int64_t values : {3, 1000000})  // many equal ones; hardly any
        expect_twins(concat("top_logits ", dtype_name(type), " ", V, " of ", values), [&](Side& s) {
          const int64_t T = 5, K = 20;
          const Tensor logits = s.make(type, {T, V}, [&](int64_t i) {
            return 0.01 * static_cast<double>(i * 7919 % values % 3001);
          });
          const Tensor ids = s.out(DType::kI32, {T, K}), top = s.out(stat_dtype(type), {T, K});
          ops::top_logits(s.ctx, logits, Tensor(ids), Tensor(top));
          return std::vector<Tensor>{ids, top};
        });
}

TEST(OpsCuda, SampleEach) {
  expect_twins("sample_each", [&](Side& s) {
    const int64_t T = 24, V = 5000;
    const auto rule = [](int64_t t) -> ops::SampleRule {
      if (t % 4 == 0) return {};
      return {.temperature = 0.5 + 0.1 * static_cast<double>(t),
              .top_k = t % 3 == 0 ? t * 10 : 0,
              .top_p = t % 2 == 0 ? 0.9 : 1.0,
              .seed = static_cast<uint64_t>(t) * 77};
    };
    const ops::SampleRules rules{
        .temperature = s.make(DType::kF64, {T}, [&](int64_t t) { return rule(t).temperature; }),
        .top_p = s.make(DType::kF64, {T}, [&](int64_t t) { return rule(t).top_p; }),
        .top_k =
            s.make(DType::kI64, {T}, [&](int64_t t) { return static_cast<double>(rule(t).top_k); }),
        .seed =
            s.make(DType::kI64, {T}, [&](int64_t t) { return static_cast<double>(rule(t).seed); })};
    const Tensor tokens = s.out(DType::kI32, {T}), ids = s.out(DType::kI32, {T});
    ops::sample_each(s.ctx, rules, s.random("logits", DType::kF32, {T, V}, 2.0),
                     s.integers("p", {T}, 1000), Tensor(tokens));
    const Tensor given = s.make(DType::kI32, {T}, [](int64_t t) {
      return static_cast<double>(t % 2 == 0 ? t : -1 - t / 3);
    });
    ops::fill_tokens(s.ctx, given, tokens, Tensor(ids));
    return std::vector<Tensor>{tokens, ids};
  });
}

}  // namespace
}  // namespace hadal::test
