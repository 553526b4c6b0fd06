// What collectives compute, and where tokens go among ranks.
//
//   G ranks   n elements of one   T tokens   K choices of a token   E experts of a rank
//   N copies that leave
//
// A hop takes a token once to each rank of a group that leads to one of its experts: rank g to
// experts [g*E, (g+1)*E). Choices of a token are ascending; -1 is one that is elsewhere. Copies are
// numbered by rank, and by token within a rank. Exact, so deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"

namespace hadal::ops {

// y [n] = sum over ranks in rank order, where `own` [n] is the part of rank `place` and `others`
// [G-1, n] are those of the other ranks: f32, f64, i64, and bf16 added in f32 and rounded once. y
// may be own.
HADAL_OP(sum_of_ranks, Context& ctx, int64_t place, In own, In others, Out y)

// ids [T, K] i32 ->
//   copy_of_rank [T, min(K, G)] i32   the copy for each of a token's ranks, ascending; -1
//   copy_of_choice [T, K] i32         the copy that carries a choice; -1
//   counts [G, 1 + E] i64             copies to each rank, and choices of each of its experts
//   most [1] i64                      ranks of the token that has most of them
HADAL_OP(hop_copies, Context& ctx, In ids, Out copy_of_rank, Out copy_of_choice, Out counts,
         Out most)
// Each copy's choices, as experts of the rank it goes to, and their weights; -1 and 0 where a
// choice goes elsewhere.     ids [T, K], weights [T, K] -> ids_out [N, K], weights_out [N, K]
HADAL_OP(hop_choices, Context& ctx, int64_t experts_of_rank, In ids, In weights, In copy_of_choice,
         Out ids_out, Out weights_out)
// values[t,k] = back[copy_of_choice[t,k], k], 0 where that is -1     back [N, K] -> values [T, K]
HADAL_OP(hop_values, Context& ctx, In back, In copy_of_choice, Out values)

}  // namespace hadal::ops
