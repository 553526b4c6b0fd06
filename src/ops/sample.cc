// Checks of sampling, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/sample.h"

#include <cmath>

#include "ops/checks.h"

namespace hadal::ops {

void sample(Context& ctx, const SampleRule& rule, In logits, In positions, Out tokens) {
  const auto [T, V] = HADAL_SHAPE(logits, 2);
  HADAL_CHECK_SHAPE(positions, T);
  HADAL_CHECK_SHAPE(tokens, T);
  HADAL_CHECK(T == 0 || V > 0, "logits is ", logits.str(), "; there is no token to choose");
  check_float(logits, "logits");
  check_dtype(positions, DType::kI32, "positions");
  check_dtype(tokens, DType::kI32, "tokens");
  HADAL_CHECK(rule.temperature >= 0 && std::isfinite(rule.temperature),
              "temperature = ", rule.temperature, " must be 0 (greedy) or a positive number");
  HADAL_CHECK(rule.top_k >= 0, "top_k = ", rule.top_k, " must be 0 (all) or a positive number");
  HADAL_CHECK(rule.top_p > 0 && rule.top_p <= 1, "top_p = ", rule.top_p, " must be in (0, 1]");
  HADAL_DISPATCH(ctx, sample, rule, logits, positions, tokens);
}

}  // namespace hadal::ops
