// WindowExchange: puts, posts and waits.
//
//   G ranks   N places   T tokens of this rank   K choices   D model width   C ranks of a token
// SPDX-License-Identifier: Apache-2.0
#include "parallel/window_exchange.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/copy.h"
#include "ops/fp8_wire.h"
#include "ops/ranks.h"
#include "parallel/arrivals.h"

namespace hadal {
namespace {

constexpr int64_t kPartBytes = 256;  // parts begin at multiples of it

int64_t size_of(DType dtype) { return static_cast<int64_t>(dtype_size(dtype)); }

}  // namespace

WindowLayout::Lane WindowLayout::lane(int64_t rows, int64_t width_bytes, int64_t ids_bytes,
                                      int64_t weight_bytes) {
  const auto part = [this](int64_t size) {
    const int64_t begin = bytes;
    bytes += (size + kPartBytes - 1) / kPartBytes * kPartBytes;
    return begin;
  };
  Lane l;
  l.marks = part(ops::kMarksBytes);
  l.rows = part(rows * width_bytes);
  l.ids = part(rows * ids_bytes);
  l.weights = part(rows * weight_bytes);
  return l;
}

WindowLayout::WindowLayout(int64_t ranks, int64_t tokens, int64_t choices, int64_t width, DType act,
                           bool fp8)
    : act(act),
      width(width),
      slots((tokens + ops::kPageRows - 1) / ops::kPageRows * ops::kPageRows),
      row_bytes(fp8 ? ops::wire_bytes(width) : width * size_of(act)),
      sum_bytes(width * size_of(act)) {
  const int64_t rows = ranks * slots;
  const int64_t ids = choices * size_of(DType::kI32), weights = choices * size_of(stat_dtype(act));
  choice_bytes = ids + weights;
  dispatch = lane(rows, row_bytes, ids, weights);
  combine = lane(rows, sum_bytes, 0, 0);
  combine_backward = lane(rows, row_bytes, 0, 0);
  dispatch_backward = lane(rows, sum_bytes, 0, weights);
}

// Where the tokens of one dispatch went, and who came.
struct WindowExchange::Trip final : Route {
  Block memory;
  Tensor place_of_rank;    // [T, C] i32   place for each of a token's ranks, ascending; -1
  Tensor place_of_choice;  // [T, K] i32   place that carries a choice; -1
  Tensor arrivals;         // [N, 1] i32   where the sum of who came goes back to; -1: nobody came
  Block leaving;           // what is being copied
};

WindowExchange::WindowExchange(Context& ctx, const Group& group, const WindowLayout& layout,
                               RowPool& pool)
    : group_(group),
      layout_(layout),
      pool_(pool),
      experts_of_rank_(group.num_experts / group.view.size),
      num_places_(group.view.size * layout.slots) {
  HADAL_CHECK(experts_of_rank_ * group.view.size == group.num_experts, "ep = ", group.view.size,
              " does not divide ", group.num_experts, " experts");
  memory_ = ctx.memory.take(ByteCount()
                                .add(DType::kI32, {num_places_, 1})
                                .add(DType::kI64, {group.view.size + 5})
                                .total());
  everywhere_ = memory_.tensor(DType::kI32, {num_places_, 1});
  counts_ = memory_.tensor(DType::kI64, {group.view.size + 5});
  sent_ = counts_.rows(0, group.view.size + 1);
  posted_ = counts_.rows(group.view.size + 1, 2);
  now_ = counts_.rows(group.view.size + 3, 2);
  std::vector<int32_t> places(static_cast<size_t>(num_places_));
  std::iota(places.begin(), places.end(), 0);
  upload(ctx, places, everywhere_);
  reset_counters(ctx);
}

void WindowExchange::put(Context& side, int64_t part, In x, In place) const {
  ops::peer_put(side, group_.view, part, layout_.slots, group_.sms, x, place);
}

// In FP8 each token is quantised once, whatever the number of its ranks.
void WindowExchange::put_tokens(Context& side, const WindowLayout::Lane& lane, In x, In place,
                                bool fp8) const {
  if (!fp8) return put(side, lane.rows, x, place);
  const int64_t T = x.dim(0);
  Tensor wire;
  const Block memory = side.memory.take_tensor(DType::kE4M3, {T, layout_.row_bytes}, &wire);
  ops::pack_wire_rows(side, x, everywhere_.rows(0, T), wire);  // [T, B]
  put(side, lane.rows, wire, place);
}

// Into this rank's own window first, from where the others get it.
void WindowExchange::copy_tokens(Context& ctx, const WindowLayout::Lane& lane, In x, bool fp8,
                                 Ticket& t) const {
  const int64_t T = x.dim(0), R = layout_.slots, me = group_.view.place;
  const Tensor all = came(lane, x.dtype(), layout_.width, fp8);
  const Tensor own = all.rows(me * R, T);
  if (fp8)
    ops::pack_wire_rows(ctx, x, everywhere_.rows(0, T), Out(Tensor(own)));  // [T, B]
  else
    ops::cast(ctx, x, Out(Tensor(own)));  // [T, D]
  Context side = fork(ctx);
  ops::peer_copy(side, group_.view, lane.rows, R, T, 0, own);
  meet(side, lane, t);
}

template <class Sum>
void WindowExchange::for_each_peer(const Ticket& t, In leaving, const Sum& sum) const {
  const int64_t R = layout_.slots;
  for (int64_t g = 0; g < group_.view.size; ++g)
    if (g != group_.view.place) sum(t.row_of_choice.rows(g * R, R), Tensor(leaving.rows(g * R, R)));
}

template <class Sum>
void WindowExchange::for_own(const Ticket& t, int64_t part, In leaving, const Sum& sum) const {
  const int64_t R = layout_.slots, me = group_.view.place;
  const Tensor all = here(part, leaving.dtype(), {num_places_, leaving.dim(1)});
  sum(t.row_of_choice.rows(me * R, R), Tensor(all.rows(me * R, R)));
}

void WindowExchange::meet(Context& side, const WindowLayout::Lane& lane, Ticket& t) const {
  ops::peer_post(side, group_.view, lane.marks);
  ops::peer_await(side, group_.view, lane.marks, group_.stop);
  if (group_.side != nullptr) t.ready = group_.side->mark();
}

Tensor WindowExchange::here(int64_t part, DType dtype, const Shape& shape) const {
  const auto me = static_cast<size_t>(group_.view.place);
  return {static_cast<std::byte*>(group_.view.window[me]) + part, dtype, shape};
}
Tensor WindowExchange::came(const WindowLayout::Lane& lane, DType act, int64_t width,
                            bool fp8) const {
  if (fp8) return here(lane.rows, DType::kE4M3, {num_places_, layout_.row_bytes});
  return here(lane.rows, act, {num_places_, width});
}
ops::PagedRows WindowExchange::sums(const WindowLayout::Lane& lane, DType act,
                                    int64_t width) const {
  const Shape pages{num_places_ / ops::kPageRows, ops::kPageRows, width};
  return {.slab = here(lane.rows, act, pages), .page = Tensor()};
}

Ticket WindowExchange::dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) {
  const auto [T, K] = HADAL_SHAPE(topk_idx, 2);
  const int64_t G = group_.view.size, E = experts_of_rank_, N = num_places_;
  const int64_t C = std::min<int64_t>(K, G);
  HADAL_CHECK(T <= layout_.slots, "internal error: ", T, " tokens for windows of ", layout_.slots);
  // NOTE: beside a product that fills a GPU a kernel would wait for the product's end. So with
  // copies, which are no kernels, all that comes before them is in the stream of the work.
  Context side = copies() ? ctx : fork(ctx);
  auto trip = std::make_unique<Trip>();
  trip->memory = side.memory.take(ByteCount()
                                      .add(DType::kI32, {T, C})
                                      .add(DType::kI32, {T, K})
                                      .add(DType::kI32, {N, 1})
                                      .total());
  trip->place_of_rank = trip->memory.tensor(DType::kI32, {T, C});
  trip->place_of_choice = trip->memory.tensor(DType::kI32, {T, K});
  trip->arrivals = trip->memory.tensor(DType::kI32, {N, 1});
  ops::peer_route(side, group_.view, layout_.dispatch.ids, layout_.dispatch.weights, layout_.slots,
                  copies() ? ops::PeerSlots::kOfToken : ops::PeerSlots::kNext, E, topk_idx,
                  topk_weight, trip->place_of_rank, trip->place_of_choice, sent_);
  Ticket t;
  t.num_pages = ops::max_pages(N * std::min(K, E), E);
  if (copies()) {
    copy_tokens(ctx, layout_.dispatch, x, pool_.is_fp8(), t);
  } else {
    put_tokens(side, layout_.dispatch, x, trip->place_of_rank, pool_.is_fp8());
    ops::peer_post(side, group_.view, layout_.dispatch.marks);
    ops::peer_await(side, group_.view, layout_.dispatch.marks, group_.stop);
    ops::peer_arrivals(side, here(layout_.dispatch.ids, DType::kI32, {N, K}), trip->arrivals);
    if (group_.side != nullptr) t.ready = group_.side->mark();
  }
  t.route = std::move(trip);
  return t;
}

void WindowExchange::dispatch_finish(Context& ctx, Ticket& t, RowLease* rows) {
  join(ctx, t);
  const int64_t K = static_cast<Trip&>(*t.route).place_of_choice.dim(1), N = num_places_;
  const DType act = layout_.act;
  const Arrivals all{.x = came(layout_.dispatch, act, layout_.width, pool_.is_fp8()),
                     .ids = here(layout_.dispatch.ids, DType::kI32, {N, K}),
                     .weights = here(layout_.dispatch.weights, stat_dtype(act), {N, K})};
  place_arrivals(ctx, all, experts_of_rank_, pool_, t, rows);
}

void WindowExchange::combine_start(Context& ctx, Ticket& t, const ops::PagedRows& rows) {
  auto& trip = static_cast<Trip&>(*t.route);
  const DType act = rows.slab.dtype();
  Tensor sum;  // [N, D]
  if (copies()) {
    trip.leaving = ctx.memory.take_tensor(act, {num_places_, rows.slab.dim(2)}, &sum);
    const auto add = [&](In row_of_choice, const Tensor& of_tokens) {
      ops::combine_rows(ctx, rows, row_of_choice, Tensor(of_tokens));
    };
    for_each_peer(t, sum, add);
    Context side = fork(ctx);
    ops::peer_copy(side, group_.view, layout_.combine.rows, layout_.slots, layout_.slots,
                   layout_.slots, sum);
    meet(side, layout_.combine, t);
    return for_own(t, layout_.combine.rows, sum, add);
  }
  Context side = fork(ctx);
  const Block memory = side.memory.take_tensor(act, {num_places_, rows.slab.dim(2)}, &sum);
  ops::combine_rows(side, rows, t.row_of_choice, sum);
  put(side, layout_.combine.rows, sum, trip.arrivals);
  meet(side, layout_.combine, t);
}

void WindowExchange::combine_finish(Context& ctx, Ticket& t, const ops::PagedRows&, Out y) {
  auto& trip = static_cast<Trip&>(*t.route);
  join(ctx, t);
  trip.leaving = Block();
  ops::combine_rows(ctx, sums(layout_.combine, y.dtype(), y.dim(1)), trip.place_of_rank,
                    y);  // [T, D]
}

void WindowExchange::combine_backward_start(Context& ctx, Ticket& t, In dy,
                                            const ops::PagedRows& drows) {
  const WindowLayout::Lane& lane = layout_.combine_backward;
  const bool fp8 = !drows.scale.empty();
  if (copies()) return copy_tokens(ctx, lane, dy, fp8, t);
  Context side = fork(ctx);
  put_tokens(side, lane, dy, static_cast<Trip&>(*t.route).place_of_rank, fp8);
  meet(side, lane, t);
}

void WindowExchange::combine_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& drows) {
  join(ctx, t);
  place_rows(
      ctx,
      came(layout_.combine_backward, drows.slab.dtype(), drows.slab.dim(2), !drows.scale.empty()),
      t.row_of_choice, drows);  // [rows, D]
}

void WindowExchange::dispatch_backward_start(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                                             In drow_weight) {
  auto& trip = static_cast<Trip&>(*t.route);
  const int64_t D = drows.slab.dim(2), K = t.row_of_choice.dim(1), N = num_places_;
  const WindowLayout::Lane& lane = layout_.dispatch_backward;
  Tensor sum, weights;  // [N, D]  [N, K]
  if (copies()) {
    const DType act = drows.slab.dtype(), stat = drow_weight.dtype();
    trip.leaving = ctx.memory.take(ByteCount().add(act, {N, D}).add(stat, {N, K}).total());
    sum = trip.leaving.tensor(act, {N, D});
    weights = trip.leaving.tensor(stat, {N, K});
    const auto add = [&](In row_of_choice, const Tensor& of_tokens) {
      ops::combine_rows(ctx, drows, row_of_choice, Tensor(of_tokens));
    };
    const auto pick = [&](In row_of_choice, const Tensor& of_tokens) {
      ops::gather_choices(ctx, drow_weight, row_of_choice, Tensor(of_tokens));
    };
    for_each_peer(t, sum, add);
    for_each_peer(t, weights, pick);
    Context side = fork(ctx);
    const int64_t R = layout_.slots;
    ops::peer_copy(side, group_.view, lane.rows, R, R, R, sum);
    ops::peer_copy(side, group_.view, lane.weights, R, R, R, weights);
    meet(side, lane, t);
    for_own(t, lane.rows, sum, add);
    return for_own(t, lane.weights, weights, pick);
  }
  Context side = fork(ctx);
  const Block sum_memory = side.memory.take_tensor(drows.slab.dtype(), {N, D}, &sum);
  const Block weight_memory = side.memory.take_tensor(drow_weight.dtype(), {N, K}, &weights);
  ops::combine_rows(side, drows, t.row_of_choice, sum);
  ops::gather_choices(side, drow_weight, t.row_of_choice, weights);
  put(side, lane.rows, sum, trip.arrivals);
  put(side, lane.weights, weights, trip.arrivals);
  meet(side, lane, t);
}

void WindowExchange::dispatch_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows&, In,
                                              Out dx, Out dtopk_weight) {
  auto& trip = static_cast<Trip&>(*t.route);
  const int64_t K = dtopk_weight.dim(1);
  join(ctx, t);
  trip.leaving = Block();
  ops::combine_rows(ctx, sums(layout_.dispatch_backward, dx.dtype(), dx.dim(1)), trip.place_of_rank,
                    dx);  // [T, D]
  ops::hop_values(ctx,
                  here(layout_.dispatch_backward.weights, dtopk_weight.dtype(), {num_places_, K}),
                  trip.place_of_choice, dtopk_weight);  // [T, K]
}

// Each dispatch has a post of its own, and so has each backward pass.
void WindowExchange::read_posts(Context& ctx, const Tensor& posts) const {
  ops::peer_posts(ctx, group_.view, layout_.dispatch.marks, Tensor(posts.rows(0, 1)));
  ops::peer_posts(ctx, group_.view, layout_.combine_backward.marks, Tensor(posts.rows(1, 1)));
}

// A row that goes to another rank comes back as a sum; backward mirrors it.
ExchangeCounters WindowExchange::counters(Context& ctx) {
  read_posts(ctx, now_);
  const std::vector<int64_t> counts = download<int64_t>(ctx, counts_);
  const auto sent = counts.begin(), tokens_at = sent + group_.view.size;
  const auto posted = tokens_at + 1, now = posted + 2;
  const int64_t dispatches = now[0] - posted[0], backwards = now[1] - posted[1];
  const int64_t tokens = *tokens_at, all = std::accumulate(sent, tokens_at, int64_t{0});
  const int64_t others = group_.view.size - 1;
  const int64_t there = copies() ? tokens * others : all - sent[group_.view.place];
  const int64_t back = copies() ? dispatches * layout_.slots * others : there;
  const int64_t once = there * layout_.row_bytes + back * layout_.sum_bytes;
  return {.tokens = tokens,
          .rank_visits = all,
          .node_visits = tokens,
          .most_nodes = std::min<int64_t>(tokens, 1),
          .node_bytes = once + dispatches * others * layout_.slots * layout_.choice_bytes +
                        (dispatches > 0 ? once / dispatches * backwards : 0)};
}

void WindowExchange::reset_counters(Context& ctx) {
  ops::fill(ctx, 0.0, sent_);
  read_posts(ctx, posted_);
}

}  // namespace hadal
