// Tokens to the rows of their experts.
//
//   T tokens   K choices of a token   D model width
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "ops/pages.h"

namespace hadal {

// x [T, D] to the rows of row_of_choice [T, K]; row -1 is a choice that is left out. Rows in e4m3
// are quantised once per token (report, 3.3.3).
void scatter_tokens(Context& ctx, In x, In row_of_choice, const ops::PagedRows& rows);

}  // namespace hadal
