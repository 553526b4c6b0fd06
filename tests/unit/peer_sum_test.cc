// Sums through windows: the bits of sum_of_ranks, one sum after another, on threads.
//
//   G ranks   n elements
// SPDX-License-Identifier: Apache-2.0
#include <thread>

#include "ops/copy.h"
#include "ops/peer.h"
#include "ops/ranks.h"
#include "tests/unit/ops.h"
#include "tests/unit/peer_lines.h"

namespace hadal::test {
namespace {

TEST(PeerSum, HasTheBitsOfSumsInRankOrder) {
  for (const int G : {2, 3, 8})
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Machine machine(1);
      Windows windows(G);
      // The numbers of sums go around.
      for (auto& window : windows.of) window[0] = 0xfffffffdu;
      std::vector<Tensor> x, want;
      const int64_t sizes[] = {40, 1, 7, 40, 2, 39};
      for (const int64_t n : sizes) {
        std::vector<Tensor> parts;
        for (int r = 0; r < G; ++r)
          parts.push_back(machine.put(random_in(concat("x", r, n), {n}, dtype), dtype));
        Tensor others = machine.tensor(dtype, {G - 1, n}), sum = machine.tensor(dtype, {n});
        for (int r = 1; r < G; ++r)
          ops::cast(machine.ctx, parts[static_cast<size_t>(r)], others.row(r - 1));
        ops::sum_of_ranks(machine.ctx, 0, parts[0], others, sum);
        want.push_back(sum);
        x.insert(x.end(), parts.begin(), parts.end());
      }
      std::vector<std::thread> threads;
      for (int r = 0; r < G; ++r)
        threads.emplace_back([&, r] {
          const ops::PeerSums sums = windows.sums_of(r);
          for (size_t i = 0; i < std::size(sizes); ++i)
            ops::peer_sum(machine.ctx, sums,
                          Tensor(x[i * static_cast<size_t>(G) + static_cast<size_t>(r)]));
        });
      for (std::thread& t : threads) t.join();
      for (size_t i = 0; i < x.size(); ++i)
        expect_bits_equal(concat("sum ", i, " of ", G, " in ", dtype_name(dtype)), x[i],
                          want[i / static_cast<size_t>(G)]);
    }
}

TEST(PeerSum, EndsWhereARankHasFailed) {
  Machine machine(1);
  Windows windows(2);
  const int stop = 1;
  Tensor x = machine.tensor(DType::kF32, {4});
  ops::peer_sum(machine.ctx, windows.sums_of(0, &stop), x);
}

TEST(PeerSum, RefusesWhatDoesNotFit) {
  Machine machine(1);
  Windows windows(2);
  Tensor large = machine.tensor(DType::kF32, {41}), wide = machine.tensor(DType::kF64, {4});
  EXPECT_ERROR(ops::peer_sum(machine.ctx, windows.sums_of(0), large),
               "peer_sum: f32 [41] takes 41 lines of the 40 that there are");
  EXPECT_ERROR(ops::peer_sum(machine.ctx, windows.sums_of(0), wide),
               "peer_sum: f64 [4] takes 0 lines of the 40 that there are");
}

}  // namespace
}  // namespace hadal::test
