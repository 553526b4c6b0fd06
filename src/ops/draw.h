// Drawing the tokens of many sequences on the device, each by a rule of its own.
//
//   T rows   V vocabulary   N tokens drawn before
//
// A row's token is ops::sample()'s by the same rule (sample.h). Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/sample.h"

namespace hadal::ops {

// A rule for each row, on the device: the fields of SampleRule.
struct SampleRules {
  Tensor temperature, top_p;  // [T] f64
  Tensor top_k, seed;         // [T] i64
};
// logits [T,V]; positions [T] i32, of the tokens being drawn -> tokens [T] i32. Values outside of
// what sample() takes: nothing is promised.
HADAL_OP(sample_each, Context& ctx, const SampleRules& rules, In logits, In positions, Out tokens)

// The tokens of a step, some of which the host does not know yet: ids[t] = given[t], or where that
// is negative, drawn[-1 - given[t]]. given, ids [T] i32; drawn [N] i32
HADAL_OP(fill_tokens, Context& ctx, In given, In drawn, Out ids)

}  // namespace hadal::ops
