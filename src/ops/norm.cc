// Checks of RMSNorm, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/norm.h"

#include "ops/checks.h"

namespace hadal::ops {
namespace {

void check_forward(const Tensor& x, const Tensor& gain, const Tensor& y, const Tensor& rstd) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  HADAL_CHECK_SHAPE(gain, D);
  HADAL_CHECK_SHAPE(y, T, D);
  HADAL_CHECK_SHAPE(rstd, T);
  HADAL_CHECK(D > 0, "x is ", x.str(), "; a norm needs at least one column");
  check_float(x, "x");
  check_float(gain, "gain");
  check_float(y, "y");
  check_stat(rstd, "rstd", x, "x");
}

}  // namespace

void rmsnorm_forward(Context& ctx, In x, In gain, double eps, Out y, Out rstd) {
  check_forward(x, gain, y, rstd);
  HADAL_DISPATCH(ctx, rmsnorm_forward, x, gain, eps, y, rstd);
}

void rmsnorm_forward_tiles(Context& ctx, In x, In gain, double eps, Out y, Out rstd,
                           const TileRows& y_tiles) {
  check_forward(x, gain, y, rstd);
  const auto [T, D] = HADAL_SHAPE(y_tiles.data, 2);
  HADAL_CHECK_SHAPE(x, T, D);
  HADAL_CHECK(y_tiles.scale.rank() == 2 && y_tiles.scale.dim(0) == num_tiles(D) &&
                  y_tiles.scale.dim(1) >= T,
              "the scales of y's tiles are ", y_tiles.scale.str(), "; f32 [", num_tiles(D),
              ", rows of whole pages] is needed");
  HADAL_DISPATCH(ctx, rmsnorm_forward_tiles, x, gain, eps, y, rstd, y_tiles);
}

void in_steps::rmsnorm_forward_tiles(Context& ctx, In x, In gain, double eps, Out y, Out rstd,
                                     const TileRows& y_tiles) {
  rmsnorm_forward(ctx, x, gain, eps, y, rstd);
  quantise_rows(ctx, y, {}, y_tiles);
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
