// WindowExchange: the Exchange among the GPUs of a host, without a wait on the host.
//
//   G ranks   R slots of a rank   N = G*R places   T tokens of this rank   K choices   D model
//   width
//
// A rank puts its tokens straight into the windows of the ranks that have their experts
// (ops/peer.h), once to each, and these put the sums of their rows straight back. How many come
// nobody needs to know: every rank has slots for all tokens of each other one, and a slot that is
// empty has no choices. So the sizes are those of the worst case: P pages of a ticket are enough
// for every token of every rank.
//
// Rows are put one by one, by SMs that the work beside then lacks; or, with no SM, the copy engine
// takes all tokens to all ranks, and sums for all of them back. Then token t is in slot t on each
// rank, and what nobody chose there travels for nothing: of 8 choices among 4 ranks a tenth.
//
// Each of the four transfers has a lane of its own in the windows, which is used again by the next
// layer. That is safe because whoever is about to write it has awaited a post that its reader made
// after reading: dispatch of a layer follows the combine of the one before, for which all ranks
// posted after they had read what was dispatched; likewise the others.
//
// Rows, sums and their bits are those of ExpertExchange. Work may be recorded, and is counted on
// the device, so whenever it is launched.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/side_stream.h"
#include "ops/peer.h"
#include "parallel/exchange_counters.h"

namespace hadal {

// What lies where in a window.
struct WindowLayout {
  struct Lane {
    int64_t marks = 0, rows = 0, ids = 0, weights = 0;  // where each part begins
  };
  // tokens: the most of a rank in one micro-batch; fp8: tokens and their gradients travel in FP8.
  WindowLayout(int64_t ranks, int64_t tokens, int64_t choices, int64_t width, DType act, bool fp8);
  DType act;                                               // of the activations
  int64_t width;                                           // D
  int64_t slots = 0;                                       // R, a multiple of ops::kPageRows
  int64_t row_bytes = 0, sum_bytes = 0, choice_bytes = 0;  // of a token, there and back
  int64_t bytes = 0;                                       // of the window
  Lane dispatch, combine, combine_backward, dispatch_backward;

 private:
  Lane lane(int64_t rows, int64_t width_bytes, int64_t ids_bytes, int64_t weight_bytes);
};

class WindowExchange final : public CountedExchange {
 public:
  struct Group {
    ops::PeerView view;
    int64_t num_experts;         // of the layer, all ranks'
    SideStream* side = nullptr;  // none: transfers are in the stream of the work
    int sms = 20;                // of a GPU, that put rows; 0: the copy engine takes them
    const int* stop = nullptr;   // ends waits for ranks that have failed; null: never
  };
  // REQUIRES: windows, side stream and pool outlive it, and it the tickets; all ranks' windows are
  // of this layout.
  WindowExchange(Context& ctx, const Group& group, const WindowLayout& layout, RowPool& pool);

  Ticket dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) override;
  void dispatch_finish(Context& ctx, Ticket& ticket, RowLease* rows) override;
  void combine_start(Context& ctx, Ticket& ticket, const ops::PagedRows& rows) override;
  void combine_finish(Context& ctx, Ticket& ticket, const ops::PagedRows& rows, Out y) override;
  void combine_backward_start(Context& ctx, Ticket& ticket, In dy,
                              const ops::PagedRows& drows) override;
  void combine_backward_finish(Context& ctx, Ticket& ticket, const ops::PagedRows& drows) override;
  void dispatch_backward_start(Context& ctx, Ticket& ticket, const ops::PagedRows& drows,
                               In drow_weight) override;
  void dispatch_backward_finish(Context& ctx, Ticket& ticket, const ops::PagedRows& drows,
                                In drow_weight, Out dx, Out dtopk_weight) override;

  ExchangeCounters counters(Context& ctx) override;  // waits for the device
  void reset_counters(Context& ctx) override;

 private:
  struct Trip;
  Context fork(Context& ctx) const { return group_.side == nullptr ? ctx : group_.side->fork(ctx); }
  void join(Context& ctx, Ticket& ticket) const {
    if (group_.side != nullptr) group_.side->join(ctx, ticket.ready);
  }
  bool copies() const { return group_.sms == 0; }
  void put(Context& side, int64_t part, In x, In place) const;
  void put_tokens(Context& side, const WindowLayout::Lane& lane, In x, In place, bool fp8) const;
  void copy_tokens(Context& ctx, const WindowLayout::Lane& lane, In x, bool fp8,
                   Ticket& ticket) const;
  // Of who came from each other rank, into what leaves for it.
  template <class Sum>  // sum(row_of_choice of them, Out)
  void for_each_peer(const Ticket& ticket, In leaving, const Sum& sum) const;
  // Of this rank's own, to where they are read.
  template <class Sum>
  void for_own(const Ticket& ticket, int64_t part, In leaving, const Sum& sum) const;
  // Tells the others, and waits for them.
  void meet(Context& side, const WindowLayout::Lane& lane, Ticket& ticket) const;
  void read_posts(Context& ctx, const Tensor& posts) const;          // [2]
  Tensor here(int64_t part, DType dtype, const Shape& shape) const;  // of this rank's window
  Tensor came(const WindowLayout::Lane& lane, DType act, int64_t width, bool fp8) const;  // [N, D]
  ops::PagedRows sums(const WindowLayout::Lane& lane, DType act, int64_t width) const;

  Group group_;
  WindowLayout layout_;
  RowPool& pool_;
  int64_t experts_of_rank_, num_places_;
  Block memory_;
  Tensor everywhere_;    // [N, 1] i32   each place
  Tensor counts_;        // [G + 5] i64  those after this one, read at once
  Tensor sent_;          // [G + 1]      rows to each rank, and tokens
  Tensor posted_, now_;  // [2]          dispatches and backward passes: at the last reset, and now
};

}  // namespace hadal
