// Arrivals: tokens that came to this rank's experts, and their rows.
//
//   R tokens that came, or places for them   K choices   E experts of this rank   D model width
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/exchange.h"

namespace hadal {

// What came, in the type of the experts' rows or as rows of FP8 (ops/fp8_wire.h).
struct Arrivals {
  Tensor x;        // [R, D]
  Tensor ids;      // [R, K] i32   experts of this rank; -1: elsewhere, or nobody came
  Tensor weights;  // [R, K]
};

// A row for each choice that is here: fills the ticket's layout, pages and row weights.
// REQUIRES: ticket.num_pages is enough for them.
void place_arrivals(Context& ctx, const Arrivals& came, int64_t num_experts, RowPool& pool,
                    Ticket& ticket, RowLease* rows);
// x [R, D] to the rows of its token.
void place_rows(Context& ctx, In x, In row_of_choice, const ops::PagedRows& rows);

}  // namespace hadal
