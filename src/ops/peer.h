// Rows straight into other ranks' memory, and the marks by which those learn of them: transfers
// among the GPUs of a host that need no host.
//
//   G ranks   R slots of a rank   T tokens   K choices of a token   C places of a row   W width
//   E experts of a rank
//
// Every rank has a window, memory that all of them map. A part of it holds R rows from each rank:
// rank s writes slot r of rank g's part as row s*R + r. Where a row goes is its place, g*R + r.
// Marks are a part as well: how often each rank has posted.
//
// Order: what a rank puts, then its post; whoever has awaited that post may read the rows. A part
// may be written again once its reader has let the writer know that it is done, which here the
// reader's own next post does (parallel/window_exchange.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "ops/dispatch.h"

namespace hadal::ops {

inline constexpr int kMaxPeers = 16;

// The windows as one rank sees them.
struct PeerView {
  int place = 0, size = 1;                // this rank, G
  std::array<void*, kMaxPeers> window{};  // [G]   its own among them
};
// Bytes of marks: of each rank, and of this one.
inline constexpr int64_t kMarksBytes = (kMaxPeers + 1) * 8;

// Which slot of this rank a token has on the ranks that it goes to.
enum class PeerSlots : uint8_t {
  kNext,     // the next one there, in token order: for rows that are put one by one
  kOfToken,  // that of its number, everywhere: for rows that are copied whole, wanted or not
};
// Where tokens go: once to each rank g that has one of a token's experts, [g*E, (g+1)*E). The
// choices go there at once: every slot of this rank gets K ids, as experts of its rank, and K
// weights; -1 and 0 for choices that go elsewhere, and in slots without a token. Choices of a token
// are ascending; -1 is one that is left out.
//   ids [T, K] i32, weights [T, K] ->
//   place_of_rank [T, min(K, G)] i32   place for each of a token's ranks, ascending; -1
//   place_of_choice [T, K] i32         place that carries a choice; -1
//   sent [G + 1] i64                   += tokens to each rank; last T
HADAL_OP(peer_route, Context& ctx, const PeerView& view, int64_t ids_offset, int64_t weights_offset,
         int64_t slots, PeerSlots order, int64_t experts_of_rank, In ids, In weights,
         Out place_of_rank, Out place_of_choice, Acc sent)
// place[n] = n where ids[n] has a choice, -1 elsewhere: where the row of who came goes back to.
//   ids [N, K] i32 -> place [N, 1] i32
HADAL_OP(peer_arrivals, Context& ctx, In ids, Out place)
// Row x[t] to each of its places but -1, in the part that begins at byte `offset` of the windows.
// On a GPU `blocks` blocks do it, of an SM each.     x [T, W], place [T, C] i32
HADAL_OP(peer_put, Context& ctx, const PeerView& view, int64_t offset, int64_t slots, int blocks,
         In x, In place)
// Rows of x to slots 0, 1, ... of this rank in the part at byte `offset` of every other rank's
// window: to rank g `rows` rows from row g*apart on. On a GPU the copy engine does it, and no SM.
//   x [N, W]
HADAL_OP(peer_copy, Context& ctx, const PeerView& view, int64_t offset, int64_t slots, int64_t rows,
         int64_t apart, In x)
// Marks in every window that what this stream has put is there.
HADAL_OP(peer_post, Context& ctx, const PeerView& view, int64_t offset)
// Waits until every rank has posted as often as this one; or until *stop, which the host may set at
// any time, is not 0 (null: never): what is read after that is of no use.
HADAL_OP(peer_await, Context& ctx, const PeerView& view, int64_t offset, const int* stop)
// posts [1] i64 = how often this rank has posted.
HADAL_OP(peer_posts, Context& ctx, const PeerView& view, int64_t offset, Out posts)

// ---- sums over the ranks -----------------------------------------------------------------------
//
// Each rank writes its terms into every other rank's window, a term and the number of the sum in
// eight bytes that are stored at once, and adds what the others have written into its own: half a
// round trip over the links, with no mark and no fence. Lines of a rank lie twice, for sums of even
// and of odd numbers: who begins the sum after next has the next one of all others, and they were
// then done with this one.
//
// All ranks make the same sums in the same order.
inline constexpr int kMaxSumPeers = 8;
struct PeerSums {
  PeerView view;
  int64_t lines = 0;          // of a rank, in each half
  const int* stop = nullptr;  // not 0: sums end at once, and are of no use; null: never
};
inline constexpr int64_t kPeerSumsHead = 128;  // bytes of a window before its lines, 0 at first
constexpr int64_t peer_sums_bytes(int64_t ranks, int64_t lines) {
  return kPeerSumsHead + 2 * ranks * lines * 8;
}
// Lines that a sum of x takes; 0 where its type, or an odd address, has no such sums.
int64_t peer_sum_lines(const Tensor& x);
// x = the sum over the ranks, in rank order: the bits of sum_of_ranks (ops/ranks.h).
// REQUIRES: 0 < peer_sum_lines(x) <= sums.lines.                  x dense, f32 or bf16
HADAL_OP(peer_sum, Context& ctx, const PeerSums& sums, Acc x)

}  // namespace hadal::ops
