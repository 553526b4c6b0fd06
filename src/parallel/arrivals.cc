// Arrivals: a row for each choice.
//
//   R tokens that came   K choices   E experts of this rank   P pages
// SPDX-License-Identifier: Apache-2.0
#include "parallel/arrivals.h"

#include "model/bytes.h"
#include "ops/fp8_wire.h"

namespace hadal {

void place_rows(Context& ctx, In x, In row_of_choice, const ops::PagedRows& rows) {
  if (x.dtype() == DType::kE4M3)
    ops::place_wire_rows(ctx, x, row_of_choice, rows);
  else
    ops::scatter_rows(ctx, x, row_of_choice, rows);
}

void place_arrivals(Context& ctx, const Arrivals& came, int64_t num_experts, RowPool& pool,
                    Ticket& t, RowLease* rows) {
  const auto [R, K] = HADAL_SHAPE(came.ids, 2);
  const int64_t E = num_experts, P = t.num_pages;
  const DType stat = came.weights.dtype();
  t.memory = ctx.memory.take(ByteCount()
                                 .add(DType::kI32, {E})
                                 .add(DType::kI32, {E + 1})
                                 .add(DType::kI32, {P})
                                 .add(DType::kI32, {R, K})
                                 .add(stat, {P * ops::kPageRows})
                                 .total());
  t.layout.counts = t.memory.tensor(DType::kI32, {E});
  t.layout.page_begin = t.memory.tensor(DType::kI32, {E + 1});
  const Tensor page = t.memory.tensor(DType::kI32, {P});
  t.row_of_choice = t.memory.tensor(DType::kI32, {R, K});
  t.row_weight = t.memory.tensor(stat, {P * ops::kPageRows});
  ops::expert_layout(ctx, came.ids, t.layout, t.row_of_choice);  // [R, K]
  *rows = pool.take(t.layout, page);
  place_rows(ctx, came.x, t.row_of_choice, rows->x());                     // [rows, D]
  ops::scatter_choices(ctx, came.weights, t.row_of_choice, t.row_weight);  // [rows]
}

}  // namespace hadal
