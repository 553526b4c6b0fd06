// Checks of AdamW and sums of squares, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/optim.h"

#include "ops/checks.h"

namespace hadal::ops {

void adamw(Context& ctx, const AdamW& rule, In grad, Acc param, Acc m, Acc v) {
  check_same_shape(grad, "grad", param, "param");
  check_same_shape(m, "m", param, "param");
  check_same_shape(v, "v", param, "param");
  check_dense(grad, "grad");
  check_dense(param, "param");
  check_dense(m, "m");
  check_dense(v, "v");
  check_float(grad, "grad");
  check_float(param, "param");
  check_float(m, "m");
  check_float(v, "v");
  HADAL_CHECK(rule.step >= 1, "AdamW's step is ", rule.step, "; the first update is step 1");
  HADAL_CHECK(rule.beta1 >= 0 && rule.beta1 < 1, "beta1 = ", rule.beta1, " must be in [0, 1)");
  HADAL_CHECK(rule.beta2 >= 0 && rule.beta2 < 1, "beta2 = ", rule.beta2, " must be in [0, 1)");
  HADAL_DISPATCH(ctx, adamw, rule, grad, param, m, v);
}

void ema_update(Context& ctx, double decay, In x, Acc average) {
  check_same_shape(x, "x", average, "average");
  check_dense(x, "x");
  check_dense(average, "average");
  check_float(x, "x");
  check_float(average, "average");
  HADAL_CHECK(decay >= 0 && decay < 1, "the decay of an average is ", decay,
              "; it must be in [0, 1)");
  HADAL_DISPATCH(ctx, ema_update, decay, x, average);
}

void sum_squares_acc(Context& ctx, In x, Acc total) {
  HADAL_CHECK_SHAPE(total, 1);
  check_float(x, "x");
  check_dense(x, "x");
  check_dtype(total, DType::kF64, "total");
  HADAL_DISPATCH(ctx, sum_squares_acc, x, total);
}

}  // namespace hadal::ops
