// Sums over ranks and hops of tokens on CUDA against the CPU's.
//
//   G ranks   n elements   T tokens   K choices of a token   E experts of a rank
// SPDX-License-Identifier: Apache-2.0
#include "ops/ranks.h"

#include <algorithm>

#include "ops/routing.h"
#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

TEST(OpsCuda, SumOfRanks) {
  for (const DType type : {DType::kF32, DType::kF64, DType::kBF16, DType::kI64})
    for (const int64_t G : {2, 3, 8})
      for (const int64_t n : {0, 1, 7, 64, 4099, 100000})
        expect_twins(concat("sum ", dtype_name(type), " ", G, " ", n), [&](Side& s) {
          std::vector<Tensor> outputs;
          for (const int64_t place : {int64_t{0}, G / 2, G - 1}) {
            const auto make = [&](const char* name, const Shape& shape) {
              if (type != DType::kI64) return s.random(name, type, shape);
              const Rng rng(3, stream_id(name));
              return s.make(type, shape, [&](int64_t i) {
                return static_cast<double>(rng.u64(static_cast<uint64_t>(i)) % 100000) - 50000.0;
              });
            };
            const Tensor own = make("own", {n}), others = make("others", {G - 1, n + 5});
            const Tensor y = s.out(type, {n});
            ops::sum_of_ranks(s.ctx, place, own, others.cols(0, n), Tensor(y));
            ops::sum_of_ranks(s.ctx, place, own, others.cols(0, n), Tensor(own));
            outputs.push_back(y);
            outputs.push_back(own);
          }
          return outputs;
        });
}

struct Case {
  int64_t T, G, E, K;
};
constexpr Case kCases[] = {{0, 2, 4, 3},     {1, 2, 4, 3},    {37, 4, 2, 4},
                           {1025, 2, 16, 8}, {3000, 8, 4, 8}, {130, 3, 5, 2}};

TEST(OpsCuda, HopsAndLeftOutChoices) {
  for (const DType stat : {DType::kF64, DType::kF32})
    for (const Case& c : kCases)
      expect_twins(concat("hop ", dtype_name(stat), " ", c.T, " ", c.G), [&](Side& s) {
        // Ascending; every third choice is elsewhere, and no token goes to the last rank but one.
        const Rng rng(9, 9);
        std::vector<double> ids(static_cast<size_t>(c.T * c.K));
        for (int64_t t = 0; t < c.T; ++t) {
          const auto row = ids.begin() + t * c.K;
          for (int64_t k = 0; k < c.K; ++k) {
            const auto draw =
                static_cast<int64_t>(rng.u64(static_cast<uint64_t>(t * c.K + k)) >> 8);
            const int64_t expert = draw % (c.G * c.E);
            row[k] = static_cast<double>(c.G > 2 && expert / c.E == c.G - 2 ? 0 : expert);
          }
          std::sort(row, row + c.K);
          for (int64_t k = 0; k < c.K; ++k)
            if ((t + k) % 3 == 0) row[k] = -1;
        }
        const Tensor idx =
            s.make(DType::kI32, {c.T, c.K}, [&](int64_t i) { return ids[static_cast<size_t>(i)]; });
        const Tensor weight = s.random("weight", stat, {c.T, c.K});
        const Tensor copy_of_rank = s.out(DType::kI32, {c.T, std::min(c.K, c.G)});
        const Tensor copy_of_choice = s.out(DType::kI32, {c.T, c.K});
        const Tensor counts = s.out(DType::kI64, {c.G, 1 + c.E}), most = s.out(DType::kI64, {1});
        ops::hop_copies(s.ctx, idx, Tensor(copy_of_rank), Tensor(copy_of_choice), Tensor(counts),
                        Tensor(most));
        const std::vector<int64_t> numbers = download<int64_t>(s.ctx, counts);
        int64_t N = 0;
        for (int64_t g = 0; g < c.G; ++g) N += numbers[static_cast<size_t>(g * (1 + c.E))];
        const Tensor ids_out = s.out(DType::kI32, {N, c.K}), weights_out = s.out(stat, {N, c.K});
        ops::hop_choices(s.ctx, c.E, idx, weight, copy_of_choice, Tensor(ids_out),
                         Tensor(weights_out));
        const Tensor back = s.random("back", stat, {N, c.K}), values = s.out(stat, {c.T, c.K});
        ops::hop_values(s.ctx, back, copy_of_choice, Tensor(values));

        // Rows of the choices that are here, of which some are not.
        const int64_t P = std::max<int64_t>(1, ops::max_pages(N * c.K, c.E)), D = 64;
        const ops::ExpertLayout layout{s.out(DType::kI32, {c.E}), s.out(DType::kI32, {c.E + 1})};
        const Tensor row = s.out(DType::kI32, {N, c.K});
        ops::expert_layout(s.ctx, ids_out, layout, Tensor(row));
        const Tensor row_value = s.make(stat, {P * ops::kPageRows}, [](int64_t) { return 2.0; });
        const Tensor gathered = s.out(stat, {N, c.K});
        ops::scatter_choices(s.ctx, weights_out, row, Tensor(row_value));
        ops::gather_choices(s.ctx, row_value, row, Tensor(gathered));
        const Tensor x = s.random("x", DType::kBF16, {N, D}), y = s.out(DType::kBF16, {N, D});
        const ops::PagedRows rows{
            s.make(DType::kBF16, {P, ops::kPageRows, D}, [](int64_t) { return 1.0; }), Tensor()};
        ops::scatter_rows(s.ctx, x, row, rows);
        ops::combine_rows(s.ctx, rows, row, Tensor(y));
        return std::vector<Tensor>{copy_of_rank, copy_of_choice, counts, most,
                                   ids_out,      weights_out,    values, row,
                                   gathered,     rows.slab,      y,      row_value};
      });
}

}  // namespace
}  // namespace hadal::test
