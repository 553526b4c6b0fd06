// A few rows of every rank to all of them, and sums of such rows to the ranks whose they are,
// through the lines of PeerSums (ops/peer.h), among whose sums these count.
//
//   G ranks   n elements of all of them
//
// Rank g has elements [bounds[g], bounds[g+1]); all ranks know all bounds. A rank may have none: it
// exchanges a line with the others all the same, which is what they go by.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "ops/peer.h"

namespace hadal::ops {

// Lines that they take of an x [n]; 0 where its type, or an odd address or bound, has no such way.
int64_t peer_row_lines(const Tensor& x, std::span<const int64_t> bounds);
// y [n] = the x of all ranks; x may be this one's part of y.
// REQUIRES: 0 < peer_row_lines(y, bounds) <= sums.lines.            x, y dense, f32, bf16 or i32
HADAL_OP(peer_gather, Context& ctx, const PeerSums& sums, std::span<const int64_t> bounds, In x,
         Out y)
// y = this rank's part of the sum over the ranks of x [n], in rank order: the bits of sum_of_ranks
// (ops/ranks.h). y may be that part of x. REQUIRES: as above, of x; f32 or bf16.
HADAL_OP(peer_sum_scatter, Context& ctx, const PeerSums& sums, std::span<const int64_t> bounds,
         In x, Out y)

}  // namespace hadal::ops
