// Matrix products on CUDA against the CPU's: the same bits, since both are one chain over k.
//
//   M rows   N columns   K inner width   E experts   P pages
// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm.h"

#include "ops/routing.h"
#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

const int64_t kShapes[][3] = {{0, 5, 3}, {1, 1, 1},    {1, 65, 33},  {5, 16, 7},
                              {3, 4, 0}, {64, 64, 64}, {97, 65, 40}, {130, 129, 257}};

TEST(OpsCuda, DenseProducts) {
  for (DType type : kTypes)
    for (const auto& [M, N, K] : kShapes)
      expect_twins(concat("dense ", dtype_name(type), " ", M, " ", N, " ", K), [&](Side& s) {
        const Tensor a = s.random("a", type, {M, K + 3}).cols(0, K);
        const Tensor b = s.random("b", type, {N, K + 2}).cols(1, K);
        const Tensor an = s.random("an", type, {M, N}), at = s.random("at", type, {K, M});
        const Tensor bt = s.random("bt", type, {K, N});
        const Tensor nt = s.out(type, {M, N + 1}), nn = s.out(type, {M, K});
        const Tensor wide = s.out(stat_dtype(type), {M, N});
        Tensor nt_acc = s.random("c", type, {M, N}), nn_acc = s.random("d", type, {M, K});
        Tensor tn = s.random("e", stat_dtype(type), {M, N});
        ops::gemm_nt(s.ctx, a, b, nt.cols(0, N));
        ops::gemm_nt(s.ctx, a, b, Tensor(wide));
        ops::gemm_nn(s.ctx, an, b, Tensor(nn));
        ops::gemm_nt_acc(s.ctx, a, b, nt_acc);
        ops::gemm_nn_acc(s.ctx, an, b, nn_acc);
        ops::gemm_tn_acc(s.ctx, at, bt, tn);
        return std::vector<Tensor>{nt, wide, nn, nt_acc, nn_acc, tn};
      });
}

TEST(OpsCuda, BlockFp8Weights) {
  expect_twins("fp8", [&](Side& s) {
    const int64_t N = 200, K = 300, M = 9;
    const Tensor q = s.random("q", DType::kE4M3, {N, K}, 20.0);
    const Tensor scale = s.random("scale", DType::kF32, {2, 3});
    const Operand w = Operand(q, scale).rows(70, 100);
    const Tensor x = s.random("x", DType::kBF16, {M, K}),
                 dy = s.random("dy", DType::kF32, {M, 100});
    const Tensor y = s.out(DType::kF32, {M, 100}), dx = s.out(DType::kBF16, {M, K});
    ops::gemm_nt(s.ctx, x, w, Tensor(y));
    ops::gemm_nn(s.ctx, dy, w, Tensor(dx));
    return std::vector<Tensor>{y, dx};
  });
}

TEST(OpsCuda, HeadProducts) {
  for (DType type : kTypes)
    for (int64_t T : {0, 1, 70})
      expect_twins(concat("heads ", dtype_name(type), " ", T), [&](Side& s) {
        const int64_t H = 3, Dn = 5, Dv = 7, R = 11;
        const Tensor w = s.random("w", type, {H * (Dn + Dv), R});
        const Tensor q = s.random("q", type, {T, H, Dn + 2}), o = s.random("o", type, {T, H, R});
        const Tensor up = s.out(type, {T, H, R}), down = s.out(type, {T, H, Dv + 1});
        ops::gemm_nn_heads(s.ctx, q.cols(0, Dn), w, {0, Dn, Dn + Dv}, Tensor(up));
        ops::gemm_nt_heads(s.ctx, o, w, {Dn, Dv, Dn + Dv}, down.cols(0, Dv));
        return std::vector<Tensor>{up, down};
      });
}

// Rows of each expert: none, one, a page exactly, more than a page.
TEST(OpsCuda, GroupedProducts) {
  const std::vector<int32_t> counts = {0, 1, 128, 0, 150}, begin = {0, 0, 1, 2, 2, 4};
  for (DType type : kTypes)
    expect_twins(concat("grouped ", dtype_name(type)), [&](Side& s) {
      const int64_t N = 33, K = 70, E = 5, P = 4, slots = 6;
      const ops::ExpertLayout layout{s.list(counts), s.list(begin)};
      const Tensor page = s.list({5, 0, 3, 1});
      const ops::PagedRows x{s.random("x", type, {slots, ops::kPageRows, K}), page};
      const ops::PagedRows dy{s.random("dy", type, {P, ops::kPageRows, N}), Tensor()};
      const Tensor y = s.out(type, {P, ops::kPageRows, N}),
                   dx = s.out(type, {P, ops::kPageRows, K});
      Tensor dx_acc = s.random("dx_acc", type, {slots, ops::kPageRows, K});
      std::vector<Operand> w;
      std::vector<Tensor> dw;
      for (int64_t e = 0; e < E; ++e) {
        w.emplace_back(s.random(concat("w", e), type, {N, K}));
        dw.push_back(s.random(concat("dw", e), stat_dtype(type), {N, K}));
      }
      ops::grouped_gemm_nt(s.ctx, layout, x, w, {y, Tensor()});
      ops::grouped_gemm_nn(s.ctx, layout, dy, w, {dx, Tensor()});
      ops::grouped_gemm_nn_acc(s.ctx, layout, dy, w, {dx_acc, page});
      ops::grouped_gemm_tn_acc(s.ctx, layout, dy, x, dw);
      std::vector<Tensor> results = {y, dx, dx_acc};
      results.insert(results.end(), dw.begin(), dw.end());
      return results;
    });
}

}  // namespace
}  // namespace hadal::test
