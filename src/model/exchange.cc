// LocalExchange: dispatch and combine within one rank.
//
//   T tokens   K choices of a token   P pages
// SPDX-License-Identifier: Apache-2.0
#include "model/exchange.h"

#include <algorithm>
#include <utility>

#include "model/bytes.h"
#include "ops/fp8.h"

namespace hadal {

namespace {

// Rows in e4m3 are quantised once per token (report, 3.3.3).
void scatter_tokens(Context& ctx, In x, In row_of_choice, const ops::PagedRows& rows) {
  if (rows.scale.empty()) return ops::scatter_rows(ctx, x, row_of_choice, rows);
  ops::scatter_quantised_rows(ctx, x, row_of_choice, rows);
}

}  // namespace

Ticket LocalExchange::dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) {
  const auto [T, K] = HADAL_SHAPE(topk_idx, 2);
  // A token has one row of an expert: at most E, where other experts' rows are left out.
  const int64_t E = here_.count, rows_of_token = here_.are_all() ? K : std::min(K, E);
  const int64_t P = ops::max_pages(T * rows_of_token, E);
  const DType stat = stat_dtype(x.dtype());
  Ticket t;
  t.num_pages = P;
  t.memory = ctx.memory.take(ByteCount()
                                 .add(DType::kI32, {E})
                                 .add(DType::kI32, {E + 1})
                                 .add(DType::kI32, {P})
                                 .add(DType::kI32, {T, K})
                                 .add(stat, {P * ops::kPageRows})
                                 .total());
  t.layout.counts = t.memory.tensor(DType::kI32, {E});
  t.layout.page_begin = t.memory.tensor(DType::kI32, {E + 1});
  const Tensor page = t.memory.tensor(DType::kI32, {P});
  t.row_of_choice = t.memory.tensor(DType::kI32, {T, K});
  t.row_weight = t.memory.tensor(stat, {P * ops::kPageRows});
  Tensor choices = topk_idx;
  Block choices_memory;
  if (!here_.are_all()) {
    choices_memory = ctx.memory.take_tensor(DType::kI32, {T, K}, &choices);
    ops::choices_here(ctx, topk_idx, here_.first, here_.count, choices);  // [T, K]
  }
  ops::expert_layout(ctx, choices, t.layout, t.row_of_choice);  // [T, K]
  t.rows = pool_.take(t.layout, page);
  scatter_tokens(ctx, x, t.row_of_choice, t.rows.x());                    // [rows, D]
  ops::scatter_choices(ctx, topk_weight, t.row_of_choice, t.row_weight);  // [rows]
  return t;
}

void LocalExchange::dispatch_finish(Context&, Ticket& t, RowLease* rows) {
  *rows = std::move(t.rows);
}

void LocalExchange::combine_start(Context&, Ticket&, const ops::PagedRows&) {}

void LocalExchange::combine_finish(Context& ctx, Ticket& ticket, const ops::PagedRows& rows,
                                   Out y) {
  ops::combine_rows(ctx, rows, ticket.row_of_choice, y);  // [T, D]
}

void LocalExchange::combine_backward_start(Context& ctx, Ticket& ticket, In dy,
                                           const ops::PagedRows& drows) {
  scatter_tokens(ctx, dy, ticket.row_of_choice, drows);  // [rows, D]
}

void LocalExchange::combine_backward_finish(Context&, Ticket&, const ops::PagedRows&) {}

void LocalExchange::dispatch_backward_start(Context&, Ticket&, const ops::PagedRows&, In) {}

void LocalExchange::dispatch_backward_finish(Context& ctx, Ticket& ticket,
                                             const ops::PagedRows& drows, In drow_weight, Out dx,
                                             Out dtopk_weight) {
  ops::combine_rows(ctx, drows, ticket.row_of_choice, dx);                    // [T, D]
  ops::gather_choices(ctx, drow_weight, ticket.row_of_choice, dtopk_weight);  // [T, K]
}

}  // namespace hadal
