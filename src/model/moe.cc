// Mixture of experts: the stages and their backward.
//
//   T tokens   D model width   P pages
// SPDX-License-Identifier: Apache-2.0
#include "model/moe.h"

#include <utility>

#include "model/bytes.h"
#include "ops/copy.h"
#include "ops/few_tokens.h"

namespace hadal::moe {
namespace {

experts::Rows rows_of(const Ticket& t) {
  return {.layout = t.layout, .row_weight = t.row_weight, .num_pages = t.num_pages};
}

Saved dispatch(Context& ctx, Exchange& exchange, gate::Saved&& choice, In x) {
  Saved s;
  s.gate = std::move(choice);
  s.ticket = exchange.dispatch_start(ctx, x, s.gate.topk_idx, s.gate.topk_weight);
  return s;
}

}  // namespace

Saved dispatch_forward(Context& ctx, const Config& c, const Weights& w, Exchange& exchange,
                       const Packed& seq, In x, const TensorGroup& group) {
  return dispatch(ctx, exchange, gate::forward(ctx, c, w.gate, seq, x, group), x);
}

void mlp_forward(Context& ctx, const Config& c, const Weights& w, Exchange& exchange, In x,
                 Saved& s, const ops::TileRows& x_tiles) {
  const Shape rows_shape{s.ticket.num_pages, ops::kPageRows, x.dim(1)};
  s.memory = ctx.memory.take_tensor(x.dtype(), rows_shape, &s.y_rows.slab);
  if (c.n_shared_experts > 0)
    s.shared = mlp::first_forward(ctx, w.shared, x, c.precision, x_tiles, &s.half);
  exchange.dispatch_finish(ctx, s.ticket, &s.experts.rows);
  experts::forward(ctx, c, w.experts, rows_of(s.ticket), s.experts, s.y_rows);  // [rows, D]
  exchange.combine_start(ctx, s.ticket, s.y_rows);
}

void combine_forward(Context& ctx, const Config& c, const Weights& w, Exchange& exchange, Saved& s,
                     Out y) {
  Tensor y_shared;
  Block memory;
  if (c.n_shared_experts > 0) {
    memory = ctx.memory.take_tensor(y.dtype(), y.shape(), &y_shared);
    mlp::second_forward(ctx, w.shared, s.shared, std::move(s.half), y_shared);  // [T, D]
  }
  exchange.combine_finish(ctx, s.ticket, s.y_rows, y);         // [T, D]
  if (!y_shared.empty()) ops::add_acc(ctx, y_shared, Acc(y));  // [T, D]
  s.memory = Block();
}

Saved forward(Context& ctx, const Config& c, const Weights& w, Exchange& exchange,
              const Packed& seq, In x, Out y) {
  Saved s = dispatch_forward(ctx, c, w, exchange, seq, x);
  mlp_forward(ctx, c, w, exchange, x, s);
  combine_forward(ctx, c, w, exchange, s, y);
  return s;
}

namespace {

// Of ops::MoeWeights.
int64_t first_expert(const Config& c, const TensorGroup& tensor) {
  if (tensor.is_alone()) return -1;
  return decode_experts(c, {.ways = tensor.size(), .index = tensor.rank()}).first;
}

}  // namespace

void decode(Context& ctx, const Config& c, const Weights& w, Exchange& exchange,
            const DecodeGroup& group, In x, In logits, Acc y) {
  ops::MoeWeights weights{.w1 = w.experts.w1,
                          .w3 = w.experts.w3,
                          .w2 = w.experts.w2,
                          .shared_w1 = w.shared.w1,
                          .shared_w3 = w.shared.w3,
                          .shared_w2 = w.shared.w2,
                          .first_expert = first_expert(c, group.tensor),
                          .sums = group.has_all_tokens() ? group.tensor.sums() : nullptr};
  bool pays = false;
  // The experts that are here, of rows that are.
  const auto add_part = [&](In rows, Acc part) {
    gate::Saved choice = gate::decode(ctx, c, w.gate, rows, logits);
    if (!group.has_all_tokens()) ops::moe_of_few_pays(ctx, weights, rows, &pays);
    if (pays) return ops::moe_of_few(ctx, weights, rows, choice.topk_idx, choice.topk_weight, part);
    Saved s = dispatch(ctx, exchange, std::move(choice), rows);
    mlp_forward(ctx, c, w, exchange, rows, s);
    Tensor out;
    const Block memory = ctx.memory.take_tensor(rows.dtype(), rows.shape(), &out);
    combine_forward(ctx, c, w, exchange, s, out);  // [T, D]
    ops::add_acc(ctx, out, part);                  // [T, D]
  };
  if (group.sums_in_ops()) ops::moe_of_few_pays(ctx, weights, x, &pays);
  if (pays) return add_part(x, y);
  add_sum(ctx, group, x, y, add_part);
}

Deferred combine_backward(Context& ctx, const Config& c, Exchange& exchange, Saved& s, In dy) {
  Deferred d;
  d.experts = experts::make_deferred(ctx, c, s.ticket.layout, s.ticket.num_pages, dy.dtype());
  exchange.combine_backward_start(ctx, s.ticket, dy, d.experts.dy);  // [rows, D]
  return d;
}

void mlp_backward(Context& ctx, const Config& c, const Weights& w, Exchange& exchange, Saved& s,
                  In x, In dy, Deferred& d) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  const int64_t P = s.ticket.num_pages;
  const DType act = x.dtype(), stat = stat_dtype(act);
  ByteCount bytes;
  bytes.add(act, {P, ops::kPageRows, D}).add(stat, {P * ops::kPageRows});
  if (c.n_shared_experts > 0) bytes.add(act, {T, D});
  d.memory = ctx.memory.take(bytes.total());
  d.dx_rows.slab = d.memory.tensor(act, {P, ops::kPageRows, D});
  d.drow_weight = d.memory.tensor(stat, {P * ops::kPageRows});
  d.has_shared = c.n_shared_experts > 0;
  if (d.has_shared) {
    d.dx_shared = d.memory.tensor(act, {T, D});
    d.shared =
        mlp::backward_input(ctx, w.shared, std::move(s.shared), x, dy, d.dx_shared, c.precision);
  }
  exchange.combine_backward_finish(ctx, s.ticket, d.experts.dy);
  experts::backward_input(ctx, c, w.experts, rows_of(s.ticket), std::move(s.experts), d.experts,
                          d.dx_rows, d.drow_weight);  // [rows, D]
  exchange.dispatch_backward_start(ctx, s.ticket, d.dx_rows, d.drow_weight);
}

void dispatch_backward(Context& ctx, const Config& c, const Weights& w, Exchange& exchange,
                       Saved&& saved, In x, double balance_scale, Deferred& d, Out dx) {
  Saved s = std::move(saved);
  Tensor dtopk_weight;
  const Block memory =
      ctx.memory.take_tensor(stat_dtype(x.dtype()), s.gate.topk_weight.shape(), &dtopk_weight);
  exchange.dispatch_backward_finish(ctx, s.ticket, d.dx_rows, d.drow_weight, dx, dtopk_weight);
  if (d.has_shared) ops::add_acc(ctx, d.dx_shared, Acc(dx));  // [T, D]
  d.gate = gate::backward_input(ctx, c, w.gate, std::move(s.gate), x, dtopk_weight, balance_scale,
                                Acc(dx));  // [T, D]
  d.ticket = std::move(s.ticket);
  d.memory = Block();
}

Deferred backward_input(Context& ctx, const Config& c, const Weights& w, Exchange& exchange,
                        Saved&& saved, const BackwardArgs& args, Out dx) {
  Saved s = std::move(saved);
  Deferred d = combine_backward(ctx, c, exchange, s, args.dy);
  mlp_backward(ctx, c, w, exchange, s, args.x, args.dy, d);
  dispatch_backward(ctx, c, w, exchange, std::move(s), args.x, args.balance_scale, d, dx);
  return d;
}

void mlp_backward_weight(Context& ctx, Deferred& d, Grads& dw) {
  experts::backward_weight(ctx, std::move(d.experts), dw.experts);
  if (d.has_shared) mlp::backward_weight(ctx, std::move(d.shared), dw.shared);
}

void gate_backward_weight(Context& ctx, Deferred& d, Grads& dw) {
  gate::backward_weight(ctx, std::move(d.gate), dw.gate);
}

void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw) {
  Deferred d = std::move(deferred);
  mlp_backward_weight(ctx, d, dw);
  gate_backward_weight(ctx, d, dw);
}

}  // namespace hadal::moe
