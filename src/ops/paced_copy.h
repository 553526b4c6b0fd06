// A copy at the rate of a link: for benches that hide a transfer behind work where there is no
// second device to send to.
//
//   n elements
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"

namespace hadal::ops {

// y = x [n], of 16-byte multiples, done no sooner than its bytes / bytes_per_second after it
// begins. On a GPU `blocks` blocks do it, of an SM each, as kernels that send do; on the CPU this
// thread does.
HADAL_OP(paced_copy, Context& ctx, double bytes_per_second, int blocks, In x, Out y)

}  // namespace hadal::ops
