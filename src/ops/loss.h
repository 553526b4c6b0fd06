// Cross-entropy of a chunk of tokens.
//
//   T tokens of the chunk   V vocabulary
//
// Log-sum-exp in f32 (f64 for f64). A target of -1 means no target: loss 0, gradient 0.
// Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"

namespace hadal::ops {

// logits [T,V], targets [T] i32 -> lse [T], loss [T] (f32; f64 for f64 logits)
HADAL_OP(cross_entropy_forward, Context& ctx, In logits, In targets, Out lse, Out loss)
// dlogits = scale * (softmax(logits) - onehot(target)); dlogits may be logits itself.
HADAL_OP(cross_entropy_backward, Context& ctx, In logits, In targets, In lse, double scale,
         Out dlogits)
// total [1] f64 += sum of x (f64; in index order on a CPU, in another fixed order on CUDA)
HADAL_OP(sum_acc, Context& ctx, In x, Acc total)

}  // namespace hadal::ops
