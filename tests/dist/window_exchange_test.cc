// WindowExchange among threads that share windows: every token at every expert that it chose, sums
// and gradients back, layer after layer in the same lanes; and the ops it is made of.
//
//   G ranks   T tokens   K choices   D model width
// SPDX-License-Identifier: Apache-2.0
#include "parallel/window_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "core/device_window.h"
#include "core/rng.h"
#include "tests/dist/machine.h"
#include "tests/unit/expect_error.h"

namespace hadal::testing {
namespace {

constexpr int64_t kExperts = 8, kChoices = 3, kWidth = 20, kMostTokens = 140;

Config small_config() {
  Config c;
  c.hidden_size = kWidth;
  c.moe_intermediate_size = 8;
  c.n_routed_experts = kExperts;
  c.num_experts_per_tok = kChoices;
  return c;
}

// Ascending experts of each token; tokens of rank 1 in layer 2 are none.
int64_t num_tokens(int rank, int layer) {
  return rank == 1 && layer == 2 ? 0 : 1 + (rank * 37 + layer * 61) % kMostTokens;
}
std::vector<int32_t> choices(int rank, int layer, int64_t T) {
  const Rng rng(7, static_cast<uint64_t>(rank * 100 + layer));
  std::vector<int32_t> all;
  for (int64_t t = 0; t < T; ++t) {
    std::vector<int32_t> experts(kExperts);
    for (int64_t e = 0; e < kExperts; ++e)
      experts[static_cast<size_t>(e)] = static_cast<int32_t>(e);
    for (int64_t k = 0; k < kChoices; ++k)
      std::swap(experts[static_cast<size_t>(k)],
                experts[static_cast<size_t>(k) + rng.u64(static_cast<uint64_t>(t * kChoices + k)) %
                                                     static_cast<uint64_t>(kExperts - k)]);
    std::sort(experts.begin(), experts.begin() + kChoices);
    all.insert(all.end(), experts.begin(), experts.begin() + kChoices);
  }
  return all;
}
// Small integers, so that sums are exact in every type.
double value(int rank, int layer, int64_t t, int64_t d) {
  return static_cast<double>((rank * 3 + layer * 5 + t * 7 + d) % 16);
}

// One rank's thread.
class Rank {
 public:
  // sms: of the exchange; 0: rows are copied whole.
  Rank(int place, int size, int sms, DType act, const WindowLayout& layout)
      : place_(place), sms_(sms), act_(act), config_(small_config()), local_(kExperts / size) {
    view_.place = place;
    view_.size = size;
    device::WindowHandle handle;
    own_ = device::allocate_window({}, static_cast<size_t>(layout.bytes), &handle);
    view_.window[static_cast<size_t>(place)] = own_;
  }
  ~Rank() { device::release_window({}, own_); }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;
  void* window() const { return own_; }
  void know(int rank, void* window) { view_.window[static_cast<size_t>(rank)] = window; }

  void run(const WindowLayout& layout, int layers) {
    Machine machine;
    ctx_ = &machine.ctx;
    const int64_t rows = view_.size * layout.slots * std::min(kChoices, local_);
    RowPool pool(*ctx_, config_, act_, 2 * ops::max_pages(rows, local_));
    WindowExchange exchange(*ctx_, {.view = view_, .num_experts = kExperts, .sms = sms_}, layout,
                            pool);
    int64_t tokens = 0;
    for (int layer = 0; layer < layers; ++layer) {
      one_layer(exchange, layer);
      tokens += num_tokens(place_, layer);
    }
    counters_ = exchange.counters(*ctx_);
    EXPECT_EQ(counters_.tokens, tokens);
    EXPECT_EQ(pool.num_free_pages(), pool.num_pages());
    exchange.reset_counters(*ctx_);
    EXPECT_EQ(exchange.counters(*ctx_).rank_visits, 0);
  }
  const ExchangeCounters& counters() const { return counters_; }

 private:
  Tensor tensor(DType dtype, const Shape& shape) {
    Tensor t;
    memory_.push_back(ctx_->memory.take_tensor(dtype, shape, &t));
    return t;
  }
  // Row r of the expert's rows; a page list, or pages in order.
  static void* row(const ops::PagedRows& rows, const ops::ExpertLayout& layout, int64_t e,
                   int64_t r) {
    int64_t page = layout.page_begin.data<int32_t>()[e] + r / ops::kPageRows;
    if (!rows.page.empty()) page = rows.page.data<int32_t>()[page];
    return rows.slab.row(page).row(r % ops::kPageRows).raw();
  }
  // to = (number of the expert) * from, for each of this rank's rows.
  void scale(const ops::ExpertLayout& layout, const ops::PagedRows& from,
             const ops::PagedRows& to) {
    for (int64_t e = 0; e < local_; ++e)
      for (int64_t r = 0; r < layout.counts.data<int32_t>()[e]; ++r)
        for (int64_t d = 0; d < kWidth; ++d)
          store_element(row(to, layout, e, r), act_, d,
                        static_cast<double>(place_ * local_ + e + 1) *
                            load_element(row(from, layout, e, r), act_, d));
  }

  void one_layer(WindowExchange& exchange, int layer) {
    const int64_t T = num_tokens(place_, layer);
    const DType stat = stat_dtype(act_);
    const Tensor x = tensor(act_, {T, kWidth}), dy = tensor(act_, {T, kWidth});
    Tensor y = tensor(act_, {T, kWidth}), dx = tensor(act_, {T, kWidth});
    const Tensor idx = tensor(DType::kI32, {T, kChoices}), weight = tensor(stat, {T, kChoices});
    Tensor dweight = tensor(stat, {T, kChoices});
    const std::vector<int32_t> experts = choices(place_, layer, T);
    for (int64_t i = 0; i < T * kChoices; ++i) {
      idx.data<int32_t>()[i] = experts[static_cast<size_t>(i)];
      store_element(weight.raw(), stat, i, static_cast<double>(i % 9) / 8.0);
    }
    for (int64_t t = 0; t < T; ++t)
      for (int64_t d = 0; d < kWidth; ++d) {
        store_element(x.raw(), act_, t * kWidth + d, value(place_, layer, t, d));
        store_element(dy.raw(), act_, t * kWidth + d, value(place_, layer, d, t));
      }
    Ticket ticket = exchange.dispatch_start(*ctx_, x, idx, weight);
    RowLease lease;
    exchange.dispatch_finish(*ctx_, ticket, &lease);
    const Shape pages{ticket.num_pages, ops::kPageRows, kWidth};
    ops::PagedRows rows, drows, dx_rows;
    for (ops::PagedRows* r : {&rows, &drows, &dx_rows}) r->slab = tensor(act_, pages);
    const Tensor drow_weight = tensor(stat, {ticket.num_pages * ops::kPageRows});
    scale(ticket.layout, lease.x(), rows);
    exchange.combine_start(*ctx_, ticket, rows);
    exchange.combine_finish(*ctx_, ticket, rows, y);
    exchange.combine_backward_start(*ctx_, ticket, dy, drows);
    exchange.combine_backward_finish(*ctx_, ticket, drows);
    scale(ticket.layout, drows, dx_rows);
    for (int64_t e = 0; e < local_; ++e)
      for (int64_t r = 0; r < ticket.layout.counts.data<int32_t>()[e]; ++r) {
        const int64_t at = ticket.layout.page_begin.data<int32_t>()[e] * ops::kPageRows + r;
        store_element(drow_weight.raw(), stat, at,
                      static_cast<double>(place_ * local_ + e) * 4.0 +
                          load_element(ticket.row_weight.raw(), stat, at));
      }
    exchange.dispatch_backward_start(*ctx_, ticket, dx_rows, drow_weight);
    exchange.dispatch_backward_finish(*ctx_, ticket, dx_rows, drow_weight, dx, dweight);
    for (int64_t t = 0; t < T; ++t) {
      double factor = 0.0;
      for (int64_t k = 0; k < kChoices; ++k) {
        const int32_t e = experts[static_cast<size_t>(t * kChoices + k)];
        factor += e + 1.0;
        ASSERT_EQ(load_element(dweight.raw(), stat, t * kChoices + k),
                  4.0 * e + static_cast<double>((t * kChoices + k) % 9) / 8.0)
            << "rank " << place_ << ", layer " << layer << ", token " << t;
      }
      for (int64_t d = 0; d < kWidth; ++d) {
        ASSERT_EQ(load_element(y.raw(), act_, t * kWidth + d), factor * value(place_, layer, t, d))
            << "rank " << place_ << ", layer " << layer << ", token " << t;
        ASSERT_EQ(load_element(dx.raw(), act_, t * kWidth + d), factor * value(place_, layer, d, t))
            << "rank " << place_ << ", layer " << layer << ", token " << t;
      }
    }
    lease = RowLease();
    memory_.clear();
  }

  int place_, sms_;
  DType act_;
  Config config_;
  int64_t local_;
  void* own_;
  ops::PeerView view_;
  Context* ctx_ = nullptr;
  std::vector<Block> memory_;
  ExchangeCounters counters_;
};

TEST(WindowExchange, EveryTokenReachesItsExpertsAndComesBack) {
  constexpr int kLayers = 6;
  for (const int sms : {20, 0})
    for (const DType act : {DType::kF64, DType::kF32})
      for (const int size : {1, 2, 4}) {
        const WindowLayout layout(size, kMostTokens, kChoices, kWidth, act, false);
        EXPECT_EQ(layout.slots, 256);
        std::vector<std::unique_ptr<Rank>> ranks;
        for (int r = 0; r < size; ++r)
          ranks.push_back(std::make_unique<Rank>(r, size, sms, act, layout));
        for (int r = 0; r < size; ++r)
          for (int g = 0; g < size; ++g)
            ranks[static_cast<size_t>(r)]->know(g, ranks[static_cast<size_t>(g)]->window());
        std::vector<std::thread> threads;
        for (auto& rank : ranks)
          threads.emplace_back([&rank, &layout] { rank->run(layout, kLayers); });
        for (std::thread& thread : threads) thread.join();
        int64_t visits = 0, want = 0;
        for (int r = 0; r < size; ++r) {
          visits += ranks[static_cast<size_t>(r)]->counters().rank_visits;
          for (int layer = 0; layer < kLayers; ++layer) {
            const int64_t T = num_tokens(r, layer);
            const std::vector<int32_t> experts = choices(r, layer, T);
            for (int64_t t = 0; t < T; ++t) {
              std::vector<int64_t> visited;
              for (int64_t k = 0; k < kChoices; ++k)
                visited.push_back(experts[static_cast<size_t>(t * kChoices + k)] /
                                  (kExperts / size));
              visited.erase(std::unique(visited.begin(), visited.end()), visited.end());
              want += static_cast<int64_t>(visited.size());
            }
          }
        }
        EXPECT_EQ(visits, want);
      }
}

// A rank that never posts: the wait ends when the host says so.
TEST(Peer, AWaitEndsWhenARankHasFailed) {
  Machine machine;
  device::WindowHandle handle;
  void* const a = device::allocate_window({}, 4096, &handle);
  void* const b = device::allocate_window({}, 4096, &handle);
  const ops::PeerView view{.place = 0, .size = 2, .window = {a, b}};
  int stop = 0;
  ops::peer_post(machine.ctx, view, 0);
  std::thread host([&stop] { std::atomic_ref<int>(stop).store(1); });
  ops::peer_await(machine.ctx, view, 0, &stop);
  host.join();
  EXPECT_EQ(static_cast<uint64_t*>(b)[0], 1u);  // what rank 0 posted
  device::release_window({}, a);
  device::release_window({}, b);
}

TEST(Peer, RefusesPlacesThatAreNot) {
  Machine machine;
  device::WindowHandle handle;
  void* const a = device::allocate_window({}, 4096, &handle);
  const ops::PeerView view{.place = 0, .size = 1, .window = {a}};
  Tensor x, place;
  const Block m[] = {machine.memory.take_tensor(DType::kF32, {2, 4}, &x),
                     machine.memory.take_tensor(DType::kI32, {2, 1}, &place)};
  for (int i = 0; i < 8; ++i) x.data<float>()[i] = static_cast<float>(i);
  place.data<int32_t>()[0] = 1;
  place.data<int32_t>()[1] = -1;
  ops::peer_put(machine.ctx, view, 256, 2, 1, x, place);
  const auto* const rows = reinterpret_cast<const float*>(static_cast<std::byte*>(a) + 256);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(rows[i], 0.0f);
    EXPECT_EQ(rows[4 + i], static_cast<float>(i));
  }
  place.data<int32_t>()[1] = 2;
  EXPECT_ERROR(ops::peer_put(machine.ctx, view, 256, 2, 1, x, place),
               "place 0 of row 1 is 2, but there are 2");
  EXPECT_ERROR(ops::peer_put(machine.ctx, view, 8, 2, 1, x, place),
               "peer_put: a part begins at byte 8; parts begin at multiples of 16");
  const ops::PeerView none{.place = 2, .size = 2, .window = {a, a}};
  EXPECT_ERROR(ops::peer_post(machine.ctx, none, 0),
               "peer_post: rank 2 of 2; at most 16 ranks have windows");
  device::release_window({}, a);
}

}  // namespace
}  // namespace hadal::testing
