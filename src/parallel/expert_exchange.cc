// ExpertExchange: hops out, rows for the experts, hops back.
//
//   T tokens of this rank   R tokens that came here   K choices   D model width   P pages
// SPDX-License-Identifier: Apache-2.0
#include "parallel/expert_exchange.h"

#include <algorithm>
#include <utility>

#include "core/stream_state.h"
#include "parallel/arrivals.h"

namespace hadal {

// Where the tokens of one dispatch went; what waits between a start and its finish.
struct ExpertExchange::Hops final : Route {
  std::vector<ExpertHop::Route> hops;
  ExpertHop::Tokens came;       // from the last hop: x, or a gradient in its place
  RowBuffer back, back_weight;  // of the first hop: [N, D]  [N, K]
};

ExpertExchange::ExpertExchange(const Groups& g, RowPool& pool)
    : pool_(pool), side_(g.side), has_outer_(g.outer != nullptr) {
  const int64_t num_nodes = has_outer_ ? g.outer->size() : 1;
  experts_of_node_ = g.num_experts / num_nodes;
  experts_of_rank_ = experts_of_node_ / g.inner.size();
  HADAL_CHECK(experts_of_rank_ * g.inner.size() * num_nodes == g.num_experts,
              "ep = ", g.inner.size() * num_nodes, " does not divide ", g.num_experts, " experts");
  if (has_outer_) hops_.emplace_back(*g.outer, experts_of_node_);
  hops_.emplace_back(g.inner, experts_of_rank_);
}

ExchangeCounters ExpertExchange::counters(Context&) {
  ExchangeCounters c = counters_;
  c.node_bytes = hops_.back().bytes();
  c.link_bytes = has_outer_ ? hops_.front().bytes() : 0;
  return c;
}

void ExpertExchange::reset_counters(Context&) {
  counters_ = {};
  for (ExpertHop& hop : hops_) hop.reset_bytes();
}

// A token goes on from its last hop to the ranks of its experts.
void ExpertExchange::count_visits(const Hops& route) {
  const ExpertHop::Route &first = route.hops.front(), &last = route.hops.back();
  const int64_t T = first.num_tokens;
  counters_.tokens += T;
  counters_.rank_visits += last.num_send;
  counters_.node_visits += has_outer_ ? first.num_send : T;
  counters_.most_nodes =
      std::max(counters_.most_nodes, has_outer_ ? first.most_ranks : std::min<int64_t>(T, 1));
}

namespace {

ExpertHop::Wire wire_of(bool rows_are_fp8) {
  return rows_are_fp8 ? ExpertHop::Wire::kFp8 : ExpertHop::Wire::kAsIs;
}

}  // namespace

Ticket ExpertExchange::dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) {
  HADAL_CHECK(!device::is_recording(ctx.device, ctx.stream),
              "tokens cannot be sent to other ranks' experts in recorded work: the host has to "
              "learn how many come");
  Context side = fork(ctx);
  auto route = std::make_unique<Hops>();
  route->hops.resize(hops_.size());
  const ExpertHop::Wire wire = wire_of(pool_.is_fp8());
  ExpertHop::Tokens& came = route->came;
  came = hops_[0].dispatch(side, wire, x, topk_idx, topk_weight, &route->hops[0]);  // [R, D]
  for (size_t h = 1; h < hops_.size(); ++h)
    came = hops_[h].dispatch(side, wire, came.x.rows, came.ids.rows, came.weights.rows,
                             &route->hops[h]);
  count_visits(*route);
  Ticket t;
  for (const int64_t n : route->hops.back().expert_rows)
    t.num_pages += (n + ops::kPageRows - 1) / ops::kPageRows;
  t.num_pages = std::max<int64_t>(1, t.num_pages);
  t.route = std::move(route);
  mark(t);
  return t;
}

// A row for each choice that is here.
void ExpertExchange::dispatch_finish(Context& ctx, Ticket& t, RowLease* rows) {
  join(ctx, t);
  ExpertHop::Tokens& came = static_cast<Hops&>(*t.route).came;
  place_arrivals(ctx, {.x = came.x.rows, .ids = came.ids.rows, .weights = came.weights.rows},
                 experts_of_rank_, pool_, t, rows);
  came = {};
}

void ExpertExchange::combine_start(Context& ctx, Ticket& t, const ops::PagedRows& rows) {
  Context side = fork(ctx);
  auto& route = static_cast<Hops&>(*t.route);
  const DType act = rows.slab.dtype();
  const int64_t D = rows.slab.dim(2);
  RowBuffer sums(side, act, route.hops.back().num_recv, D);
  ops::combine_rows(side, rows, t.row_of_choice, sums.rows);  // [R, D]
  for (size_t h = hops_.size(); h-- > 0;) {
    RowBuffer back = hops_[h].come_back(side, route.hops[h], sums.rows);  // [N, D]
    if (h == 0) {
      route.back = std::move(back);
      break;
    }
    sums = RowBuffer(side, act, route.hops[h].num_tokens, D);
    hops_[h].sum(side, route.hops[h], back, sums.rows);
  }
  mark(t);
}

void ExpertExchange::combine_finish(Context& ctx, Ticket& t, const ops::PagedRows&, Out y) {
  join(ctx, t);
  auto& route = static_cast<Hops&>(*t.route);
  hops_[0].sum(ctx, route.hops[0], route.back, y);  // [T, D]
  route.back = RowBuffer();
}

void ExpertExchange::combine_backward_start(Context& ctx, Ticket& t, In dy,
                                            const ops::PagedRows& drows) {
  Context side = fork(ctx);
  auto& route = static_cast<Hops&>(*t.route);
  const ExpertHop::Wire wire = wire_of(!drows.scale.empty());
  RowBuffer& in = route.came.x;
  in = hops_[0].go(side, wire, route.hops[0], dy);  // [R, D]
  for (size_t h = 1; h < hops_.size(); ++h) in = hops_[h].go(side, wire, route.hops[h], in.rows);
  mark(t);
}

void ExpertExchange::combine_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& drows) {
  join(ctx, t);
  RowBuffer& in = static_cast<Hops&>(*t.route).came.x;
  place_rows(ctx, in.rows, t.row_of_choice, drows);  // [rows, D]
  in = RowBuffer();
}

void ExpertExchange::dispatch_backward_start(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                                             In drow_weight) {
  Context side = fork(ctx);
  auto& route = static_cast<Hops&>(*t.route);
  const DType act = drows.slab.dtype(), stat = drow_weight.dtype();
  const int64_t D = drows.slab.dim(2), K = t.row_of_choice.dim(1);
  RowBuffer sums(side, act, route.hops.back().num_recv, D);
  RowBuffer weights(side, stat, route.hops.back().num_recv, K);
  ops::combine_rows(side, drows, t.row_of_choice, sums.rows);             // [R, D]
  ops::gather_choices(side, drow_weight, t.row_of_choice, weights.rows);  // [R, K]
  for (size_t h = hops_.size(); h-- > 0;) {
    RowBuffer back = hops_[h].come_back(side, route.hops[h], sums.rows);            // [N, D]
    RowBuffer back_weight = hops_[h].come_back(side, route.hops[h], weights.rows);  // [N, K]
    if (h == 0) {
      route.back = std::move(back);
      route.back_weight = std::move(back_weight);
      break;
    }
    sums = RowBuffer(side, act, route.hops[h].num_tokens, D);
    weights = RowBuffer(side, stat, route.hops[h].num_tokens, K);
    hops_[h].sum(side, route.hops[h], back, sums.rows);
    hops_[h].pick(side, route.hops[h], back_weight, weights.rows);
  }
  mark(t);
}

void ExpertExchange::dispatch_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows&, In,
                                              Out dx, Out dtopk_weight) {
  join(ctx, t);
  auto& route = static_cast<Hops&>(*t.route);
  hops_[0].sum(ctx, route.hops[0], route.back, dx);                    // [T, D]
  hops_[0].pick(ctx, route.hops[0], route.back_weight, dtopk_weight);  // [T, K]
  route.back = RowBuffer();
  route.back_weight = RowBuffer();
}

}  // namespace hadal
