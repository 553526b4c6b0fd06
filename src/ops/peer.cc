// Checks of transfers through windows, then dispatch.
//
//   G ranks   N places
// SPDX-License-Identifier: Apache-2.0
#include "ops/peer.h"

#include <algorithm>

#include "ops/checks.h"

namespace hadal::ops {
namespace {

void check_view(const PeerView& view, int64_t offset, const char* op) {
  HADAL_CHECK(view.size >= 1 && view.size <= kMaxPeers && view.place >= 0 && view.place < view.size,
              op, ": rank ", view.place, " of ", view.size, "; at most ", kMaxPeers,
              " ranks have windows");
  HADAL_CHECK(offset >= 0 && offset % 16 == 0, op, ": a part begins at byte ", offset,
              "; parts begin at multiples of 16");
}

}  // namespace

void peer_route(Context& ctx, const PeerView& view, int64_t ids_offset, int64_t weights_offset,
                int64_t slots, PeerSlots order, int64_t experts_of_rank, In ids, In weights,
                Out place_of_rank, Out place_of_choice, Acc sent) {
  check_view(view, ids_offset, "peer_route");
  check_view(view, weights_offset, "peer_route");
  const auto [T, K] = HADAL_SHAPE(ids, 2);
  const int64_t G = view.size;
  HADAL_CHECK(T <= slots && experts_of_rank >= 1, "peer_route: ", T, " tokens for ", slots,
              " slots of each of ", G, " ranks with ", experts_of_rank, " experts");
  HADAL_CHECK_SHAPE(weights, T, K);
  HADAL_CHECK_SHAPE(place_of_rank, T, std::min(K, G));
  HADAL_CHECK_SHAPE(place_of_choice, T, K);
  HADAL_CHECK_SHAPE(sent, G + 1);
  HADAL_CHECK(weights.dtype() == DType::kF32 || weights.dtype() == DType::kF64,
              "weights must be f32 or f64, are ", weights.str());
  check_dtype(ids, DType::kI32, "ids");
  check_dtype(place_of_rank, DType::kI32, "place_of_rank");
  check_dtype(place_of_choice, DType::kI32, "place_of_choice");
  check_dtype(sent, DType::kI64, "sent");
  check_dense(place_of_rank, "place_of_rank");
  check_dense(place_of_choice, "place_of_choice");
  HADAL_DISPATCH(ctx, peer_route, view, ids_offset, weights_offset, slots, order, experts_of_rank,
                 ids, weights, place_of_rank, place_of_choice, sent);
}

void peer_arrivals(Context& ctx, In ids, Out place) {
  const auto [N, K] = HADAL_SHAPE(ids, 2);
  HADAL_CHECK_SHAPE(place, N, 1);
  check_dtype(ids, DType::kI32, "ids");
  check_dtype(place, DType::kI32, "place");
  check_dense(ids, "ids");
  check_dense(place, "place");
  HADAL_DISPATCH(ctx, peer_arrivals, ids, place);
}

void peer_put(Context& ctx, const PeerView& view, int64_t offset, int64_t slots, int blocks, In x,
              In place) {
  check_view(view, offset, "peer_put");
  const auto [T, W] = HADAL_SHAPE(x, 2);
  HADAL_CHECK(place.rank() == 2 && place.dim(0) == T, "peer_put: places ", place.str(), " for ",
              x.str());
  HADAL_CHECK(slots > 0 && blocks > 0, "peer_put: ", slots, " slots, ", blocks,
              " blocks; both must be more than 0");
  check_dtype(place, DType::kI32, "place");
  check_dense(x, "x");
  check_dense(place, "place");
  HADAL_DISPATCH(ctx, peer_put, view, offset, slots, blocks, x, place);
}

void peer_copy(Context& ctx, const PeerView& view, int64_t offset, int64_t slots, int64_t rows,
               int64_t apart, In x) {
  check_view(view, offset, "peer_copy");
  HADAL_CHECK(x.rank() == 2 && rows >= 0 && rows <= slots && apart >= 0 &&
                  apart * (view.size - 1) + rows <= x.dim(0),
              "peer_copy: ", rows, " rows, ", apart, " apart, of ", x.str(), " for ", slots,
              " slots of each of ", view.size, " ranks");
  check_dense(x, "x");
  HADAL_DISPATCH(ctx, peer_copy, view, offset, slots, rows, apart, x);
}

void peer_post(Context& ctx, const PeerView& view, int64_t offset) {
  check_view(view, offset, "peer_post");
  HADAL_DISPATCH(ctx, peer_post, view, offset);
}

void peer_await(Context& ctx, const PeerView& view, int64_t offset, const int* stop) {
  check_view(view, offset, "peer_await");
  HADAL_DISPATCH(ctx, peer_await, view, offset, stop);
}

void peer_posts(Context& ctx, const PeerView& view, int64_t offset, Out posts) {
  check_view(view, offset, "peer_posts");
  HADAL_CHECK_SHAPE(posts, 1);
  check_dtype(posts, DType::kI64, "posts");
  HADAL_DISPATCH(ctx, peer_posts, view, offset, posts);
}

int64_t peer_sum_lines(const Tensor& x) {
  if (reinterpret_cast<uintptr_t>(x.raw()) % 4 != 0) return 0;
  switch (x.dtype()) {
    case DType::kF32:
      return x.num_elements();
    case DType::kBF16:
      return (x.num_elements() + 1) / 2;
    default:
      return 0;
  }
}

void peer_sum(Context& ctx, const PeerSums& sums, Acc x) {
  check_view(sums.view, 0, "peer_sum");
  const int64_t lines = peer_sum_lines(x);
  HADAL_CHECK(sums.view.size <= kMaxSumPeers, "peer_sum: ", sums.view.size, " ranks; at most ",
              kMaxSumPeers);
  HADAL_CHECK(lines > 0 && lines <= sums.lines, "peer_sum: ", x.str(), " takes ", lines,
              " lines of the ", sums.lines, " that there are");
  check_dense(x, "x");
  HADAL_DISPATCH(ctx, peer_sum, sums, x);
}

}  // namespace hadal::ops
