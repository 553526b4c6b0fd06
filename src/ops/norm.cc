// Checks of RMSNorm, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/norm.h"

#include "ops/checks.h"

namespace hadal::ops {

void rmsnorm_forward(Context& ctx, In x, In gain, double eps, Out y, Out rstd) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  HADAL_CHECK_SHAPE(gain, D);
  HADAL_CHECK_SHAPE(y, T, D);
  HADAL_CHECK_SHAPE(rstd, T);
  HADAL_CHECK(D > 0, "x is ", x.str(), "; a norm needs at least one column");
  check_float(x, "x");
  check_float(gain, "gain");
  check_float(y, "y");
  check_stat(rstd, "rstd", x, "x");
  HADAL_DISPATCH(ctx, rmsnorm_forward, x, gain, eps, y, rstd);
}

void rmsnorm_recompute(Context& ctx, In x, In gain, In rstd, Out y) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  HADAL_CHECK_SHAPE(gain, D);
  HADAL_CHECK_SHAPE(rstd, T);
  HADAL_CHECK_SHAPE(y, T, D);
  check_float(x, "x");
  check_float(gain, "gain");
  check_float(y, "y");
  check_stat(rstd, "rstd", x, "x");
  HADAL_DISPATCH(ctx, rmsnorm_recompute, x, gain, rstd, y);
}

void rmsnorm_backward(Context& ctx, In x, In gain, In rstd, In dy, Out dx, Out dgain) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  HADAL_CHECK_SHAPE(gain, D);
  HADAL_CHECK_SHAPE(rstd, T);
  HADAL_CHECK_SHAPE(dy, T, D);
  HADAL_CHECK_SHAPE(dx, T, D);
  HADAL_CHECK_SHAPE(dgain, D);
  HADAL_CHECK(D > 0, "x is ", x.str(), "; a norm needs at least one column");
  check_float(x, "x");
  check_float(gain, "gain");
  check_float(dy, "dy");
  check_float(dx, "dx");
  check_stat(rstd, "rstd", x, "x");
  check_stat(dgain, "dgain", x, "x");
  HADAL_DISPATCH(ctx, rmsnorm_backward, x, gain, rstd, dy, dx, dgain);
}

}  // namespace hadal::ops
