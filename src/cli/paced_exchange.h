// PacedExchange: an Exchange behind whose every transfer goes a copy at the rate of a link, for
// benches whose ranks are fewer, or nearer to each other, than those of a deployment.
//
// A copy has the bytes that a rank of 64 sends for the transfer (of 8 choices some share a rank, as
// in DeepSeek's trace) and takes no less time than the link would.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>

#include "core/side_stream.h"
#include "parallel/exchange_counters.h"

namespace hadal::cli {

class PacedExchange final : public CountedExchange {
 public:
  struct Link {
    double bytes_per_second;
    int sms;
    SideStream* side;  // null: in the stream of the work
  };
  // inner: what tokens really go through. tokens: of a micro-batch. to: memory that copies go to,
  // of buffer_bytes(); null: of this device.
  PacedExchange(Context& ctx, std::unique_ptr<Exchange> inner, const Config& c, int64_t tokens,
                void* to = nullptr);
  std::optional<Link> link;  // none: nothing is added

  static int64_t buffer_bytes(const Config& c, int64_t tokens);
  // What dispatch and combine of one layer send, forward and backward.
  int64_t bytes_of_layer() const { return 2 * (row_bytes_ + sum_bytes_); }
  void send_layer(Context& ctx);                      // all of it, in the stream of the work
  int64_t bytes_sent() const { return bytes_sent_; }  // by calls; a recorded step makes none

  Ticket dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) override;
  void dispatch_finish(Context& ctx, Ticket& t, RowLease* rows) override;
  void combine_start(Context& ctx, Ticket& t, const ops::PagedRows& rows) override;
  void combine_finish(Context& ctx, Ticket& t, const ops::PagedRows& rows, Out y) override;
  void combine_backward_start(Context& ctx, Ticket& t, In dy, const ops::PagedRows& drows) override;
  void combine_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& drows) override;
  void dispatch_backward_start(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                               In drow_weight) override;
  void dispatch_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                                In drow_weight, Out dx, Out dtopk_weight) override;

  // The inner one's; zeros where it counts nothing.
  ExchangeCounters counters(Context& ctx) override;
  void reset_counters(Context& ctx) override;

 private:
  void send(Context& ctx, int64_t bytes);
  void start(Context& ctx, Ticket& t, int64_t bytes);
  void finish(Context& ctx, Ticket& t);

  std::unique_ptr<Exchange> inner_;
  int64_t row_bytes_, sum_bytes_;  // tokens and their gradients; sums of the experts' rows
  int64_t bytes_sent_ = 0;
  Block from_memory_, to_memory_;
  Tensor from_, to_;
};

}  // namespace hadal::cli
