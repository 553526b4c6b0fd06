// Checks of drawing, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/draw.h"

#include "ops/checks.h"

namespace hadal::ops {

void sample_each(Context& ctx, const SampleRules& rules, In logits, In positions, Out tokens) {
  check_draws(logits, positions, tokens);
  const int64_t rows = logits.dim(0);
  const auto check_rule = [&](const Tensor& t, DType dtype, const char* name) {
    check_dtype(t, dtype, name);
    HADAL_CHECK(t.shape() == Shape({rows}) && t.is_dense(), name, " is ", t.str(),
                "; it must be dense, a value for each of ", rows, " rows");
  };
  check_rule(rules.temperature, DType::kF64, "temperature");
  check_rule(rules.top_p, DType::kF64, "top_p");
  check_rule(rules.top_k, DType::kI64, "top_k");
  check_rule(rules.seed, DType::kI64, "seed");
  HADAL_DISPATCH(ctx, sample_each, rules, logits, positions, tokens);
}

void fill_tokens(Context& ctx, In given, In drawn, Out ids) {
  const auto [T] = HADAL_SHAPE(given, 1);
  HADAL_CHECK(drawn.rank() == 1, "drawn is ", drawn.str(), "; it must have one dimension");
  HADAL_CHECK_SHAPE(ids, T);
  check_dtype(given, DType::kI32, "given");
  check_dtype(drawn, DType::kI32, "drawn");
  check_dtype(ids, DType::kI32, "ids");
  HADAL_DISPATCH(ctx, fill_tokens, given, drawn, ids);
}

}  // namespace hadal::ops
