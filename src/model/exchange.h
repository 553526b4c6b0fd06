// Exchange: how tokens reach the ranks of their experts and come back, in split phases.
//
//   T tokens   K choices of a token   D model width   P pages
//
// Every transfer has a start and a finish so that other work can run between them (report, 3.2.1):
// what a start was given stays as it is until its finish, and what it fills is there after that.
// dispatch takes tokens to expert rows; combine sums a token's rows. Their backward mirrors them:
// combine_backward takes gradients to rows, dispatch_backward sums them back. Routing weights
// travel with dispatch and are applied by the experts, so combine is a plain sum. Order per
// micro-batch and layer: dispatch, combine, combine_backward, dispatch_backward. A Ticket carries
// the routing through all four.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "core/context.h"
#include "model/param_layout.h"
#include "model/row_pool.h"
#include "ops/routing.h"

namespace hadal {

// What an Exchange keeps with a ticket beside what the experts read.
class Route {
 public:
  virtual ~Route() = default;
};

struct [[nodiscard]] Ticket {
  Block memory;
  Event ready;               // the transfer under way, where it runs beside the work
  ops::ExpertLayout layout;  // rows of this rank's experts
  int64_t num_pages = 0;     // P, the capacity of `layout` and of buffers of rows
  Tensor row_of_choice;      // [T, K] i32   T: tokens that came to this rank; -1: no expert here
  Tensor row_weight;         // [P*kPageRows]   routing weight of each row
  RowLease rows;             // until dispatch_finish gives them to the experts
  std::unique_ptr<Route> route;
};

class Exchange {
 public:
  virtual ~Exchange() = default;

  // Tokens x [T, D] with their choices go out. After finish rows() of the lease hold them, and the
  // ticket says whose they are; its num_pages is known before.
  virtual Ticket dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) = 0;
  virtual void dispatch_finish(Context& ctx, Ticket& ticket, RowLease* rows) = 0;
  // Rows y of this rank's experts go back; y [T, D] is their sum per token.
  virtual void combine_start(Context& ctx, Ticket& ticket, const ops::PagedRows& rows) = 0;
  virtual void combine_finish(Context& ctx, Ticket& ticket, const ops::PagedRows& rows, Out y) = 0;
  // dy [T, D] goes to each row of its token.
  virtual void combine_backward_start(Context& ctx, Ticket& ticket, In dy,
                                      const ops::PagedRows& drows) = 0;
  virtual void combine_backward_finish(Context& ctx, Ticket& ticket,
                                       const ops::PagedRows& drows) = 0;
  // drows and the gradients of the row weights go back: dx [T, D], dtopk_weight [T, K].
  virtual void dispatch_backward_start(Context& ctx, Ticket& ticket, const ops::PagedRows& drows,
                                       In drow_weight) = 0;
  virtual void dispatch_backward_finish(Context& ctx, Ticket& ticket, const ops::PagedRows& drows,
                                        In drow_weight, Out dx, Out dtopk_weight) = 0;
};

// Rows come from and go to this rank's own tokens: of all experts, or of those that are here, and
// what the others would add is left out.
class LocalExchange final : public Exchange {
 public:
  LocalExchange(RowPool& pool, int64_t num_experts)
      : LocalExchange(pool, ExpertRun{.first = 0, .count = num_experts, .of = num_experts}) {}
  LocalExchange(RowPool& pool, ExpertRun here) : pool_(pool), here_(here) {}
  Ticket dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) override;
  void dispatch_finish(Context& ctx, Ticket& ticket, RowLease* rows) override;
  void combine_start(Context& ctx, Ticket& ticket, const ops::PagedRows& rows) override;
  void combine_finish(Context& ctx, Ticket& ticket, const ops::PagedRows& rows, Out y) override;
  void combine_backward_start(Context& ctx, Ticket& ticket, In dy,
                              const ops::PagedRows& drows) override;
  void combine_backward_finish(Context& ctx, Ticket& ticket, const ops::PagedRows& drows) override;
  void dispatch_backward_start(Context& ctx, Ticket& ticket, const ops::PagedRows& drows,
                               In drow_weight) override;
  void dispatch_backward_finish(Context& ctx, Ticket& ticket, const ops::PagedRows& drows,
                                In drow_weight, Out dx, Out dtopk_weight) override;

 private:
  RowPool& pool_;
  ExpertRun here_;
};

}  // namespace hadal
