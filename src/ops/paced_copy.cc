// Checks of paced copies, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/paced_copy.h"

#include "ops/checks.h"

namespace hadal::ops {

void paced_copy(Context& ctx, double bytes_per_second, int blocks, In x, Out y) {
  HADAL_CHECK(bytes_per_second > 0.0 && blocks > 0, "paced_copy: ", bytes_per_second,
              " bytes a second by ", blocks, " blocks; both must be more than 0");
  const auto [n] = HADAL_SHAPE(x, 1);
  HADAL_CHECK_SHAPE(y, n);
  check_dtype(y, x.dtype(), "y");
  check_dense(x, "x");
  check_dense(y, "y");
  HADAL_CHECK(x.num_bytes() % 16 == 0, "paced_copy: ", x.str(), " is not of 16-byte multiples");
  HADAL_DISPATCH(ctx, paced_copy, bytes_per_second, blocks, x, y);
}

}  // namespace hadal::ops
