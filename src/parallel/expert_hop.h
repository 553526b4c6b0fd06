// ExpertHop: one trip of tokens to the ranks that lead to their experts, and back.
//
//   G ranks of the hop's group   T tokens here   R tokens that come here   K choices of a token
//   N copies that leave: a token and one of its ranks   D model width
//
// Rank g of the group leads to experts [g*n, (g+1)*n): it has them, or the next hop starts there. A
// token goes once to each rank that it needs, with the ids (counted from that rank's first expert;
// -1 where a choice is elsewhere) and weights of its choices; as it is, or as a row of FP8
// (ops/fp8_wire.h), which later hops pass on. On the way back a token's copies are
// summed in rank order, in f32 (f64 in f64).
//
// NOTE: the host learns how many rows go and come: dispatch waits for the device once, and so
// cannot be recorded. Memory comes from the context's pool and is given back to it, so a context on
// the side has a pool of its own.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "core/comm.h"
#include "ops/routing.h"

namespace hadal {

// Room for rows of one width, as pages in order and as a matrix.
struct RowBuffer {
  RowBuffer() = default;
  RowBuffer(Context& ctx, DType dtype, int64_t num_rows, int64_t width);
  Block memory;
  ops::PagedRows paged;
  Tensor rows;  // [num_rows, W]
};

class ExpertHop {
 public:
  // REQUIRES: comm outlives it.
  ExpertHop(Comm& comm, int64_t experts_of_rank) : comm_(comm), experts_of_rank_(experts_of_rank) {}

  // Where the tokens of one dispatch went.
  struct Route {
    Block memory;
    std::vector<int64_t> send, recv;   // [G]   rows to and from each rank
    std::vector<int64_t> expert_rows;  // [n]   choices of each expert that this rank leads to
    int64_t num_tokens = 0, num_send = 0, num_recv = 0;
    int64_t most_ranks = 0;  // of one token
    Tensor copy_of_rank;     // [T, min(K, G)] i32   copy for each of a token's ranks, ascending; -1
    Tensor copy_of_choice;   // [T, K] i32           copy that carries a choice; -1
  };
  struct Tokens {
    RowBuffer x, ids, weights;  // [R, D], or [R, wire_bytes(D)] of FP8   [R, K] i32   [R, K]
  };
  enum class Wire : uint8_t { kAsIs, kFp8 };

  Tokens dispatch(Context& ctx, Wire wire, In x, In ids, In weights, Route* route);
  // x: tokens, or what an earlier hop brought in FP8.
  RowBuffer go(Context& ctx, Wire wire, const Route& route, In x);  // [T, D] -> [R, D]
  RowBuffer come_back(Context& ctx, const Route& route, In x);      // [R, W] -> [N, W]
  void sum(Context& ctx, const Route& route, const RowBuffer& back,
           Out y) const;  // [N, D] -> [T, D]
  void pick(Context& ctx, const Route& route, const RowBuffer& back,
            Out values) const;  // [N, K] -> [T, K], 0 where there is no choice

  // Sent to other ranks since the last reset.
  int64_t bytes() const { return bytes_; }
  void reset_bytes() { bytes_ = 0; }

 private:
  void choose_ranks(Context& ctx, In ids, Route& route);  // and tells the others
  RowBuffer send(Context& ctx, const std::vector<int64_t>& to, const std::vector<int64_t>& from,
                 int64_t num_rows, In x);

  Comm& comm_;
  int64_t experts_of_rank_;
  int64_t bytes_ = 0;
};

}  // namespace hadal
