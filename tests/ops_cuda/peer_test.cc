// Transfers through windows on CUDA against the CPU's: two ranks of one device, in turn.
//
//   G ranks   R slots   T tokens   K choices
// SPDX-License-Identifier: Apache-2.0
#include "ops/peer.h"

#include <algorithm>

#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

constexpr int64_t kRanks = 2, kSlots = 256, kMarks = 0, kPart = 256;

// Windows of both ranks, empty.
std::vector<Tensor> windows(Side& s, int64_t row_bytes) {
  std::vector<Tensor> all;
  for (int64_t g = 0; g < kRanks; ++g)
    all.push_back(s.make(DType::kI32, {(kPart + kRanks * kSlots * row_bytes) / 4},
                         [](int64_t) { return 0.0; }));
  return all;
}
ops::PeerView view_of(const std::vector<Tensor>& windows, int place) {
  return {.place = place, .size = kRanks, .window = {windows[0].raw(), windows[1].raw()}};
}

TEST(OpsCuda, PeerRowsAndMarks) {
  // Rows of 16, 8, 4 and of odd bytes.
  for (const auto& [type, width] : {std::pair<DType, int64_t>{DType::kBF16, 7168},
                                    {DType::kE4M3, 7232},
                                    {DType::kF32, 6},
                                    {DType::kF32, 5},
                                    {DType::kE4M3, 20},
                                    {DType::kBF16, 2}})
    expect_twins(concat("peer ", dtype_name(type), " ", width), [&](Side& s) {
      const int64_t T = 200, bytes = width * static_cast<int64_t>(dtype_size(type));
      std::vector<Tensor> all = windows(s, (bytes + 15) / 16 * 16);
      for (int round = 0; round < 2; ++round)
        for (int me = 0; me < kRanks; ++me) {
          // Some to nobody, some to both.
          const Tensor place = s.make(DType::kI32, {T, 2}, [&](int64_t i) {
            const int64_t t = i / 2, g = i % 2;
            return (t + g) % 3 == 0 ? -1.0 : static_cast<double>(g * kSlots + (t * 7 + round) % T);
          });
          const Tensor x = s.random(concat("x", me, round), type, {T, width});
          ops::peer_put(s.ctx, view_of(all, me), kPart, kSlots, 20, x, place);
          ops::peer_post(s.ctx, view_of(all, me), kMarks);
        }
      for (int me = 0; me < kRanks; ++me) ops::peer_await(s.ctx, view_of(all, me), kMarks, nullptr);
      const Tensor posts = s.out(DType::kI64, {1});
      ops::peer_posts(s.ctx, view_of(all, 1), kMarks, Tensor(posts));
      all.push_back(posts);
      return all;
    });
}

// To every other rank the same rows, or each its own.
TEST(OpsCuda, PeerCopies) {
  for (const int64_t apart : {0, 200})
    expect_twins(concat("peer copy ", apart), [&](Side& s) {
      constexpr int64_t kWidth = 24, kRows = 200;
      std::vector<Tensor> all = windows(s, kWidth * 2);
      for (int me = 0; me < kRanks; ++me) {
        const Tensor x = s.random(concat("x", me), DType::kBF16, {kRanks * kRows, kWidth});
        ops::peer_copy(s.ctx, view_of(all, me), kPart, kSlots, kRows, apart, x);
        ops::peer_post(s.ctx, view_of(all, me), kMarks);
      }
      for (int me = 0; me < kRanks; ++me) ops::peer_await(s.ctx, view_of(all, me), kMarks, nullptr);
      return all;
    });
}

TEST(OpsCuda, PeerRoutesAndArrivals) {
  constexpr int64_t E = 5, kIds = 256;
  for (const DType stat : {DType::kF32, DType::kF64})
    for (const ops::PeerSlots order : {ops::PeerSlots::kNext, ops::PeerSlots::kOfToken})
      for (const int64_t K : {1, 3, 4, 8})
        for (const int64_t T : {0, 1, 37, 256}) {
          const int64_t weights_at = kIds + (kRanks * kSlots * K * 4 + 255) / 256 * 256;
          expect_twins(
              concat("peer route ", dtype_name(stat), " ", K, " ", T, " ", static_cast<int>(order)),
              [&](Side& s) {
                std::vector<Tensor> all;
                for (int64_t g = 0; g < kRanks; ++g)
                  all.push_back(s.make(DType::kI32, {(weights_at + kRanks * kSlots * K * 8) / 4},
                                       [](int64_t) { return 7.0; }));
                const Rng rng(3, 3);
                // Ascending; the last of some are left out.
                const Tensor ids = s.make(DType::kI32, {T, K}, [&](int64_t i) {
                  const auto draw =
                      static_cast<int64_t>(rng.u64(static_cast<uint64_t>(i / K)) % 97);
                  const int64_t first = draw % (kRanks * E - K + 1);
                  return i % K == K - 1 && draw % 5 == 0 ? -1.0
                                                         : static_cast<double>(first + i % K);
                });
                const Tensor weights = s.random("weights", stat, {T, K});
                const Tensor of_rank = s.out(DType::kI32, {T, std::min(K, kRanks)}),
                             of_choice = s.out(DType::kI32, {T, K});
                const Tensor sent = s.make(DType::kI64, {kRanks + 1},
                                           [](int64_t i) { return static_cast<double>(5 * i); });
                ops::peer_route(s.ctx, view_of(all, 1), kIds, weights_at, kSlots, order, E, ids,
                                weights, Tensor(of_rank), Tensor(of_choice), Tensor(sent));
                const Tensor came = s.make(DType::kI32, {T, K}, [](int64_t i) {
                  return i / 4 % 3 == 0 ? -1.0 : i % 5 == 0 ? 2.0 : -1.0;
                });
                const Tensor arrivals = s.out(DType::kI32, {T, 1});
                ops::peer_arrivals(s.ctx, came, Tensor(arrivals));
                all.insert(all.end(), {of_rank, of_choice, sent, arrivals});
                return all;
              });
        }
}

// Several sums after one another, of one word and of more than a block, an odd one among them.
TEST(OpsCuda, PeerSums) {
  constexpr int64_t kLines = 3000;
  for (const int ranks : {2, 3, 8})
    for (const DType type : {DType::kF32, DType::kBF16})
      expect_twins(concat("sums of ", ranks, " ranks in ", dtype_name(type)), [&](Side& s) {
        std::vector<Tensor> windows, x;
        for (int r = 0; r < ranks; ++r)
          windows.push_back(s.make(DType::kI32, {ops::peer_sums_bytes(ranks, kLines) / 4},
                                   [](int64_t) { return 0.0; }));
        const int64_t sizes[] = {2048, 1, 2999, 5, 2048, 2048};
        for (int r = 0; r < ranks; ++r)
          for (size_t i = 0; i < std::size(sizes); ++i)
            x.push_back(s.random(concat("x", r, " ", i), type, {sizes[i]}));
        run_ranks(s, ranks, [&](int r, Context& ctx) {
          ops::PeerSums sums{.view = {.place = r, .size = ranks}, .lines = kLines};
          for (size_t g = 0; g < windows.size(); ++g) sums.view.window[g] = windows[g].raw();
          for (size_t i = 0; i < std::size(sizes); ++i)
            ops::peer_sum(ctx, sums, Tensor(x[static_cast<size_t>(r) * std::size(sizes) + i]));
        });
        return x;
      });
}

}  // namespace
}  // namespace hadal::test
