// Checks of cross-entropy, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/loss.h"

#include "ops/checks.h"

namespace hadal::ops {

void cross_entropy_forward(Context& ctx, In logits, In targets, Out lse, Out loss) {
  const auto [T, V] = HADAL_SHAPE(logits, 2);
  HADAL_CHECK_SHAPE(targets, T);
  HADAL_CHECK_SHAPE(lse, T);
  HADAL_CHECK_SHAPE(loss, T);
  check_float(logits, "logits");
  check_dtype(targets, DType::kI32, "targets");
  check_stat(lse, "lse", logits, "logits");
  check_stat(loss, "loss", logits, "logits");
  HADAL_DISPATCH(ctx, cross_entropy_forward, logits, targets, lse, loss);
}

void cross_entropy_backward(Context& ctx, In logits, In targets, In lse, double scale,
                            Out dlogits) {
  const auto [T, V] = HADAL_SHAPE(logits, 2);
  HADAL_CHECK_SHAPE(targets, T);
  HADAL_CHECK_SHAPE(lse, T);
  HADAL_CHECK_SHAPE(dlogits, T, V);
  check_float(logits, "logits");
  check_float(dlogits, "dlogits");
  check_dtype(targets, DType::kI32, "targets");
  check_stat(lse, "lse", logits, "logits");
  HADAL_DISPATCH(ctx, cross_entropy_backward, logits, targets, lse, scale, dlogits);
}

void sum_acc(Context& ctx, In x, Acc total) {
  HADAL_SHAPE(x, 1);
  HADAL_CHECK_SHAPE(total, 1);
  check_float(x, "x");
  check_dtype(total, DType::kF64, "total");
  HADAL_DISPATCH(ctx, sum_acc, x, total);
}

}  // namespace hadal::ops
