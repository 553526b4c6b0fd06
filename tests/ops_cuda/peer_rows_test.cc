// Rows through windows on CUDA against the CPU's: ranks in streams of one device.
//
//   G ranks   n elements of all of them
// SPDX-License-Identifier: Apache-2.0
#include "ops/peer_rows.h"

#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

// Of one word and of more than a block, of even numbers and not, and none.
TEST(OpsCuda, PeerRows) {
  constexpr int64_t kLines = 3000;
  constexpr int kRounds = 6;
  for (const int ranks : {2, 3, 8})
    for (const DType type : {DType::kF32, DType::kBF16})
      expect_twins(concat("rows of ", ranks, " ranks in ", dtype_name(type)), [&](Side& s) {
        std::vector<Tensor> windows, sums, gathered, terms;
        std::vector<std::vector<int64_t>> bounds;
        for (int r = 0; r < ranks; ++r)
          windows.push_back(s.make(DType::kI32, {ops::peer_sums_bytes(ranks, kLines) / 4},
                                   [](int64_t) { return 0.0; }));
        const int64_t counts[] = {2048, 2, 0, 3000, 258};
        for (int k = 0; k < kRounds; ++k) {
          bounds.push_back({0});
          for (int r = 0; r < ranks; ++r)
            bounds.back().push_back(bounds.back().back() + counts[(r + k) % 5]);
          for (int r = 0; r < ranks; ++r) {
            terms.push_back(s.random(concat("x", r, " ", k), type, {bounds.back().back()}));
            sums.push_back(s.random("sums", type, {counts[(r + k) % 5]}));
            gathered.push_back(s.random("gathered", type, {bounds.back().back()}));
          }
        }
        // A kernel that is launched for the first time is loaded, which may wait for all that runs:
        // before ranks on one device wait for each other.
        const Tensor alone =
            s.make(DType::kI32, {ops::peer_sums_bytes(1, kLines) / 4}, [](int64_t) { return 0.0; });
        const Tensor one = s.random("one", type, {2});
        const std::vector<int64_t> all = {0, 2};
        ops::PeerSums self{.view = {.place = 0, .size = 1}, .lines = kLines};
        self.view.window[0] = alone.raw();
        ops::peer_sum_scatter(s.ctx, self, all, one, Tensor(one));
        ops::peer_gather(s.ctx, self, all, one, Tensor(one));
        run_ranks(s, ranks, [&](int r, Context& ctx) {
          ops::PeerSums lines{.view = {.place = r, .size = ranks}, .lines = kLines};
          for (size_t g = 0; g < windows.size(); ++g) lines.view.window[g] = windows[g].raw();
          for (int k = 0; k < kRounds; ++k) {
            const auto at = static_cast<size_t>(k * ranks + r);
            const auto& where = bounds[static_cast<size_t>(k)];
            ops::peer_sum_scatter(ctx, lines, where, terms[at], Tensor(sums[at]));
            ops::peer_gather(ctx, lines, where, sums[at], Tensor(gathered[at]));
          }
        });
        return gathered;
      });
}

}  // namespace
}  // namespace hadal::test
