// ExpertExchange: the Exchange among ranks, over one hop or two.
//
//   T tokens of this rank   R tokens that came here   K choices   D model width
//
// One hop: each token goes once to every rank that has one of its experts. Two hops, where the
// expert group spans several nodes (report, 3.2.2): each token goes once to every node that has one
// of its experts, to the rank of the same index there, and from it to the ranks inside the node; so
// what crosses between nodes is at most topk_group rows a token. The last rank gives a token a row
// for each of its experts; on the way back rows are summed at every stop, in f32 (f64 in f64), and
// travel in the type of the activations. Experts are in rank order, so every sum runs over
// ascending experts. Backward mirrors it.
//
// Where experts' rows are FP8, tokens and gradients are quantised once, before they leave, and
// travel so (ops/fp8_wire.h); the rows are those of one rank.
//
// Transfers, with what packs and sums rows for them, run in the side stream where there is one;
// _finish makes the stream of the work go on behind them. Only how many rows go and come the host
// has to wait for, in dispatch_start.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/side_stream.h"
#include "parallel/exchange_counters.h"
#include "parallel/expert_hop.h"

namespace hadal {

class ExpertExchange final : public CountedExchange {
 public:
  struct Groups {
    Comm& inner;                 // ranks of this rank's node that share the node's experts
    Comm* outer;                 // ranks of the same index in other nodes; none: there is one node
    int64_t num_experts;         // of the layer
    SideStream* side = nullptr;  // none: transfers are in the stream of the work
  };
  // REQUIRES: the comms, the side stream and the pool outlive it, and it the tickets.
  ExpertExchange(const Groups& groups, RowPool& pool);

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

  ExchangeCounters counters(Context& ctx) override;
  void reset_counters(Context& ctx) override;

 private:
  struct Hops;
  void count_visits(const Hops& route);
  Context fork(Context& ctx) const { return side_ == nullptr ? ctx : side_->fork(ctx); }
  void mark(Ticket& ticket) const {
    if (side_ != nullptr) ticket.ready = side_->mark();
  }
  void join(Context& ctx, Ticket& ticket) const {
    if (side_ != nullptr) side_->join(ctx, ticket.ready);
  }

  RowPool& pool_;
  SideStream* side_;
  std::vector<ExpertHop> hops_;
  bool has_outer_;
  int64_t experts_of_rank_, experts_of_node_;
  ExchangeCounters counters_;
};

}  // namespace hadal
