// Checks of transfers through windows, then dispatch.
//
//   G ranks   N places
// SPDX-License-Identifier: Apache-2.0
#include "ops/peer.h"

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

void peer_places(Context& ctx, int64_t slots, In counts, Acc copy_of_rank, Acc copy_of_choice,
                 Acc sent) {
  const auto [G, columns] = HADAL_SHAPE(counts, 2);
  const auto [T, C] = HADAL_SHAPE(copy_of_rank, 2);
  HADAL_CHECK(copy_of_choice.rank() == 2 && copy_of_choice.dim(0) == T, "peer_places: choices of ",
              copy_of_choice.str(), " for ", T, " tokens");
  HADAL_CHECK(T <= slots && G <= kMaxPeers, "peer_places: ", T, " tokens for ", slots,
              " slots of each of ", G, " ranks");
  HADAL_CHECK_SHAPE(sent, G);
  check_dtype(counts, DType::kI64, "counts");
  check_dtype(copy_of_rank, DType::kI32, "copy_of_rank");
  check_dtype(copy_of_choice, DType::kI32, "copy_of_choice");
  check_dtype(sent, DType::kI64, "sent");
  check_dense(counts, "counts");
  check_dense(copy_of_rank, "copy_of_rank");
  check_dense(copy_of_choice, "copy_of_choice");
  HADAL_DISPATCH(ctx, peer_places, slots, counts, copy_of_rank, copy_of_choice, sent);
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

void peer_post(Context& ctx, const PeerView& view, int64_t offset) {
  check_view(view, offset, "peer_post");
  HADAL_DISPATCH(ctx, peer_post, view, offset);
}

void peer_await(Context& ctx, const PeerView& view, int64_t offset, const int* stop) {
  check_view(view, offset, "peer_await");
  HADAL_DISPATCH(ctx, peer_await, view, offset, stop);
}

}  // namespace hadal::ops
