// A chunk forward beside another backward on a rank of an expert-parallel group, with transfers
// that take as long as those to the other ranks would (report, 3.2.1; DeepSeek's trace of such a
// pair).
//
//   T tokens   D model width
//
// There is no other rank: each transfer is a copy within the device's memory, of the bytes that a
// rank of 64 sends for its tokens, at the rate of a link and on the SMs that a sending kernel
// takes. Everything else is the trainer's: stage::overlap over layers with a rank's share of the
// experts.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <optional>

#include "cli/bench.h"
#include "cli/bench_rank.h"
#include "core/side_stream.h"
#include "core/timer.h"
#include "model/stage.h"
#include "ops/copy.h"
#include "ops/fp8_wire.h"
#include "ops/paced_copy.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

// Rows that leave a rank of 64 for each token, as in the trace: of 8 choices some share a rank.
constexpr double kRowsOfToken = 7.1;

// Transfers of a link's rate before what BalancedExchange does.
class PacedExchange final : public BalancedExchange {
 public:
  struct Link {
    double bytes_per_second;
    int sms;
    SideStream* side;  // null: in the stream of the work
  };
  PacedExchange(Context& ctx, RowPool& pool, int64_t tokens, const Config& c)
      : BalancedExchange(ctx, pool, tokens, c.num_experts_per_tok) {
    const auto rows = static_cast<int64_t>(kRowsOfToken * static_cast<double>(tokens));
    const int64_t wide = rows * c.hidden_size * 2;
    sum_bytes_ = wide / 16 * 16;
    row_bytes_ = c.precision.fp8 ? rows * ops::wire_bytes(c.hidden_size) / 16 * 16 : sum_bytes_;
    from_memory_ = ctx.memory.take_tensor(DType::kF32, {sum_bytes_ / 4}, &from_);
    to_memory_ = ctx.memory.take_tensor(DType::kF32, {sum_bytes_ / 4}, &to_);
    ops::fill(ctx, 0.0, from_);
  }
  std::optional<Link> link;  // none: nothing is sent

  void send_all(Context& ctx) {  // one of each transfer
    for (const int64_t bytes : {row_bytes_, row_bytes_, sum_bytes_, sum_bytes_}) send(ctx, bytes);
  }
  double megabytes() const { return 2e-6 * static_cast<double>(row_bytes_ + sum_bytes_); }

  Ticket dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) override {
    Ticket t = BalancedExchange::dispatch_start(ctx, x, topk_idx, topk_weight);
    start(ctx, t, row_bytes_);
    return t;
  }
  void dispatch_finish(Context& ctx, Ticket& t, RowLease* rows) override {
    finish(ctx, t);
    BalancedExchange::dispatch_finish(ctx, t, rows);
  }
  void combine_start(Context& ctx, Ticket& t, const ops::PagedRows&) override {
    start(ctx, t, sum_bytes_);
  }
  void combine_finish(Context& ctx, Ticket& t, const ops::PagedRows& rows, Out y) override {
    finish(ctx, t);
    BalancedExchange::combine_finish(ctx, t, rows, y);
  }
  void combine_backward_start(Context& ctx, Ticket& t, In dy,
                              const ops::PagedRows& drows) override {
    BalancedExchange::combine_backward_start(ctx, t, dy, drows);
    start(ctx, t, row_bytes_);
  }
  void combine_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows&) override {
    finish(ctx, t);
  }
  void dispatch_backward_start(Context& ctx, Ticket& t, const ops::PagedRows&, In) override {
    start(ctx, t, sum_bytes_);
  }
  void dispatch_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                                In drow_weight, Out dx, Out dtopk_weight) override {
    finish(ctx, t);
    BalancedExchange::dispatch_backward_finish(ctx, t, drows, drow_weight, dx, dtopk_weight);
  }

 private:
  void send(Context& ctx, int64_t bytes) {
    ops::paced_copy(ctx, link->bytes_per_second, link->sms, from_.rows(0, bytes / 4),
                    to_.rows(0, bytes / 4));
  }
  void start(Context& ctx, Ticket& t, int64_t bytes) {
    if (!link) return;
    if (link->side == nullptr) return send(ctx, bytes);
    Context side = link->side->fork(ctx);
    send(side, bytes);
    t.ready = link->side->mark();
  }
  void finish(Context& ctx, Ticket& t) {
    if (link && link->side != nullptr) link->side->join(ctx, t.ready);
  }

  int64_t row_bytes_ = 0, sum_bytes_ = 0;  // tokens and their gradients; sums of the experts' rows
  Block from_memory_, to_memory_;
  Tensor from_, to_;
};

// A middle stage, and two micro-batches on their way through it, one a chunk behind the other.
class Chunks {
 public:
  Chunks(Context& ctx, const Config& c, const Precision& precision, const OverlapOptions& o)
      : ctx_(ctx),
        rank_(ctx, c, precision, o.layers + 2),
        pool_(ctx, rank_.config(), DType::kBF16, 2 * rank_.pages(o.tokens)),
        exchange_(ctx, pool_, o.tokens, rank_.config()),
        batch_(one_sequence(ctx, rank_.config(), o.tokens)),
        stage_{.config = rank_.config(),
               .w = rank_.weights(),
               .exchange = exchange_,
               .first_layer = 1,
               .last_layer = 1 + o.layers,
               .num_mtp = 0},
        meter_(stage::make_meter(ctx, stage_)) {
    const Shape shape{o.tokens, c.hidden_size};
    x_ = random_rows(ctx, "x", shape, 1.0, &x_memory_);
    dy_ = random_rows(ctx, "dy", shape, 1e-4, &dy_memory_);
    dx_memory_ = ctx.memory.take_tensor(DType::kBF16, shape, &dx_);
    scale_.balance = 1e-4;
  }

  PacedExchange& exchange() { return exchange_; }
  void leave_sms(int sms) { stage_.spare_sms = sms; }
  void begin() { saved_ = stage::forward(ctx_, stage_, batch_, x_, meter_); }
  // The next chunk's forward, and the backward of the one before.
  void pair(bool side_by_side) {
    const stage::BackwardArgs args{.batch = batch_, .scale = scale_, .dy_in = dy_, .dx_out = dx_};
    if (side_by_side) {
      saved_ = stage::overlap(ctx_, {.stage = stage_, .batch = batch_, .x_in = x_, .meter = meter_},
                              stage_, std::move(saved_), args, rank_.grads());
      return;
    }
    stage::Saved next = stage::forward(ctx_, stage_, batch_, x_, meter_);
    stage::backward(ctx_, stage_, std::move(saved_), args, rank_.grads());
    saved_ = std::move(next);
  }
  void end() { saved_ = {}; }

 private:
  Context& ctx_;
  RankLayers rank_;
  RowPool pool_;
  PacedExchange exchange_;
  Batch batch_;
  stage::Stage stage_;
  stage::Meter meter_;
  stage::LossScale scale_;
  Block x_memory_, dy_memory_, dx_memory_;
  Tensor x_, dy_, dx_;
  stage::Saved saved_;
};

}  // namespace

void bench_overlap(Context& ctx, const Config& config, const Precision& precision,
                   const OverlapOptions& o, json row) {
  SideStream side(ctx.device);
  Chunks chunks(ctx, config, precision, o);
  PacedExchange& exchange = chunks.exchange();
  // Milliseconds of a layer pair, the median.
  const auto timed = [&](const auto& fn) {
    std::vector<double> times;
    for (int64_t i = 0; i < o.samples + 2; ++i) {
      device::synchronize(ctx.device, ctx.stream);
      const Timer timer;
      fn();
      device::synchronize(ctx.device, ctx.stream);
      if (i >= 2) times.push_back(1e3 * timer.seconds() / static_cast<double>(o.layers));
    }
    return quantile(times, 0.5);
  };
  const auto run = [&](std::optional<PacedExchange::Link> link, int spare_sms, bool side_by_side) {
    exchange.link = link;
    chunks.leave_sms(spare_sms);
    chunks.begin();
    const double ms = timed([&] { chunks.pair(side_by_side); });
    chunks.end();
    return ms;
  };
  const auto nothing = std::nullopt;
  const double all_sms = run(nothing, 0, false), compute = run(nothing, o.comm_sms, true);
  for (const double gbps : o.gbps) {
    const PacedExchange::Link alone{1e9 * gbps, o.comm_sms, nullptr},
        beside{1e9 * gbps, o.comm_sms, &side};
    exchange.link = alone;
    const double transfers = timed([&] {
      for (int64_t l = 0; l < o.layers; ++l) exchange.send_all(ctx);
    });
    const double serial = run(alone, 0, false), overlapped = run(beside, o.comm_sms, true);
    row.update({{"bench", "overlap"},
                {"products", precision.fp8 ? "fp8" : "bf16"},
                {"tokens", o.tokens},
                {"layers", o.layers},
                {"local_experts", kLocalExperts},
                {"link_GBps", gbps},
                {"comm_sms", o.comm_sms},
                {"sent_MB", exchange.megabytes()},
                {"compute_all_sms_ms", all_sms},
                {"compute_ms", compute},
                {"transfers_ms", transfers},
                {"serial_ms", serial},
                {"overlapped_ms", overlapped},
                {"over_longer", overlapped / std::max(compute, transfers)},
                {"serial_over_overlapped", serial / overlapped}});
    fmt::print("{}\n", row.dump());
    std::fflush(stdout);
  }
}

}  // namespace hadal::cli
