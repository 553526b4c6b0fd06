// Matrix products on CUDA against the CPU's: the same bits, since both are one chain over k.
//
//   M rows   N columns   K inner width   E experts   P pages
// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm.h"

#include <algorithm>

#include "core/env.h"
#include "ops/quant.h"
#include "ops/routing.h"
#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

const int64_t kShapes[][3] = {{0, 5, 3}, {1, 1, 1},    {1, 65, 33},  {5, 16, 7},
                              {3, 4, 0}, {64, 64, 64}, {97, 65, 40}, {130, 129, 257}};

// What Hopper's matrix unit takes. It adds in its own order and cuts where the CPU rounds, so f32
// results differ by up to an unit in the last place for each of the K / 16 sums.
double matrix_unit_roundings(int64_t K) { return static_cast<double>(8 + K / 4); }

TEST(OpsCuda, DenseProducts) {
  for (DType type : kTypes)
    for (const auto& [M, N, K] : kShapes)
      expect_twins(
          concat("dense ", dtype_name(type), " ", M, " ", N, " ", K),
          [&](Side& s) {
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
          },
          type == DType::kBF16 ? matrix_unit_roundings(K) : 0.0);
}

TEST(OpsCuda, DenseProductsOfTheMatrixUnit) {
  const int64_t shapes[][3] = {{1, 128, 64},  {7, 8, 16},      {64, 64, 64},     {130, 576, 200},
                               {257, 264, 8}, {300, 1040, 72}, {128, 256, 2048}, {200, 136, 4104}};
  for (const auto& [M, N, K] : shapes)
    expect_twins(
        concat("matrix unit ", M, " ", N, " ", K),
        [&](Side& s) {
          const DType type = DType::kBF16, stat = DType::kF32;
          const Tensor a = s.random("a", type, {M, K + 8}).cols(8, K);
          const Tensor b = s.random("b", type, {N, K + 16}).cols(0, K);
          const Tensor an = s.random("an", type, {M, N});
          const int64_t M8 = (M + 7) / 8 * 8;
          const Tensor at = s.random("at", type, {K, M8}).cols(0, M8);
          const Tensor bt = s.random("bt", type, {K, N});
          const Tensor nt = s.out(type, {M, N + 2}), wide = s.out(stat, {M, N});
          const Tensor nn = s.out(stat, {M, K});
          Tensor nt_acc = s.random("c", stat, {M, N}), nn_acc = s.random("d", type, {M, K});
          Tensor tn = s.random("e", stat, {M8, N});
          ops::gemm_nt(s.ctx, a, b, nt.cols(0, N));
          ops::gemm_nt(s.ctx, a, b, Tensor(wide));
          ops::gemm_nn(s.ctx, an, b, Tensor(nn));
          ops::gemm_nt_acc(s.ctx, a, b, nt_acc);
          ops::gemm_nn_acc(s.ctx, an, b, nn_acc);
          ops::gemm_tn_acc(s.ctx, at, bt, tn);
          return std::vector<Tensor>{nt, wide, nn, nt_acc, nn_acc, tn};
        },
        matrix_unit_roundings(std::max(N, K)));
}

// The gate's product: bf16 rows, f32 weights.
TEST(OpsCuda, F32WeightsOfTheMatrixUnit) {
  for (int64_t T : {1, 9, 70, 300})
    expect_twins(
        concat("f32 weights ", T),
        [&](Side& s) {
          const int64_t E = 40, D = 192;
          const Tensor w = s.random("w", DType::kF32, {E, D});
          const Tensor x = s.random("x", DType::kBF16, {T, D}), y = s.out(DType::kF32, {T, E});
          const Tensor dy = s.random("dy", DType::kF32, {T, E});
          Tensor dx = s.random("dx", DType::kBF16, {T, D}),
                 dw = s.random("dw", DType::kF32, {E, D});
          ops::gemm_nt(s.ctx, x, w, Tensor(y));
          ops::gemm_nn_acc(s.ctx, dy, w, dx);
          ops::gemm_tn_acc(s.ctx, dy, x, dw);
          return std::vector<Tensor>{y, dx, dw};
        },
        matrix_unit_roundings(3 * 192));
}

// A row's result has the same bits whatever rows are beside it.
TEST(OpsCuda, RowsOfTheMatrixUnitDoNotDependOnEachOther) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  Side s({DeviceKind::kCuda, 0});
  for (Numerics numerics : {Numerics::kInvariant, Numerics::kFastest}) {
    s.ctx.numerics = numerics;
    // NOTE: the fastest mode keeps them up to 8 rows.
    const int64_t M = numerics == Numerics::kInvariant ? 400 : 8;
    const Tensor a = s.random("a", DType::kBF16, {M, 1024});
    for (DType weight : {DType::kBF16, DType::kF32}) {
      const Tensor b = s.random("b", weight, {512, 1024});
      const Tensor all = s.out(DType::kF32, {M, 512});
      ops::gemm_nt(s.ctx, a, b, Tensor(all));
      for (int64_t count : {int64_t{1}, int64_t{3}, int64_t{12}, int64_t{40}, M / 2}) {
        if (count > M) continue;
        const Tensor some = s.out(DType::kF32, {count, 512});
        ops::gemm_nt(s.ctx, a.rows(M - count, count), b, Tensor(some));
        const HostRead want(s.ctx, all.rows(M - count, count)), got(s.ctx, some);
        expect_bits_equal(concat(dtype_name(weight), ", ", count, " rows alone"), got.tensor(),
                          want.tensor());
      }
    }
  }
}

TEST(OpsCuda, FewRowsInTheFastestMode) {
  for (DType weight : {DType::kBF16, DType::kF32, DType::kE4M3})
    for (int64_t M : {1, 2, 3, 8})
      expect_twins(
          concat("few rows ", dtype_name(weight), " ", M),
          [&](Side& s) {
            s.ctx.numerics = Numerics::kFastest;
            const int64_t N = 201, K = 1040;
            Operand w(s.random("w", weight, {N + 70, K}));
            if (weight == DType::kE4M3) w.scale = s.random("scale", DType::kF32, {3, 9});
            w = w.rows(70, N);
            const Tensor x = s.random("x", DType::kBF16, {M, K});
            const Tensor y = s.out(DType::kBF16, {M, N});
            Tensor y_acc = s.random("y", DType::kF32, {M, N});
            ops::gemm_nt(s.ctx, x, w, Tensor(y));
            ops::gemm_nt_acc(s.ctx, x, w, y_acc);
            return std::vector<Tensor>{y, y_acc};
          },
          matrix_unit_roundings(1040));
}

// Gradients of narrow f32 weights over many tokens are summed in parts.
TEST(OpsCuda, NarrowGradientOverManyTokens) {
  expect_twins(
      "narrow gradient",
      [&](Side& s) {
        const int64_t T = 4104, N = 48, K = 72;
        Tensor dw = s.random("dw", DType::kF32, {N, K});
        ops::gemm_tn_acc(s.ctx, s.random("dy", DType::kF32, {T, N}),
                         s.random("x", DType::kBF16, {T, K}), dw);
        return std::vector<Tensor>{dw};
      },
      matrix_unit_roundings(4104));
}

TEST(OpsCuda, BlockFp8WeightsOfTheMatrixUnit) {
  // NOTE: the weight is rounded to bf16 after its scale, unlike on the CPU.
  expect_twins(
      "fp8 matrix unit",
      [&](Side& s) {
        const int64_t N = 320, K = 304, M = 70;
        const Tensor q = s.random("q", DType::kE4M3, {N, K}, 20.0);
        const Operand w(q, s.random("scale", DType::kF32, {3, 3}));
        const Tensor x = s.random("x", DType::kBF16, {M, K}),
                     dy = s.random("dy", DType::kBF16, {M, N});
        const Tensor y = s.out(DType::kBF16, {M, N}), dx = s.out(DType::kBF16, {M, K});
        ops::gemm_nt(s.ctx, x, w, Tensor(y));
        ops::gemm_nn(s.ctx, dy, w, Tensor(dx));
        return std::vector<Tensor>{y, dx};
      },
      4.0);
}

// Products of few rows read FP8 weights as they are; the bits are those of products with the
// weights dequantised to bf16 before, which more rows get.
TEST(OpsCuda, BlockFp8WeightsOfFewRowsHaveTheBitsOfBf16) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  if (env::cuda_plain()) GTEST_SKIP() << "the plain kernels do not round weights to bf16";
  Side s({DeviceKind::kCuda, 0});
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{64, 128}, {328, 208}, {1152, 1024}}) {
    const int64_t rows = N + 64;
    const Tensor q = s.random("q", DType::kE4M3, {rows, K}, 20.0);
    const Tensor scale =
        s.random("scale", DType::kF32, {(rows + 127) / 128, (K + 127) / 128}, 0.01);
    const Operand w = Operand(q, scale).rows(64, N);
    const Tensor plain = s.out(DType::kBF16, {N, K});
    ops::dequantise_blocks(s.ctx, w, Tensor(plain));
    for (int64_t M : {1, 8, 9, 16, 31, 64}) {
      const Tensor x = s.random("x", DType::kBF16, {M, K});
      const Tensor y = s.out(DType::kBF16, {M, N}), want_y = s.out(DType::kBF16, {M, N});
      Tensor sum = s.random("sum", DType::kF32, {M, N}),
             want_sum = s.random("sum", DType::kF32, {M, N});
      ops::gemm_nt(s.ctx, x, w, Tensor(y));
      ops::gemm_nt(s.ctx, x, Operand(plain), Tensor(want_y));
      ops::gemm_nt_acc(s.ctx, x, w, sum);
      ops::gemm_nt_acc(s.ctx, x, Operand(plain), want_sum);
      for (const auto& [got, want] : {std::pair(y, want_y), std::pair(sum, want_sum)}) {
        const HostRead a(s.ctx, got), b(s.ctx, want);
        expect_bits_equal(concat("N ", N, " K ", K, ", ", M, " rows"), a.tensor(), b.tensor());
      }
    }
  }
}

TEST(OpsCuda, BlockFp8WeightsOfExpertsHaveTheBitsOfBf16) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  if (env::cuda_plain()) GTEST_SKIP() << "the plain kernels do not round weights to bf16";
  Side s({DeviceKind::kCuda, 0});
  const int64_t E = 3, N = 192, K = 400;
  const Tensor q = s.random("q", DType::kE4M3, {E, N, K}, 20.0);
  const Tensor scale = s.random("scale", DType::kF32, {E, 2, 4}, 0.01);
  const Tensor plain = s.out(DType::kBF16, {E, N, K});
  std::vector<Operand> w, w_plain;
  for (int64_t e = 0; e < E; ++e) {
    w.emplace_back(q.row(e), scale.row(e));
    w_plain.emplace_back(plain.row(e));
    ops::dequantise_blocks(s.ctx, w.back(), Tensor(plain.row(e)));
  }
  // Two pages for three experts, four, and so many that the weights are dequantised first.
  for (const auto& [counts, begin] :
       {std::pair<std::vector<int32_t>, std::vector<int32_t>>{{1, 0, 1}, {0, 1, 1, 2}},
        {{130, 40, 128}, {0, 2, 3, 4}},
        {{600, 260, 128}, {0, 5, 8, 9}}}) {
    const int64_t P = begin.back();
    const ops::ExpertLayout layout{s.list(counts), s.list(begin)};
    const ops::PagedRows x{s.random("x", DType::kBF16, {P, ops::kPageRows, K}), Tensor()};
    const Tensor got = s.make(DType::kBF16, {P, ops::kPageRows, N}, [](int64_t) { return 0.0; });
    const Tensor want = s.make(DType::kBF16, {P, ops::kPageRows, N}, [](int64_t) { return 0.0; });
    ops::grouped_gemm_nt(s.ctx, layout, x, w, {got, Tensor()});
    ops::grouped_gemm_nt(s.ctx, layout, x, w_plain, {want, Tensor()});
    const HostRead a(s.ctx, got), b(s.ctx, want);
    expect_bits_equal(concat(P, " pages"), a.tensor(), b.tensor());
  }
}

TEST(OpsCuda, BlockFp8HeadsHaveTheBitsOfBf16) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  if (env::cuda_plain()) GTEST_SKIP() << "the plain kernels do not round weights to bf16";
  Side s({DeviceKind::kCuda, 0});
  const int64_t H = 3, Dn = 128, Dv = 64, R = 512;
  const Tensor q = s.random("q", DType::kE4M3, {H * (Dn + Dv), R}, 20.0);
  const Tensor scale = s.random("scale", DType::kF32, {5, 4}, 0.01);
  const Operand w(q, scale);
  const Tensor plain = s.out(DType::kBF16, {H * (Dn + Dv), R});
  ops::dequantise_blocks(s.ctx, w, Tensor(plain));
  for (int64_t T : {1, 12, 64, 80}) {
    const Tensor latent = s.random("latent", DType::kBF16, {T, H, R});
    const Tensor got = s.out(DType::kBF16, {T, H, Dv}), want = s.out(DType::kBF16, {T, H, Dv});
    const ops::HeadRows rows{.first = Dn, .count = Dv, .stride = Dn + Dv};
    ops::gemm_nt_heads(s.ctx, latent, w, rows, Tensor(got));
    ops::gemm_nt_heads(s.ctx, latent, Operand(plain), rows, Tensor(want));
    const HostRead a(s.ctx, got), b(s.ctx, want);
    expect_bits_equal(concat(T, " tokens"), a.tensor(), b.tensor());
  }
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

TEST(OpsCuda, HeadProductsOfTheMatrixUnit) {
  for (Numerics numerics : {Numerics::kInvariant, Numerics::kFastest})
    for (int64_t T : {1, 5, 70})
      expect_twins(
          concat("heads of the matrix unit ", T),
          [&](Side& s) {
            s.ctx.numerics = numerics;
            const int64_t H = 3, Dn = 128, Dv = 64, R = 256;
            const DType type = DType::kBF16;
            const Tensor w = s.random("w", type, {H * (Dn + Dv), R});
            const Tensor q = s.random("q", type, {T, H, Dn + 64}),
                         o = s.random("o", type, {T, H, R});
            const Tensor up = s.out(type, {T, H, R + 64}), down = s.out(type, {T, H, Dv});
            ops::gemm_nn_heads(s.ctx, q.cols(0, Dn), w, {0, Dn, Dn + Dv}, up.cols(0, R));
            ops::gemm_nt_heads(s.ctx, o, w, {Dn, Dv, Dn + Dv}, Tensor(down));
            return std::vector<Tensor>{up, down};
          },
          2.0);
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

// The same on the matrix unit: experts' matrices at even distances, the rows behind an expert's
// last one NaN. The second layout has fewer pages than experts, as a decode step.
TEST(OpsCuda, GroupedProductsOfTheMatrixUnit) {
  struct Case {
    std::vector<int32_t> counts, begin, pages;
  };
  const Case cases[] = {{{0, 1, 128, 0, 150}, {0, 0, 1, 2, 2, 4}, {5, 0, 3, 1}},
                        {{1, 0, 1, 0, 2}, {0, 1, 1, 2, 2, 3}, {2, 4, 0}}};
  for (DType weight : {DType::kBF16, DType::kE4M3})
    for (Numerics numerics : {Numerics::kInvariant, Numerics::kFastest})
      for (const Case& test : cases)
        expect_twins(
            concat("grouped matrix unit ", dtype_name(weight), " ", test.pages.size()),
            [&](Side& s) {
              s.ctx.numerics = numerics;
              const int64_t N = 144, K = 208, E = 5, slots = 6, R = ops::kPageRows;
              const auto P = static_cast<int64_t>(test.pages.size());
              const DType type = DType::kBF16;
              const ops::ExpertLayout layout{s.list(test.counts), s.list(test.begin)};
              // Rows in use are random, the others NaN; `at` says where position p lies.
              const auto rows = [&](const char* name, int64_t width, bool paged) {
                const Rng rng(31, stream_id(name));
                const int64_t places = paged ? slots : P;
                std::vector<int64_t> used(static_cast<size_t>(places), 0);
                for (size_t e = 0; e < test.counts.size(); ++e)
                  for (int32_t p = test.begin[e]; p < test.begin[e + 1]; ++p) {
                    const int64_t at = paged ? test.pages[static_cast<size_t>(p)] : p;
                    used[static_cast<size_t>(at)] =
                        std::min<int64_t>(R, test.counts[e] - (p - test.begin[e]) * R);
                  }
                return s.make(type, {places, R, width}, [&](int64_t i) {
                  const int64_t row = i / width;
                  return row % R < used[static_cast<size_t>(row / R)]
                             ? rng.normal(static_cast<uint64_t>(i))
                             : NAN;
                });
              };
              const Tensor page = s.list(test.pages);
              const ops::PagedRows x{rows("x", K, true), page}, dy{rows("dy", N, false), Tensor()};
              const Tensor y = s.out(type, {P, R, N}), dx = s.out(type, {P, R, K});
              Tensor dx_acc = s.random("dx_acc", type, {slots, R, K});
              const Tensor all = s.random("w", weight, {E, N, K});
              const Tensor scales = s.random("scales", DType::kF32, {E, 2, 2});
              const Tensor grads = s.random("dw", DType::kF32, {E, N, K});
              std::vector<Operand> w;
              std::vector<Tensor> dw;
              for (int64_t e = 0; e < E; ++e) {
                w.push_back(weight == DType::kE4M3 ? Operand(all.row(e), scales.row(e))
                                                   : Operand(all.row(e)));
                dw.push_back(grads.row(e));
              }
              ops::grouped_gemm_nt(s.ctx, layout, x, w, {y, Tensor()});
              ops::grouped_gemm_nn(s.ctx, layout, dy, w, {dx, Tensor()});
              ops::grouped_gemm_nn_acc(s.ctx, layout, dy, w, {dx_acc, page});
              ops::grouped_gemm_tn_acc(s.ctx, layout, dy, x, dw);
              return std::vector<Tensor>{y, dx, dx_acc, grads};
            },
            matrix_unit_roundings(256));
}

}  // namespace
}  // namespace hadal::test
