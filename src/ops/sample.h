// Choosing the next token from logits.
//
//   T rows   V vocabulary
//
// The token at position p is drawn with a counter-based generator of (seed, p): the same whether or
// not it was drafted, whatever else is in the batch. Deterministic; ties go to the smaller token
// id.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"

namespace hadal::ops {

struct SampleRule {
  double temperature = 0.0;  // 0 is greedy
  int64_t top_k = 0;         // 0 keeps all
  double top_p = 1.0;        // smallest set of most probable tokens with at least this probability
  uint64_t seed = 0;
};
// logits [T,V]; positions [T] i32, of the tokens being drawn -> tokens [T] i32
HADAL_OP(sample, Context& ctx, const SampleRule& rule, In logits, In positions, Out tokens)

}  // namespace hadal::ops
