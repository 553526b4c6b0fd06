// Routed experts: grouped SwiGLU over the rows that dispatch brought, the routing weight inside.
//
//   P pages of kPageRows rows   E experts   D model width   F hidden width of an expert
//
// Row counts and offsets are device data; the host knows capacities only. Rows past an expert's
// count are never read or written. An expert without rows adds nothing to its gradient. Per
// micro-batch: forward -> backward_input -> backward_weight, each once.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "model/config.h"
#include "model/params.h"
#include "model/row_pool.h"

namespace hadal::experts {

// What one call works on: the routing of a Ticket, by reference.
struct Rows {
  const ops::ExpertLayout& layout;
  In row_weight;      // [P*kPageRows]
  int64_t num_pages;  // capacity P
};
struct [[nodiscard]] Saved {
  RowLease rows;  // x [rows, D] and gate_up [rows, 2F]
};
struct [[nodiscard]] Deferred {
  RowLease rows;  // x [rows, D]
  Block memory;
  ops::ExpertLayout layout;
  ops::PagedRows dy;        // [rows, D]
  ops::PagedRows hidden;    // [rows, F]   weighted SwiGLU output
  ops::PagedRows dgate_up;  // [rows, 2F]
  bool fp8 = false;         // dy is e4m3 then
};

using Weights = Params<Operand>;
using Grads = Params<Tensor>;
// y rows [P, kPageRows, D]
void forward(Context& ctx, const Config& config, const Weights& w, const Rows& rows, Saved& saved,
             const ops::PagedRows& y);
// d.dy was filled by combine_backward; writes dx rows and drow_weight [P*kPageRows].
void backward_input(Context& ctx, const Config& config, const Weights& w, const Rows& rows,
                    Saved&& saved, Deferred& d, const ops::PagedRows& dx, Out drow_weight);
void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw);  // dw += ...

// A Deferred with room for dy, hidden and dgate_up.
Deferred make_deferred(Context& ctx, const Config& config, const ops::ExpertLayout& layout,
                       int64_t num_pages, DType act);

}  // namespace hadal::experts
