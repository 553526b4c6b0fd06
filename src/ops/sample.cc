// Checks of sampling, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/sample.h"

#include <cmath>

#include "ops/checks.h"

namespace hadal::ops {

void sample(Context& ctx, const SampleRule& rule, In logits, In positions, Out tokens) {
  check_draws(logits, positions, tokens);
  HADAL_CHECK(rule.temperature >= 0 && std::isfinite(rule.temperature),
              "temperature = ", rule.temperature, " must be 0 (greedy) or a positive number");
  HADAL_CHECK(rule.top_k >= 0, "top_k = ", rule.top_k, " must be 0 (all) or a positive number");
  HADAL_CHECK(rule.top_p > 0 && rule.top_p <= 1, "top_p = ", rule.top_p, " must be in (0, 1]");
  HADAL_DISPATCH(ctx, sample, rule, logits, positions, tokens);
}

void top_logits(Context& ctx, In logits, Out ids, Out values) {
  const auto [T, V] = HADAL_SHAPE(logits, 2);
  const auto [rows, K] = HADAL_SHAPE(ids, 2);
  HADAL_CHECK(rows == T && K <= V, "ids is ", ids.str(), "; the largest of ", logits.str(),
              " are [", T, ", at most ", V, "]");
  check_float(logits, "logits");
  check_dtype(ids, DType::kI32, "ids");
  check_same_shape(values, "values", ids, "ids");
  check_stat(values, "values", logits, "logits");
  check_dense(ids, "ids");
  check_dense(values, "values");
  HADAL_DISPATCH(ctx, top_logits, logits, ids, values);
}

}  // namespace hadal::ops
