// Checks of element-wise movement, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/copy.h"

#include "ops/checks.h"

namespace hadal::ops {

void cast(Context& ctx, In x, Out y) {
  check_same_shape(x, "x", y, "y");
  check_float(x, "x");
  check_float(y, "y");
  HADAL_DISPATCH(ctx, cast, x, y);
}

void add(Context& ctx, In a, In b, Out c) {
  check_same_shape(a, "a", c, "c");
  check_same_shape(b, "b", c, "c");
  check_float(a, "a");
  check_float(b, "b");
  check_float(c, "c");
  HADAL_DISPATCH(ctx, add, a, b, c);
}

void add_acc(Context& ctx, In x, Acc y) {
  check_same_shape(x, "x", y, "y");
  check_float(x, "x");
  check_float(y, "y");
  HADAL_DISPATCH(ctx, add_acc, x, y);
}

void fill(Context& ctx, double value, Out x) { HADAL_DISPATCH(ctx, fill, value, x); }

void embed_forward(Context& ctx, In table, In ids, Out x) {
  const auto [V, D] = HADAL_SHAPE(table, 2);
  const auto [T] = HADAL_SHAPE(ids, 1);
  HADAL_CHECK_SHAPE(x, T, D);
  check_float(table, "table");
  check_float(x, "x");
  check_dtype(ids, DType::kI32, "ids");
  HADAL_DISPATCH(ctx, embed_forward, table, ids, x);
}

void embed_backward_acc(Context& ctx, In dx, In ids, Acc dtable) {
  const auto [V, D] = HADAL_SHAPE(dtable, 2);
  const auto [T] = HADAL_SHAPE(ids, 1);
  HADAL_CHECK_SHAPE(dx, T, D);
  check_float(dx, "dx");
  check_float(dtable, "dtable");
  check_dtype(ids, DType::kI32, "ids");
  HADAL_DISPATCH(ctx, embed_backward_acc, dx, ids, dtable);
}

}  // namespace hadal::ops
