// Copies at a link's rate behind the transfers of another Exchange.
//
//   T tokens of a micro-batch   D model width
// SPDX-License-Identifier: Apache-2.0
#include "cli/paced_exchange.h"

#include "ops/copy.h"
#include "ops/fp8_wire.h"
#include "ops/paced_copy.h"

namespace hadal::cli {
namespace {

// Rows that leave a rank of 64 for each token, as in the trace.
constexpr double kRowsOfToken = 7.1;

int64_t bytes_of(const Config& c, int64_t tokens, bool fp8) {
  const auto rows = static_cast<int64_t>(kRowsOfToken * static_cast<double>(tokens));
  return rows * (fp8 ? ops::wire_bytes(c.hidden_size) : c.hidden_size * 2) / 16 * 16;
}

}  // namespace

int64_t PacedExchange::buffer_bytes(const Config& c, int64_t tokens) {
  return bytes_of(c, tokens, false);
}

PacedExchange::PacedExchange(Context& ctx, std::unique_ptr<Exchange> inner, const Config& c,
                             int64_t tokens, void* to)
    : inner_(std::move(inner)),
      row_bytes_(bytes_of(c, tokens, c.precision.fp8)),
      sum_bytes_(bytes_of(c, tokens, false)) {
  const Shape shape{sum_bytes_ / 4};
  from_memory_ = ctx.memory.take_tensor(DType::kF32, shape, &from_);
  if (to == nullptr)
    to_memory_ = ctx.memory.take_tensor(DType::kF32, shape, &to_);
  else
    to_ = Tensor(to, DType::kF32, shape);
  ops::fill(ctx, 0.0, from_);
}

void PacedExchange::send(Context& ctx, int64_t bytes) {
  ops::paced_copy(ctx, link->bytes_per_second, link->sms, from_.rows(0, bytes / 4),
                  to_.rows(0, bytes / 4));
  bytes_sent_ += bytes;
}

void PacedExchange::send_layer(Context& ctx) {
  for (const int64_t bytes : {row_bytes_, row_bytes_, sum_bytes_, sum_bytes_}) send(ctx, bytes);
}

void PacedExchange::start(Context& ctx, Ticket& t, int64_t bytes) {
  if (!link) return;
  if (link->side == nullptr) return send(ctx, bytes);
  Context side = link->side->fork(ctx);
  send(side, bytes);
  link->side->mark(t.ready);
}

void PacedExchange::finish(Context& ctx, Ticket& t) {
  if (link && link->side != nullptr) link->side->join(ctx, t.ready);
}

Ticket PacedExchange::dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) {
  Ticket t = inner_->dispatch_start(ctx, x, topk_idx, topk_weight);
  start(ctx, t, row_bytes_);
  return t;
}
void PacedExchange::dispatch_finish(Context& ctx, Ticket& t, RowLease* rows) {
  finish(ctx, t);
  inner_->dispatch_finish(ctx, t, rows);
}

void PacedExchange::combine_start(Context& ctx, Ticket& t, const ops::PagedRows& rows) {
  inner_->combine_start(ctx, t, rows);
  start(ctx, t, sum_bytes_);
}
void PacedExchange::combine_finish(Context& ctx, Ticket& t, const ops::PagedRows& rows, Out y) {
  finish(ctx, t);
  inner_->combine_finish(ctx, t, rows, y);
}

void PacedExchange::combine_backward_start(Context& ctx, Ticket& t, In dy,
                                           const ops::PagedRows& drows) {
  inner_->combine_backward_start(ctx, t, dy, drows);
  start(ctx, t, row_bytes_);
}
void PacedExchange::combine_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& drows) {
  finish(ctx, t);
  inner_->combine_backward_finish(ctx, t, drows);
}

void PacedExchange::dispatch_backward_start(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                                            In drow_weight) {
  inner_->dispatch_backward_start(ctx, t, drows, drow_weight);
  start(ctx, t, sum_bytes_);
}
void PacedExchange::dispatch_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                                             In drow_weight, Out dx, Out dtopk_weight) {
  finish(ctx, t);
  inner_->dispatch_backward_finish(ctx, t, drows, drow_weight, dx, dtopk_weight);
}

ExchangeCounters PacedExchange::counters(Context& ctx) {
  auto* counted = dynamic_cast<CountedExchange*>(inner_.get());
  return counted == nullptr ? ExchangeCounters{} : counted->counters(ctx);
}
void PacedExchange::reset_counters(Context& ctx) {
  if (auto* counted = dynamic_cast<CountedExchange*>(inner_.get())) counted->reset_counters(ctx);
}

}  // namespace hadal::cli
