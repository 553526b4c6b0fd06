// ExpertHop: who goes where, and the trips.
//
//   G ranks of the hop's group   T tokens here   R tokens that come here   K choices of a token
//   N copies that leave   D model width
// SPDX-License-Identifier: Apache-2.0
#include "parallel/expert_hop.h"

#include <algorithm>
#include <numeric>

#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/fp8_wire.h"
#include "ops/ranks.h"

namespace hadal {
namespace {

int64_t total(const std::vector<int64_t>& v) {
  return std::accumulate(v.begin(), v.end(), int64_t{0});
}

}  // namespace

RowBuffer::RowBuffer(Context& ctx, DType dtype, int64_t num_rows, int64_t width) {
  const int64_t pages = std::max<int64_t>(1, (num_rows + ops::kPageRows - 1) / ops::kPageRows);
  memory = ctx.memory.take_tensor(dtype, {pages, ops::kPageRows, width}, &paged.slab);
  rows = paged.slab.view({pages * ops::kPageRows, width}).rows(0, num_rows);
}

// Where each token goes, and how many rows go and come: what the ranks tell each other is
// [1 + n] i64: copies, and choices of each of the n experts that the other leads to.
void ExpertHop::choose_ranks(Context& ctx, In ids, Route& r) {
  const auto [T, K] = HADAL_SHAPE(ids, 2);
  const int64_t G = comm_.size(), n = experts_of_rank_, Kr = std::min<int64_t>(K, G);
  r.num_tokens = T;
  r.memory =
      ctx.memory.take(ByteCount().add(DType::kI32, {T, Kr}).add(DType::kI32, {T, K}).total());
  r.copy_of_rank = r.memory.tensor(DType::kI32, {T, Kr});
  r.copy_of_choice = r.memory.tensor(DType::kI32, {T, K});
  Tensor numbers;  // to the others, from them, and the most ranks of a token
  const int64_t size = G * (1 + n);
  const Block memory = ctx.memory.take_tensor(DType::kI64, {2 * size + 1}, &numbers);
  Tensor to = numbers.rows(0, size).view({G, 1 + n}),
         from = numbers.rows(size, size).view({G, 1 + n}), most = numbers.rows(2 * size, 1);
  ops::hop_copies(ctx, ids, r.copy_of_rank, r.copy_of_choice, to, most);
  comm_.all_to_all(ctx, to, from);

  const std::vector<int64_t> all = download<int64_t>(ctx, numbers);
  r.most_ranks = all.back();
  r.expert_rows.assign(static_cast<size_t>(n), 0);
  for (int64_t g = 0; g < G; ++g) {
    const int64_t *sent = all.data() + g * (1 + n), *came = sent + size;
    r.send.push_back(sent[0]);
    r.recv.push_back(came[0]);
    for (int64_t e = 0; e < n; ++e) r.expert_rows[static_cast<size_t>(e)] += came[1 + e];
  }
  r.num_send = total(r.send);
  r.num_recv = total(r.recv);
}

RowBuffer ExpertHop::send(Context& ctx, const std::vector<int64_t>& to,
                          const std::vector<int64_t>& from, int64_t num_rows, In x) {
  RowBuffer y(ctx, x.dtype(), num_rows, x.dim(1));
  comm_.all_to_all_v(ctx, x, to, y.rows, from);
  bytes_ += (total(to) - to[static_cast<size_t>(comm_.rank())]) * x.dim(1) *
            static_cast<int64_t>(dtype_size(x.dtype()));
  return y;
}

ExpertHop::Tokens ExpertHop::dispatch(Context& ctx, Wire wire, In x, In ids, In weights,
                                      Route* route) {
  Route& r = *route;
  choose_ranks(ctx, ids, r);
  const int64_t K = ids.dim(1);
  RowBuffer ids_out(ctx, DType::kI32, r.num_send, K),
      weights_out(ctx, weights.dtype(), r.num_send, K);
  ops::hop_choices(ctx, experts_of_rank_, ids, weights, r.copy_of_choice, ids_out.rows,
                   weights_out.rows);
  return {.x = go(ctx, wire, r, x),
          .ids = send(ctx, r.send, r.recv, r.num_recv, ids_out.rows),
          .weights = send(ctx, r.send, r.recv, r.num_recv, weights_out.rows)};
}

RowBuffer ExpertHop::go(Context& ctx, Wire wire, const Route& r, In x) {
  RowBuffer out;  // [N, D]
  if (wire == Wire::kAsIs) {
    out = RowBuffer(ctx, x.dtype(), r.num_send, x.dim(1));
    ops::scatter_rows(ctx, x, r.copy_of_rank, out.paged);
  } else if (x.dtype() == DType::kE4M3) {
    out = RowBuffer(ctx, x.dtype(), r.num_send, x.dim(1));
    ops::copy_wire_rows(ctx, x, r.copy_of_rank, out.rows);
  } else {
    out = RowBuffer(ctx, DType::kE4M3, r.num_send, ops::wire_bytes(x.dim(1)));
    ops::pack_wire_rows(ctx, x, r.copy_of_rank, out.rows);
  }
  return send(ctx, r.send, r.recv, r.num_recv, out.rows);
}

RowBuffer ExpertHop::come_back(Context& ctx, const Route& r, In x) {
  return send(ctx, r.recv, r.send, r.num_send, x);
}

void ExpertHop::sum(Context& ctx, const Route& r, const RowBuffer& back, Out y) const {
  ops::combine_rows(ctx, back.paged, r.copy_of_rank, y);  // [T, D]
}

void ExpertHop::pick(Context& ctx, const Route& r, const RowBuffer& back, Out values) const {
  ops::hop_values(ctx, back.rows, r.copy_of_choice, values);  // [T, K]
}

}  // namespace hadal
