// ExpertHop: who goes where, and the trips.
//
//   G ranks of the hop's group   T tokens here   R tokens that come here   K choices of a token
//   N copies that leave   D model width
// SPDX-License-Identifier: Apache-2.0
#include "parallel/expert_hop.h"

#include <algorithm>
#include <numeric>

#include "model/bytes.h"

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

// Numbers the copies by rank, and by token within a rank.
void ExpertHop::choose_ranks(Context& ctx, In ids, Route& r) {
  const auto [T, K] = HADAL_SHAPE(ids, 2);
  const auto G = static_cast<size_t>(comm_.size());
  const int64_t Kr = std::min<int64_t>(K, comm_.size());
  r.num_tokens = T;
  r.memory =
      ctx.memory.take(ByteCount().add(DType::kI32, {T, Kr}).add(DType::kI32, {T, K}).total());
  r.copy_of_rank = r.memory.tensor(DType::kI32, {T, Kr});
  r.copy_of_choice = r.memory.tensor(DType::kI32, {T, K});
  int32_t *of_rank = r.copy_of_rank.data<int32_t>(), *of_choice = r.copy_of_choice.data<int32_t>();
  std::fill_n(of_rank, T * Kr, -1);

  // First the rank itself in place of its copy. Choices ascend, and so do their ranks.
  r.send.assign(G, 0);
  for (int64_t t = 0; t < T; ++t) {
    int64_t num_ranks = 0;
    for (int64_t k = 0; k < K; ++k) {
      const int32_t expert = ids.data<int32_t>()[t * ids.stride(0) + k];
      of_choice[t * K + k] = -1;
      if (expert == -1) continue;
      const int64_t rank = expert / experts_of_rank_;
      HADAL_CHECK(expert >= 0 && rank < comm_.size(), "choice ", k, " of token ", t, " is expert ",
                  expert, ", but there are ", experts_of_rank_ * comm_.size());
      of_choice[t * K + k] = static_cast<int32_t>(rank);
      if (num_ranks > 0 && of_rank[t * Kr + num_ranks - 1] == rank) continue;
      of_rank[t * Kr + num_ranks++] = static_cast<int32_t>(rank);
      ++r.send[static_cast<size_t>(rank)];
    }
  }
  r.num_send = total(r.send);
  std::vector<int32_t> next(G);
  for (size_t g = 1; g < G; ++g) next[g] = next[g - 1] + static_cast<int32_t>(r.send[g - 1]);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < Kr && of_rank[t * Kr + i] >= 0; ++i) {
      const int32_t rank = of_rank[t * Kr + i];
      of_rank[t * Kr + i] = next[static_cast<size_t>(rank)]++;
    }
  for (int64_t t = 0; t < T; ++t) {
    int64_t i = -1;
    int32_t last = -1;
    for (int64_t k = 0; k < K; ++k) {
      int32_t& choice = of_choice[t * K + k];
      if (choice == -1) continue;
      if (choice != last) ++i;
      last = choice;
      choice = of_rank[t * Kr + i];
    }
  }
}

RowBuffer ExpertHop::send(Context& ctx, const std::vector<int64_t>& to,
                          const std::vector<int64_t>& from, int64_t num_rows, In x) {
  RowBuffer y(ctx, x.dtype(), num_rows, x.dim(1));
  comm_.all_to_all_v(ctx, x, to, y.rows, from);
  bytes_ += (total(to) - to[static_cast<size_t>(comm_.rank())]) * x.dim(1) *
            static_cast<int64_t>(dtype_size(x.dtype()));
  return y;
}

ExpertHop::Tokens ExpertHop::dispatch(Context& ctx, In x, In ids, In weights, Route* route) {
  Route& r = *route;
  choose_ranks(ctx, ids, r);
  const int64_t T = r.num_tokens, K = ids.dim(1);

  // How many rows come.
  Tensor counts, theirs;
  const Block counts_memory = ctx.memory.take_tensor(DType::kI64, {comm_.size()}, &counts);
  const Block theirs_memory = ctx.memory.take_tensor(DType::kI64, {comm_.size()}, &theirs);
  std::copy(r.send.begin(), r.send.end(), counts.data<int64_t>());
  comm_.all_to_all(ctx, counts, theirs);
  r.recv.assign(theirs.data<int64_t>(), theirs.data<int64_t>() + comm_.size());
  r.num_recv = total(r.recv);

  // Of each copy: its choices as experts of the rank it goes to.
  RowBuffer ids_out(ctx, DType::kI32, r.num_send, K),
      weights_out(ctx, weights.dtype(), r.num_send, K);
  const auto size = static_cast<int64_t>(dtype_size(weights.dtype()));
  auto* out = static_cast<char*>(weights_out.rows.raw());
  std::fill_n(ids_out.rows.data<int32_t>(), r.num_send * K, -1);
  std::fill_n(out, r.num_send * K * size, char{0});
  for (int64_t t = 0; t < T; ++t)
    for (int64_t k = 0; k < K; ++k) {
      const int32_t copy = r.copy_of_choice.data<int32_t>()[t * K + k];
      if (copy == -1) continue;
      const int64_t expert = ids.data<int32_t>()[t * ids.stride(0) + k];
      ids_out.rows.data<int32_t>()[copy * K + k] = static_cast<int32_t>(expert % experts_of_rank_);
      std::copy_n(static_cast<const char*>(weights.raw()) + (t * weights.stride(0) + k) * size,
                  size, out + (copy * K + k) * size);
    }
  return {.x = go(ctx, r, x),
          .ids = send(ctx, r.send, r.recv, r.num_recv, ids_out.rows),
          .weights = send(ctx, r.send, r.recv, r.num_recv, weights_out.rows)};
}

RowBuffer ExpertHop::go(Context& ctx, const Route& r, In x) {
  RowBuffer out(ctx, x.dtype(), r.num_send, x.dim(1));
  ops::scatter_rows(ctx, x, r.copy_of_rank, out.paged);  // [N, D]
  return send(ctx, r.send, r.recv, r.num_recv, out.rows);
}

RowBuffer ExpertHop::come_back(Context& ctx, const Route& r, In x) {
  return send(ctx, r.recv, r.send, r.num_send, x);
}

void ExpertHop::sum(Context& ctx, const Route& r, const RowBuffer& back, Out y) const {
  ops::combine_rows(ctx, back.paged, r.copy_of_rank, y);  // [T, D]
}

void ExpertHop::pick(const Route& r, const RowBuffer& back, Out values) const {
  const auto [T, K] = HADAL_SHAPE(values, 2);
  const auto size = static_cast<int64_t>(dtype_size(values.dtype()));
  const auto* from = static_cast<const char*>(back.rows.raw());
  auto* to = static_cast<char*>(values.raw());
  for (int64_t t = 0; t < T; ++t)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t copy = r.copy_of_choice.data<int32_t>()[t * K + k];
      char* at = to + (t * values.stride(0) + k) * size;
      if (copy == -1)
        std::fill_n(at, size, char{0});
      else
        std::copy_n(from + (copy * K + k) * size, size, at);
    }
}

}  // namespace hadal
