// Checks of rotary position embedding, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/rope.h"

#include "ops/checks.h"

namespace hadal::ops {

void rope_table(Context& ctx, In positions, In inv_freq, double magnitude, Out table) {
  const auto [T] = HADAL_SHAPE(positions, 1);
  const auto [num_pairs] = HADAL_SHAPE(inv_freq, 1);
  HADAL_CHECK_SHAPE(table, T, 2 * num_pairs);
  check_dtype(positions, DType::kI32, "positions");
  check_dtype(inv_freq, DType::kF64, "inv_freq");
  check_float(table, "table");
  HADAL_DISPATCH(ctx, rope_table, positions, inv_freq, magnitude, table);
}

void rope_apply(Context& ctx, RopeLayout layout, RopeDirection direction, In table, Acc x) {
  const auto [T, H, Dr] = HADAL_SHAPE(x, 3);
  HADAL_CHECK_SHAPE(table, T, Dr);
  HADAL_CHECK(Dr % 2 == 0, "x is ", x.str(), "; the rope width must be even");
  check_float(x, "x");
  check_float(table, "table");
  HADAL_DISPATCH(ctx, rope_apply, layout, direction, table, x);
}

}  // namespace hadal::ops
