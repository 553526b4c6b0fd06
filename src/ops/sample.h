// Choosing the next token from logits.
//
//   T rows   V vocabulary   K of it
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
  bool operator==(const SampleRule&) const = default;
};
// logits [T,V]; positions [T] i32, of the tokens being drawn -> tokens [T] i32
HADAL_OP(sample, Context& ctx, const SampleRule& rule, In logits, In positions, Out tokens)
// The K largest logits of each row, falling; of equal ones the smaller id first. NaN counts as
// -inf. logits [T,V] -> ids [T,K] i32, values [T,K] (f32; f64 for f64). REQUIRES: K <= V.
HADAL_OP(top_logits, Context& ctx, In logits, Out ids, Out values)

}  // namespace hadal::ops
