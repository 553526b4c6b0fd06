// Sampling on CUDA against the CPU's: the same tokens.
// SPDX-License-Identifier: Apache-2.0
#include "ops/sample.h"

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
      for (int64_t V : {1, 7, 1000})
        expect_twins(concat("sample ", dtype_name(type), " ", V), [&](Side& s) {
          const int64_t T = 20;
          const Tensor logits = s.random("logits", type, {T, V}, 2.0);
          const Tensor tokens = s.out(DType::kI32, {T});
          ops::sample(s.ctx, rule, logits, s.integers("p", {T}, 100000), Tensor(tokens));
          return std::vector<Tensor>{tokens};
        });
}

}  // namespace
}  // namespace hadal::test
