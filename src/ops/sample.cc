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

}  // namespace hadal::ops
