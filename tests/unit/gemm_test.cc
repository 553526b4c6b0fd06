// Matrix products against an f64 loop, their bit-invariance, and their error messages.
//
//   M rows   N columns   K inner width
// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/rng.h"
#include "ops/copy.h"
#include "ops/cpu/matmul.h"
#include "tests/compare.h"
#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

// A pool of memory and threads, and random tensors in it.
struct Bench {
  explicit Bench(int threads = 2) : pool(threads), ctx{{}, {}, pool, memory} {}
  Tensor random(DType dtype, Shape shape, uint64_t seed) {
    Tensor t;
    blocks.push_back(memory.take_tensor(dtype, shape, &t));
    const Rng rng(seed, 7);
    for (int64_t i = 0; i < t.num_elements(); ++i)
      store_element(t.raw(), dtype, i, rng.normal(static_cast<uint64_t>(i)));
    return t;
  }
  Pool memory;
  ThreadPool pool;
  Context ctx;
  std::vector<Block> blocks;
};

double at(const Tensor& t, int64_t r, int64_t c) {
  return load_element(t.raw(), t.dtype(), r * t.stride(0) + c);
}

// Element (n, k) of a weight as it decodes.
double weight_at(const Operand& w, int64_t n, int64_t k) {
  const double value = at(w.data, n, k);
  if (w.scale.empty()) return value;
  return static_cast<float>(value) *
         static_cast<float>(at(w.scale, (w.row_begin + n) / kScaleBlock, k / kScaleBlock));
}

enum class Kind { kNt, kNtAcc, kNn, kNnAcc, kTnAcc };

void run(Context& ctx, Kind kind, const Tensor& a, const Operand& b, Tensor c) {
  switch (kind) {
    case Kind::kNt:
      return ops::gemm_nt(ctx, a, b, c);
    case Kind::kNtAcc:
      return ops::gemm_nt_acc(ctx, a, b, c);
    case Kind::kNn:
      return ops::gemm_nn(ctx, a, b, c);
    case Kind::kNnAcc:
      return ops::gemm_nn_acc(ctx, a, b, c);
    case Kind::kTnAcc:
      return ops::gemm_tn_acc(ctx, a, b.data, c);
  }
}

// Checks every element of a product of the given shape and types.
void check(Kind kind, int64_t M, int64_t N, int64_t K, DType a_type, DType b_type, DType c_type,
           int64_t extra_stride = 0) {
  Bench bench;
  const bool tn = kind == Kind::kTnAcc, nn = kind == Kind::kNn || kind == Kind::kNnAcc;
  const bool acc = kind != Kind::kNt && kind != Kind::kNn;
  const Shape a_shape = tn ? Shape{K, M + extra_stride} : Shape{M, K + extra_stride};
  const Shape b_shape = (tn || nn) ? Shape{K, N + extra_stride} : Shape{N, K + extra_stride};
  const Tensor a = bench.random(a_type, a_shape, 1).cols(0, tn ? M : K);
  const Tensor b = bench.random(b_type, b_shape, 2).cols(0, (tn || nn) ? N : K);
  const Tensor c = bench.random(c_type, {M, N + extra_stride}, 3).cols(0, N);
  std::vector<double> want, bound;
  const double u =
      std::max(test::unit_roundoff(c_type == DType::kF64 ? DType::kF64 : DType::kF32), 0.0);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      double sum = acc ? at(c, m, n) : 0.0, norm = std::fabs(sum);
      for (int64_t k = 0; k < K; ++k) {
        const double product =
            (tn ? at(a, k, m) : at(a, m, k)) * ((tn || nn) ? at(b, k, n) : at(b, n, k));
        sum += product;
        norm += std::fabs(product);
      }
      want.push_back(sum);
      bound.push_back(
          static_cast<double>(K + 2) * u * norm +
          (c_type == DType::kBF16 ? test::unit_roundoff(c_type) * std::fabs(sum) * 2 : 0.0));
    }
  run(bench.ctx, kind, a, b, c);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      const auto i = static_cast<size_t>(m * N + n);
      ASSERT_LE(std::fabs(at(c, m, n) - want[i]), bound[i])
          << "at " << m << "," << n << " of " << M << "x" << N << "x" << K;
    }
}

TEST(Gemm, EveryKindAndOddShape) {
  const int64_t shapes[][3] = {{1, 1, 1},     {1, 17, 33}, {5, 16, 7},   {6, 32, 256},
                               {7, 33, 257},  {64, 48, 3}, {97, 65, 40}, {200, 90, 31},
                               {13, 600, 20}, {3, 2, 700}};
  for (Kind kind : {Kind::kNt, Kind::kNtAcc, Kind::kNn, Kind::kNnAcc, Kind::kTnAcc})
    for (const auto& s : shapes) {
      check(kind, s[0], s[1], s[2], DType::kF32, DType::kF32, DType::kF32);
      check(kind, s[0], s[1], s[2], DType::kF64, DType::kF64, DType::kF64);
    }
}

TEST(Gemm, StridedViewsAndMixedTypes) {
  for (Kind kind : {Kind::kNt, Kind::kNtAcc, Kind::kNn, Kind::kNnAcc, Kind::kTnAcc}) {
    check(kind, 19, 21, 37, DType::kF32, DType::kF32, DType::kF32, 5);
    check(kind, 19, 21, 37, DType::kBF16, DType::kBF16, DType::kBF16, 3);
    check(kind, 19, 21, 37, DType::kBF16, DType::kF32, DType::kF32);
    check(kind, 19, 21, 300, DType::kF32, DType::kBF16, DType::kF32, 1);
    check(kind, 9, 11, 37, DType::kF16, DType::kF32, DType::kF32);
    check(kind, 9, 11, 37, DType::kF32, DType::kF64, DType::kF64);
  }
}

TEST(Gemm, EmptyExtents) {
  Bench bench;
  Tensor c = bench.random(DType::kF32, {3, 4}, 1);
  const std::vector<float> before(c.data<float>(), c.data<float>() + 12);
  ops::gemm_nt_acc(bench.ctx, bench.random(DType::kF32, {3, 0}, 2),
                   bench.random(DType::kF32, {4, 0}, 3), c);
  EXPECT_EQ(0, std::memcmp(before.data(), c.raw(), sizeof(float) * 12));
  ops::gemm_nt(bench.ctx, bench.random(DType::kF32, {3, 0}, 2),
               bench.random(DType::kF32, {4, 0}, 3), c);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(c.data<float>()[i], 0.0f);
  ops::gemm_nt(bench.ctx, bench.random(DType::kF32, {0, 5}, 2),
               bench.random(DType::kF32, {4, 5}, 3), bench.random(DType::kF32, {0, 4}, 4));
}

// Block FP8: ragged edges and a slice of rows that starts inside a block.
TEST(Gemm, BlockFp8) {
  Bench bench;
  const int64_t N = 200, K = 300, M = 5;
  const Tensor q = bench.random(DType::kE4M3, {N, K}, 1);
  Tensor scale = bench.random(DType::kF32, {2, 3}, 2);
  const Operand w(q, scale);
  for (const Operand& slice : {w, w.rows(100, 77), w.rows(129, 71)}) {
    const int64_t n = slice.data.dim(0);
    const Tensor a = bench.random(DType::kF32, {M, K}, 3), b = bench.random(DType::kF32, {M, n}, 4);
    Tensor nt = bench.random(DType::kF32, {M, n}, 5), nn = bench.random(DType::kF32, {M, K}, 6);
    ops::gemm_nt(bench.ctx, a, slice, nt);
    ops::gemm_nn(bench.ctx, b, slice, nn);
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0.0, norm = 0.0;
        for (int64_t k = 0; k < K; ++k) {
          sum += at(a, m, k) * weight_at(slice, j, k);
          norm += std::fabs(at(a, m, k) * weight_at(slice, j, k));
        }
        ASSERT_LE(std::fabs(at(nt, m, j) - sum), 302 * 0x1p-24 * norm);
      }
      for (int64_t k = 0; k < K; ++k) {
        double sum = 0.0, norm = 0.0;
        for (int64_t j = 0; j < n; ++j) {
          sum += at(b, m, j) * weight_at(slice, j, k);
          norm += std::fabs(at(b, m, j) * weight_at(slice, j, k));
        }
        ASSERT_LE(std::fabs(at(nn, m, k) - sum), 202 * 0x1p-24 * norm);
      }
    }
  }
}

// A row's bits do not depend on the other rows, on tiling or on threads.
TEST(Gemm, SameBitsAtEveryMAndThreadCount) {
  for (DType type : {DType::kF32, DType::kBF16, DType::kF64}) {
    Bench one(1);
    const int64_t M = 300, N = 130, K = 700;
    const Tensor a = one.random(type, {M, K}, 1), b = one.random(type, {N, K}, 2);
    Tensor all = one.random(type, {M, N}, 3);
    ops::gemm_nt(one.ctx, a, b, all);
    const auto same = [&](const Tensor& rows, int64_t first) {
      return std::memcmp(rows.raw(), all.rows(first, rows.dim(0)).raw(),
                         static_cast<size_t>(rows.num_bytes())) == 0;
    };
    for (int threads : {2, 3}) {
      Bench bench(threads);
      Tensor c = bench.random(type, {M, N}, 4);
      ops::gemm_nt(bench.ctx, a, b, c);
      EXPECT_TRUE(same(c, 0)) << threads << " threads, " << dtype_name(type);
    }
    for (int64_t m : {0, 17, 299}) {
      Tensor row = one.random(type, {1, N}, 5);
      ops::gemm_nt(one.ctx, a.rows(m, 1), b, row);
      EXPECT_TRUE(same(row, m)) << "row " << m << " alone, " << dtype_name(type);
    }
    Tensor some = one.random(type, {37, N}, 6);
    ops::gemm_nt(one.ctx, a.rows(100, 37), b, some);
    EXPECT_TRUE(same(some, 100)) << dtype_name(type);
  }
}

// Adding in two calls is the same chain as one call over both halves.
TEST(Gemm, AccumulationContinuesTheChain) {
  Bench bench;
  const Tensor a = bench.random(DType::kF32, {600, 50}, 1),
               b = bench.random(DType::kF32, {600, 40}, 2);
  Tensor once = bench.random(DType::kF32, {50, 40}, 3),
         twice = bench.random(DType::kF32, {50, 40}, 3);
  ops::gemm_tn_acc(bench.ctx, a, b, once);
  ops::gemm_tn_acc(bench.ctx, a.rows(0, 123), b.rows(0, 123), twice);
  ops::gemm_tn_acc(bench.ctx, a.rows(123, 477), b.rows(123, 477), twice);
  EXPECT_EQ(0, std::memcmp(once.raw(), twice.raw(), static_cast<size_t>(once.num_bytes())));
}

TEST(Gemm, Heads) {
  Bench bench;
  const int64_t T = 5, H = 3, K = 8, N = 6, stride = 10;
  const Tensor a = bench.random(DType::kF32, {T, H, K + 2}, 1).cols(0, K);
  const Tensor w = bench.random(DType::kF32, {H * stride, K}, 2);
  Tensor c = bench.random(DType::kF32, {T, H, N + 1}, 3).cols(1, N);
  const ops::HeadRows rows{.first = 2, .count = N, .stride = stride};
  ops::gemm_nt_heads(bench.ctx, a, w, rows, c);
  Tensor back = bench.random(DType::kF32, {T, H, K}, 4);
  ops::gemm_nn_heads(bench.ctx, c, w, rows, back);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t n = 0; n < N; ++n) {
        double sum = 0.0;
        for (int64_t k = 0; k < K; ++k) sum += at(a.row(t), h, k) * at(w, 2 + h * stride + n, k);
        EXPECT_NEAR(at(c.row(t), h, n), sum, 1e-5);
      }
      for (int64_t k = 0; k < K; ++k) {
        double sum = 0.0;
        for (int64_t n = 0; n < N; ++n) sum += at(c.row(t), h, n) * at(w, 2 + h * stride + n, k);
        EXPECT_NEAR(at(back.row(t), h, k), sum, 1e-5);
      }
    }
}

// Experts with 0, 1, 128 and 130 rows on scattered pages; rows past the counts stay untouched.
TEST(Gemm, Grouped) {
  Bench bench;
  const int64_t E = 4, K = 9, N = 21, pages = 7;
  std::vector<int32_t> counts = {0, 1, 128, 130}, begin = {0, 0, 1, 2, 4}, page = {5, 0, 6, 2};
  const ops::ExpertLayout layout{Tensor(counts.data(), DType::kI32, {E}),
                                 Tensor(begin.data(), DType::kI32, {E + 1})};
  const Tensor page_list(page.data(), DType::kI32, {4});
  const ops::PagedRows x{bench.random(DType::kF32, {pages, ops::kPageRows, K}, 1), page_list};
  const ops::PagedRows y{bench.random(DType::kF32, {4, ops::kPageRows, N}, 2), Tensor()};
  const ops::PagedRows back{bench.random(DType::kF32, {pages, ops::kPageRows, K}, 3), page_list};
  std::vector<Operand> w;
  std::vector<Tensor> dw;
  for (uint64_t e = 0; e < static_cast<uint64_t>(E); ++e) {
    w.emplace_back(bench.random(DType::kF32, {N, K}, 10 + e));
    dw.push_back(bench.random(DType::kF32, {N, K}, 20 + e));
    ops::fill(bench.ctx, 0.0, dw.back());
  }
  const float untouched =
      y.slab.data<float>()[1 * N];  // row 1 of the page of the expert with one row
  ops::grouped_gemm_nt(bench.ctx, layout, x, w, y);
  ops::grouped_gemm_nn(bench.ctx, layout, y, w, back);
  ops::grouped_gemm_tn_acc(bench.ctx, layout, y, x, dw);
  EXPECT_EQ(untouched, y.slab.data<float>()[1 * N]);
  std::vector<std::vector<double>> want(static_cast<size_t>(E),
                                        std::vector<double>(static_cast<size_t>(N * K)));
  for (size_t e = 0; e < static_cast<size_t>(E); ++e)
    for (int32_t i = 0; i < counts[e]; ++i) {
      const int64_t position = begin[e] + i / 128, row = i % 128;
      const Tensor xr = x.slab.row(page[static_cast<size_t>(position)]), yr = y.slab.row(position);
      const Tensor br = back.slab.row(page[static_cast<size_t>(position)]);
      for (int64_t n = 0; n < N; ++n) {
        double sum = 0.0;
        for (int64_t k = 0; k < K; ++k) sum += at(xr, row, k) * at(w[e].data, n, k);
        ASSERT_NEAR(at(yr, row, n), sum, 1e-4);
        for (int64_t k = 0; k < K; ++k)
          want[e][static_cast<size_t>(n * K + k)] += at(yr, row, n) * at(xr, row, k);
      }
      for (int64_t k = 0; k < K; ++k) {
        double sum = 0.0;
        for (int64_t n = 0; n < N; ++n) sum += at(yr, row, n) * at(w[e].data, n, k);
        ASSERT_NEAR(at(br, row, k), sum, 1e-3);
      }
    }
  for (size_t e = 0; e < static_cast<size_t>(E); ++e)
    for (int64_t i = 0; i < N * K; ++i)
      ASSERT_NEAR(at(dw[e].view({1, N * K}), 0, i), want[e][static_cast<size_t>(i)], 1e-2)
          << "expert " << e;
}

// Several weights times the same rows: each as alone, of whatever widths and types.
TEST(Gemm, TogetherAsApart) {
  for (int threads : {1, 2, 3})
    for (int64_t M : {1, 3, 40}) {
      Bench bench(threads);
      const int64_t K = 200;
      const Tensor a = bench.random(DType::kBF16, {M, K + 3}, 1).cols(0, K);
      const Operand f32(bench.random(DType::kF32, {70, K}, 2)),
          bf16(bench.random(DType::kBF16, {1030, K}, 3)),
          fp8(bench.random(DType::kE4M3, {300, K}, 4), bench.random(DType::kF32, {3, 2}, 5));
      std::vector<Tensor> apart, together;
      std::vector<ops::WeightTo> to;
      for (const Operand* w : {&f32, &bf16, &fp8}) {
        const Shape shape{M, w->data.dim(0)};
        apart.push_back(bench.random(DType::kBF16, shape, 6));
        together.push_back(bench.random(DType::kBF16, shape, 7));
        ops::gemm_nt(bench.ctx, a, *w, apart.back());
        to.push_back({*w, together.back()});
      }
      ops::gemm_nt_all(bench.ctx, a, to);
      for (size_t i = 0; i < to.size(); ++i)
        EXPECT_EQ(0, std::memcmp(apart[i].raw(), together[i].raw(),
                                 static_cast<size_t>(apart[i].num_bytes())))
            << "weight " << i << ", " << M << " rows, " << threads << " threads";
    }
}

// The same for experts, of which some have equal rows, as one token's are.
TEST(Gemm, GroupedTogetherAsApart) {
  Bench bench;
  const int64_t E = 4, K = 130, N = 70;
  std::vector<int32_t> counts = {1, 1, 1, 2}, begin = {0, 1, 2, 3, 4};
  const ops::ExpertLayout layout{Tensor(counts.data(), DType::kI32, {E}),
                                 Tensor(begin.data(), DType::kI32, {E + 1})};
  const auto pages = [&](int64_t width, uint64_t seed) {
    return ops::PagedRows{bench.random(DType::kF32, {E, ops::kPageRows, width}, seed), Tensor()};
  };
  const ops::PagedRows x = pages(K, 1);
  // Experts 0 and 1 see the same row, expert 2 one that differs in its last element.
  for (int64_t e : {1, 2})
    std::memcpy(x.slab.row(e).raw(), x.slab.row(0).raw(), static_cast<size_t>(K) * sizeof(float));
  x.slab.row(2).data<float>()[K - 1] += 1.0f;
  std::vector<Operand> w1, w2;
  for (uint64_t e = 0; e < static_cast<uint64_t>(E); ++e) {
    w1.emplace_back(bench.random(DType::kF32, {N, K}, 10 + e));
    w2.emplace_back(bench.random(DType::kF32, {N, K}, 20 + e));
  }
  const ops::PagedRows apart[] = {pages(N, 2), pages(N, 3)},
                       together[] = {pages(N, 2), pages(N, 3)};
  ops::grouped_gemm_nt(bench.ctx, layout, x, w1, apart[0]);
  ops::grouped_gemm_nt(bench.ctx, layout, x, w2, apart[1]);
  const ops::WeightsTo to[] = {{w1, together[0]}, {w2, together[1]}};
  ops::grouped_gemm_nt_all(bench.ctx, layout, x, to);
  for (size_t i = 0; i < 2; ++i)
    EXPECT_EQ(0, std::memcmp(apart[i].slab.raw(), together[i].slab.raw(),
                             static_cast<size_t>(apart[i].slab.num_bytes())));
  EXPECT_NE(0, std::memcmp(together[0].slab.row(1).raw(), together[0].slab.row(2).raw(),
                           static_cast<size_t>(N) * sizeof(float)));
}

// The register kernels of every instruction set that this processor has.
TEST(Gemm, EveryInstructionSet) {
  const auto check_kernel = [](const ops::cpu::MatmulKernel<float>& kernel) {
    const int64_t K = 37;
    std::vector<float> a(static_cast<size_t>(K * kernel.width)),
        b(static_cast<size_t>(K * kernel.nr));
    const Rng rng(3, 4);
    for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(rng.normal(i));
    for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(rng.normal(i + 100000));
    for (int64_t m = 1; m <= kernel.mr; ++m) {
      std::vector<float> c(static_cast<size_t>(m * kernel.nr), 1.0f);
      kernel.compute(K, a.data(), b.data(), c.data(), kernel.nr, m, ops::cpu::Start::kOld, c.data(),
                     {});
      for (int64_t i = 0; i < m; ++i)
        for (int64_t n = 0; n < kernel.nr; ++n) {
          float sum = 1.0f;
          double exact = 1.0;
          for (int64_t k = 0; k < K; ++k) {
            const float x = a[static_cast<size_t>(k * kernel.width + i)],
                        y = b[static_cast<size_t>(k * kernel.nr + n)];
            sum = std::fma(x, y, sum);
            exact += static_cast<double>(x) * y;
          }
          const float got = c[static_cast<size_t>(i * kernel.nr + n)];
          if (kernel.mr > 4) {  // AVX2 and AVX-512: the fused chain, bit for bit
            EXPECT_EQ(got, sum);
          }
          EXPECT_NEAR(got, exact, 1e-4);
        }
    }
  };
  check_kernel(ops::cpu::matmul_portable.f32);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    check_kernel(ops::cpu::matmul_avx2.f32);
  if (__builtin_cpu_supports("avx512f")) check_kernel(ops::cpu::matmul_avx512.f32);
}

TEST(Gemm, ErrorsNameTheShapes) {
  Bench bench;
  const Tensor a = bench.random(DType::kF32, {2, 3}, 1), b = bench.random(DType::kF32, {4, 5}, 2);
  Tensor c = bench.random(DType::kF32, {2, 4}, 3);
  EXPECT_ERROR(ops::gemm_nt(bench.ctx, a, b, c),
               "gemm_nt: a is f32 [2, 3], b is f32 [4, 5]; their last dimensions must be equal");
  EXPECT_ERROR(ops::gemm_nn(bench.ctx, a, b, c),
               "gemm_nn: a is f32 [2, 3], b is f32 [4, 5]; the last of a must be the first of b");
  EXPECT_ERROR(ops::gemm_nt(bench.ctx, a, bench.random(DType::kF32, {7, 3}, 4), c),
               "c must have shape [2, 7], has [2, 4]");
  EXPECT_ERROR(ops::gemm_nt(bench.ctx, a, Operand(bench.random(DType::kF32, {4, 3}, 4), a), c),
               "gemm_nt: only e4m3 weights have scales, which are an f32 matrix; got f32 [4, 3] "
               "with f32 [2, 3]");
}

}  // namespace
}  // namespace hadal
