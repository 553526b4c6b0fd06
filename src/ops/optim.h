// AdamW, what it needs, and moving averages.
//
// State and arithmetic in f32 (f64 if the parameter is f64); moments may be bf16. Element-wise, so
// independent of threads and sharding. Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"

namespace hadal::ops {

struct AdamW {
  double lr, beta1, beta2, eps, weight_decay;  // decay is decoupled: param *= 1 - lr * weight_decay
  int64_t step;                                // 1 for the first update
  double grad_scale;                           // gradients are multiplied by it first (clipping)
};
// param, m, v, grad: dense, same shape. eps is added to sqrt(v / (1 - beta2^step)).
HADAL_OP(adamw, Context& ctx, const AdamW& rule, In grad, Acc param, Acc m, Acc v)
// average = decay * average + (1 - decay) * x. Dense, same shape.
HADAL_OP(ema_update, Context& ctx, double decay, In x, Acc average)
// total [1] f64 += sum of x^2: fixed blocks of 4,096 elements, added in block order.
HADAL_OP(sum_squares_acc, Context& ctx, In x, Acc total)

}  // namespace hadal::ops
