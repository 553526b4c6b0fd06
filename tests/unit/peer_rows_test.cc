// Rows through windows: gathered, and summed where their owners are with the bits of sum_of_ranks,
// one after another, on threads.
//
//   G ranks   n elements of all of them
// SPDX-License-Identifier: Apache-2.0
#include "ops/peer_rows.h"

#include <numeric>
#include <thread>

#include "ops/copy.h"
#include "ops/ranks.h"
#include "tests/unit/ops.h"
#include "tests/unit/peer_lines.h"

namespace hadal::test {
namespace {

// In round k rank r has none, or some; in some rounds but one rank has none.
std::vector<int64_t> bounds_of(int G, int round) {
  std::vector<int64_t> bounds = {0};
  for (int r = 0; r < G; ++r) {
    const int64_t count = round % 3 == 0 ? (r == round % G ? 40 : 0) : (r * 5 + round * 3) % 7 * 6;
    bounds.push_back(bounds.back() + std::min(count, kLines));
  }
  return bounds;
}

TEST(PeerRows, GatherAndSumOfAnyNumbersOfRows) {
  constexpr int kRounds = 12;
  for (const int G : {2, 3, 8})
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Machine machine(1);
      Windows windows(G);
      // The numbers of sums go around.
      for (auto& window : windows.of) window[0] = 0xfffffff7u;
      struct Round {
        std::vector<int64_t> bounds;
        std::vector<Tensor> terms, sums, gathered;  // [G] of [n], of its part, of [n]
        Tensor want;                                // [n]
      };
      std::vector<Round> rounds;
      for (int k = 0; k < kRounds; ++k) {
        Round round{.bounds = bounds_of(G, k), .terms = {}, .sums = {}, .gathered = {}, .want = {}};
        const int64_t n = round.bounds.back();
        Tensor others = machine.tensor(dtype, {G - 1, n});
        round.want = machine.tensor(dtype, {n});
        for (int r = 0; r < G; ++r) {
          const auto g = static_cast<size_t>(r);
          round.terms.push_back(machine.put(random_in(concat("x", r, " ", k), {n}, dtype), dtype));
          round.sums.push_back(machine.tensor(dtype, {round.bounds[g + 1] - round.bounds[g]}));
          round.gathered.push_back(machine.tensor(dtype, {n}));
          if (r > 0 && n > 0) ops::cast(machine.ctx, round.terms[g], others.row(r - 1));
        }
        if (n > 0) ops::sum_of_ranks(machine.ctx, 0, round.terms[0], others, round.want);
        rounds.push_back(std::move(round));
      }
      std::vector<std::thread> threads;
      for (int r = 0; r < G; ++r)
        threads.emplace_back([&, g = static_cast<size_t>(r)] {
          const ops::PeerSums sums = windows.sums_of(static_cast<int>(g));
          for (Round& round : rounds) {
            ops::peer_sum_scatter(machine.ctx, sums, round.bounds, round.terms[g], round.sums[g]);
            ops::peer_gather(machine.ctx, sums, round.bounds, round.sums[g], round.gathered[g]);
          }
        });
      for (std::thread& t : threads) t.join();
      for (int k = 0; k < kRounds; ++k)
        for (int r = 0; r < G; ++r)
          expect_bits_equal(concat("round ", k, " of ", G, " in ", dtype_name(dtype)),
                            rounds[static_cast<size_t>(k)].gathered[static_cast<size_t>(r)],
                            rounds[static_cast<size_t>(k)].want);
    }
}

TEST(PeerRows, IntegersAreGathered) {
  Machine machine(1);
  Windows windows(2);
  const std::vector<int64_t> bounds = {0, 2, 5};
  const Tensor want = machine.tensor(DType::kI32, {5});
  std::iota(want.data<int32_t>(), want.data<int32_t>() + 5, -2);
  std::vector<Tensor> got = {machine.tensor(DType::kI32, {5}), machine.tensor(DType::kI32, {5})};
  std::thread other(
      [&] { ops::peer_gather(machine.ctx, windows.sums_of(1), bounds, want.rows(2, 3), got[1]); });
  ops::peer_gather(machine.ctx, windows.sums_of(0), bounds, want.rows(0, 2), got[0]);
  other.join();
  for (const Tensor& t : got) expect_bits_equal("integers", t, want);
}

TEST(PeerRows, LinesAreThoseOfTheRankWithMost) {
  Machine machine(1);
  const Tensor f32 = machine.tensor(DType::kF32, {9}), bf16 = machine.tensor(DType::kBF16, {8});
  EXPECT_EQ(ops::peer_row_lines(f32, std::vector<int64_t>{0, 2, 9}), 7);
  EXPECT_EQ(ops::peer_row_lines(bf16, std::vector<int64_t>{0, 2, 8}), 3);
  EXPECT_EQ(ops::peer_row_lines(bf16, std::vector<int64_t>{0, 3, 8}), 0);
  EXPECT_EQ(ops::peer_row_lines(bf16.rows(0, 0), std::vector<int64_t>{0, 0, 0}), 1);
  EXPECT_EQ(ops::peer_row_lines(machine.tensor(DType::kF64, {8}), std::vector<int64_t>{0, 8}), 0);
}

TEST(PeerRows, RefusesWhatDoesNotFit) {
  Machine machine(1);
  Windows windows(2);
  const std::vector<int64_t> bounds = {0, 41, 42};
  Tensor all = machine.tensor(DType::kF32, {42}), part = machine.tensor(DType::kF32, {40});
  EXPECT_ERROR(ops::peer_gather(machine.ctx, windows.sums_of(0), bounds, part, all),
               "peer_gather: f32 [40] is not the part of rank 0 of f32 [42]");
  EXPECT_ERROR(ops::peer_sum_scatter(machine.ctx, windows.sums_of(1), bounds, all, part.rows(0, 1)),
               "peer_sum_scatter: f32 [42] takes 41 lines of the 40 that there are");
}

}  // namespace
}  // namespace hadal::test
