// The formats and products of FP8 training on the CPU, against plain loops in f64.
//
//   T tokens   N output width   K inner width   E experts
// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "ops/fp8.h"
#include "ops/norm.h"
#include "ops/routing.h"
#include "ops/swiglu_tiles.h"
#include "tests/unit/pages.h"

namespace hadal::test {
namespace {

using ops::kPageRows;
using ops::kTileSize;
using ops::num_tiles;

ops::TileRows tile_rows(Machine& m, int64_t T, int64_t K) {
  return {strided(m, DType::kE4M3, {T, K}),
          m.tensor(DType::kF32, {num_tiles(K), num_tiles(T) * kPageRows})};
}
ops::TileColumns tile_columns(Machine& m, int64_t P, int64_t W) {
  return {m.tensor(DType::kE4M3, {P, W, kTileSize}), m.tensor(DType::kF32, {P, W})};
}
Operand quantised(Machine& m, const Array<double>& w) {
  const int64_t N = w.shape[0], K = w.shape[1];
  Operand o(strided(m, DType::kE4M3, {N, K}), m.tensor(DType::kF32, {num_tiles(N), num_tiles(K)}));
  o.transposed = strided(m, DType::kE4M3, {K, N});
  o.transposed_scale = m.tensor(DType::kF32, {num_tiles(K), num_tiles(N)});
  const Tensor from = m.put(w, DType::kF32);
  ops::quantise_weights(m.ctx, std::span(&from, 1), std::span(&o, 1));
  return o;
}

double at(const Array<double>& a, int64_t i, int64_t j, int64_t k) {
  return a[(i * a.shape[1] + j) * a.shape[2] + k];
}

float scale_of(double amax) { return std::max(static_cast<float>(amax), 1e-4f) / 448.0f; }

TEST(Fp8Training, TilesAlongRowsAndColumns) {
  Machine m(2);
  for (const auto& [T, K] : {std::pair<int64_t, int64_t>{1, 1}, {3, 130}, {129, 257}}) {
    const Array<double> x = random_in("x", {T, K}, DType::kBF16, 0, 2.0);
    const Tensor tx = put_strided(m, x, DType::kBF16);
    const ops::TileRows rows = tile_rows(m, T, K);
    const ops::TileColumns columns = tile_columns(m, num_tiles(T), K);
    ops::quantise_rows(m.ctx, tx, {}, rows);
    ops::quantise_columns(m.ctx, tx, columns);
    const Array<double> q = values(rows.data), s = values(rows.scale);
    const Array<double> qc = values(columns.data), sc = values(columns.scale);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t k = 0; k < K; ++k) {
        double row = 0, column = 0;
        for (int64_t i = k / 128 * 128; i < std::min(K, k / 128 * 128 + 128); ++i)
          row = std::max(row, std::fabs(x(t, i)));
        for (int64_t i = t / 128 * 128; i < std::min(T, t / 128 * 128 + 128); ++i)
          column = std::max(column, std::fabs(x(i, k)));
        ASSERT_EQ(s(k / 128, t), scale_of(row));
        ASSERT_EQ(q(t, k), to_f32(to_e4m3(static_cast<float>(x(t, k)) / scale_of(row))));
        ASSERT_EQ(sc(t / 128, k), scale_of(column));
        ASSERT_EQ(at(qc, t / 128, k, t % 128),
                  to_f32(to_e4m3(static_cast<float>(x(t, k)) / scale_of(column))));
      }
    for (int64_t t = T; t < num_tiles(T) * 128; ++t)  // what is behind the last token
      ASSERT_EQ(at(qc, t / 128, 0, t % 128), 0.0);
    Tensor back = m.tensor(DType::kF32, {T, K});
    ops::dequantise_rows(m.ctx, rows, back);
    const Array<double> again = values(back);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t k = 0; k < K; ++k)
        ASSERT_EQ(again(t, k), static_cast<float>(q(t, k)) * static_cast<float>(s(k / 128, t)));
  }
}

// Square tiles: one scale for 128 rows. Powers of two: the smallest that holds the largest element.
TEST(Fp8Training, OtherTilesAndScales) {
  Machine m(1);
  const int64_t T = 130, K = 128;
  const Array<double> x = random_in("x", {T, K}, DType::kF32);
  const ops::TileRows square = tile_rows(m, T, K), power = tile_rows(m, T, K);
  ops::quantise_rows(m.ctx, m.put(x, DType::kF32), {.shape = ops::TileShape::kSquare}, square);
  ops::quantise_rows(m.ctx, m.put(x, DType::kF32), {.format = ops::ScaleFormat::kPowerOfTwo},
                     power);
  const Array<double> squares = values(square.scale), powers = values(power.scale);
  for (int64_t t = 0; t < T; ++t) {
    double block = 0, row = 0;
    for (int64_t i = t / 128 * 128; i < std::min(T, t / 128 * 128 + 128); ++i)
      for (int64_t k = 0; k < K; ++k) block = std::max(block, std::fabs(x(i, k)));
    for (int64_t k = 0; k < K; ++k) row = std::max(row, std::fabs(x(t, k)));
    EXPECT_EQ(squares(0, t), scale_of(block));
    const double p = powers(0, t);
    EXPECT_EQ(std::log2(p), std::floor(std::log2(p)));
    EXPECT_GE(p, scale_of(row));
    EXPECT_LT(p / 2, scale_of(row));
  }
}

TEST(Fp8Training, WhatIsNotFiniteIsAnError) {
  Machine m(1);
  const Tensor x = m.tensor(DType::kF32, {1, 4});
  for (int i = 0; i < 4; ++i) x.data<float>()[i] = i == 2 ? INFINITY : 1.0f;
  EXPECT_ERROR(ops::quantise_rows(m.ctx, x, {}, tile_rows(m, 1, 4)),
               "an element to quantise is inf; FP8 holds finite values only");
}

// Every 12-bit number that is stored comes back as itself; rounding is to the nearest, ties to
// even.
TEST(Fp8Training, E5M6IsExactBothWays) {
  for (uint32_t bits = 0; bits < 4096; ++bits) {
    if ((bits & 0x7ffu) > 0x7bfu) continue;  // f16's infinities and NaN
    const float v = ops::from_e5m6(bits);
    EXPECT_EQ(v, to_f32(f16{static_cast<uint16_t>(bits << 4)}));
    EXPECT_EQ(ops::to_e5m6(v), bits);
    if ((bits & 0x7ffu) == 0x7bfu) continue;
    const float middle = v + (ops::from_e5m6(bits + 1) - v) / 2;
    EXPECT_EQ(ops::to_e5m6(middle), bits % 2 == 0 ? bits : bits + 1) << v;
  }
  EXPECT_EQ(ops::from_e5m6(ops::to_e5m6(1e9f)), ops::kE5M6Max);
}

TEST(Fp8Training, E5M6OfARow) {
  Machine m(2);
  for (const int64_t W : {1, 8, 130, 256}) {
    const Array<double> x = random_in("x", {5, W}, DType::kBF16, 0, 30.0);
    Tensor words = m.tensor(DType::kI32, {5, ops::e5m6_words(W)});
    Tensor scale = m.tensor(DType::kF32, {5, num_tiles(W)}), y = m.tensor(DType::kF32, {5, W});
    ops::pack_e5m6(m.ctx, put_strided(m, x, DType::kBF16), words, scale);
    ops::unpack_e5m6(m.ctx, words, scale, y);
    const Array<double> got = values(y);
    for (int64_t t = 0; t < 5; ++t)
      for (int64_t w = 0; w < W; ++w)
        EXPECT_NEAR(got(t, w), x(t, w), std::fabs(x(t, w)) * 0x1p-7 + 1e-6);
  }
}

// A product differs from the one of the dequantised operands by f32 roundings alone.
TEST(Fp8Training, DenseProducts) {
  Machine m(2);
  for (const auto& [T, N, K] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 3, 5}, {130, 140, 300}, {5, 129, 128}}) {
    const Array<double> x = random_in("x", {T, K}, DType::kBF16),
                        dy = random_in("dy", {T, N}, DType::kBF16);
    const Operand w = quantised(m, random_in("w", {N, K}, DType::kF32, 0, 0.1));
    const ops::TileRows xq = tile_rows(m, T, K), dyq = tile_rows(m, T, N);
    const ops::TileColumns xc = tile_columns(m, num_tiles(T), K),
                           dyc = tile_columns(m, num_tiles(T), N);
    ops::quantise_rows(m.ctx, put_strided(m, x, DType::kBF16), {}, xq);
    ops::quantise_rows(m.ctx, put_strided(m, dy, DType::kBF16), {}, dyq);
    ops::quantise_columns(m.ctx, put_strided(m, x, DType::kBF16), xc);
    ops::quantise_columns(m.ctx, put_strided(m, dy, DType::kBF16), dyc);
    Tensor y = m.tensor(DType::kF32, {T, N}), dx = m.tensor(DType::kF32, {T, K}),
           dx2 = m.put(Array<double>({T, K}), DType::kF32),
           dw = m.put(Array<double>({N, K}), DType::kF32);
    ops::fp8_gemm_nt(m.ctx, xq, w, y);
    ops::fp8_gemm_nn(m.ctx, dyq, w, dx);
    ops::fp8_gemm_nn_acc(m.ctx, dyq, w, dx2);
    ops::fp8_gemm_tn_acc(m.ctx, dyc, xc, dw);
    expect_bits_equal("added to zero", dx2, dx);

    const Array<double> wq = values(w.data), ws = values(w.scale);
    const auto weight_at = [&](int64_t n, int64_t k) { return wq(n, k) * ws(n / 128, k / 128); };
    Array<double> xv({T, K}), dyv({T, N}), wv({N, K}), xcv({T, K}), dycv({T, N});
    const Array<double> xq_data = values(xq.data), xq_scale = values(xq.scale);
    const Array<double> dyq_data = values(dyq.data), dyq_scale = values(dyq.scale);
    const Array<double> xc_data = values(xc.data), xc_scale = values(xc.scale);
    const Array<double> dyc_data = values(dyc.data), dyc_scale = values(dyc.scale);
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t k = 0; k < K; ++k) {
        xv(t, k) = xq_data(t, k) * xq_scale(k / 128, t);
        xcv(t, k) = at(xc_data, t / 128, k, t % 128) * xc_scale(t / 128, k);
      }
      for (int64_t n = 0; n < N; ++n) {
        dyv(t, n) = dyq_data(t, n) * dyq_scale(n / 128, t);
        dycv(t, n) = at(dyc_data, t / 128, n, t % 128) * dyc_scale(t / 128, n);
      }
    }
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k) wv(n, k) = weight_at(n, k);
    const Array<double> y_got = values(y), dx_got = values(dx), dw_got = values(dw);
    const auto bound = [](double terms) { return product_bound(DType::kF32, terms, 1.0); };
    for (int64_t t = 0; t < T; ++t)
      for (int64_t n = 0; n < N; ++n) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < K; ++k) {
          sum += xv(t, k) * wv(n, k);
          size += std::fabs(xv(t, k) * wv(n, k));
        }
        ASSERT_NEAR(y_got(t, n), sum, bound(size));
        if (T * N * K > 100000 && n > 3) break;
      }
    for (int64_t t = 0; t < std::min<int64_t>(T, 5); ++t)
      for (int64_t k = 0; k < K; ++k) {
        double sum = 0, size = 0;
        for (int64_t n = 0; n < N; ++n) {
          sum += dyv(t, n) * wv(n, k);
          size += std::fabs(dyv(t, n) * wv(n, k));
        }
        ASSERT_NEAR(dx_got(t, k), sum, bound(size));
      }
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < std::min<int64_t>(K, 9); ++k) {
        double sum = 0, size = 0;
        for (int64_t t = 0; t < T; ++t) {
          sum += dycv(t, n) * xcv(t, k);
          size += std::fabs(dycv(t, n) * xcv(t, k));
        }
        ASSERT_NEAR(dw_got(n, k), sum, bound(size));
      }
  }
}

// Experts' rows are the dense product of each expert's rows; rows not in use are not touched.
TEST(Fp8Training, GroupedProductsAreTheDenseOnes) {
  Machine m(2);
  const int64_t N = 70, K = 140;
  const ExpertRows rows(m, {0, 1, 130, 3});
  const int64_t E = rows.num_experts(), slots = rows.num_positions() + 1;
  const ops::PagedRows x = rows.rows(m, "x", DType::kBF16, K);
  ops::PagedRows q{m.tensor(DType::kE4M3, {slots, kPageRows, K}), rows.page_list};
  q.scale = m.tensor(DType::kF32, {num_tiles(K), slots * kPageRows});
  ops::grouped_quantise_rows(m.ctx, rows.layout, x, {}, q);
  std::vector<Operand> w;
  for (int64_t e = 0; e < E; ++e)
    w.push_back(quantised(m, random_in(concat("w", e), {N, K}, DType::kF32)));
  const ops::PagedRows y{m.put(random_in("y", {slots, kPageRows, N}, DType::kF32), DType::kF32),
                         rows.page_list};
  const Array<double> before = values(y.slab);
  ops::grouped_fp8_gemm_nt(m.ctx, rows.layout, q, w, y);
  const Array<double> after = values(y.slab);
  for (int64_t position = 0; position < rows.num_positions(); ++position)
    for (int64_t r = 0; r < kPageRows; ++r) {
      const int64_t row = position * kPageRows + r;
      const int64_t page = rows.page[static_cast<size_t>(position)];
      if (!rows.in_use(row)) {
        ASSERT_EQ(at(after, page, r, 0), at(before, page, r, 0));
        continue;
      }
      size_t e = 0;
      while (rows.begin[e + 1] <= position) ++e;
      const ops::TileRows one = tile_rows(m, 1, K);
      Tensor want = m.tensor(DType::kF32, {1, N});
      ops::quantise_rows(m.ctx, rows.at(x, row).view({1, K}), {}, one);
      ops::fp8_gemm_nt(m.ctx, one, w[e], want);
      const Array<double> alone = values(want);
      for (int64_t n = 0; n < N; ++n) ASSERT_EQ(at(after, page, r, n), alone(0, n));
    }
}

TEST(Fp8Training, NormAndItsTiles) {
  Machine m(2);
  const int64_t T = 3, D = 160;
  const Array<double> x = random_in("x", {T, D}, DType::kBF16, 0, 2.0);
  const Array<double> gain = random_in("gain", {D}, DType::kF32, 0, 1.0);
  const ops::TileRows tiles = tile_rows(m, T, D);
  const Tensor y = m.tensor(DType::kBF16, {T, D}), rstd = m.tensor(DType::kF32, {T});
  const Tensor plain = put_strided(m, x, DType::kBF16), weight = m.put(gain, DType::kF32);
  ops::rmsnorm_forward_tiles(m.ctx, plain, weight, 1e-6, Tensor(y), Tensor(rstd), tiles);
  for (int64_t t = 0; t < T; ++t) {
    double squares = 0.0;
    for (int64_t k = 0; k < D; ++k) squares += x(t, k) * x(t, k);
    const double r = 1.0 / std::sqrt(squares / D + 1e-6);
    ASSERT_NEAR(values(rstd)[t], r, 1e-5 * r);
    for (int64_t k = 0; k < D; ++k) {
      const double want = gain[k] * x(t, k) * r, scale = values(tiles.scale)(k / 128, t);
      ASSERT_NEAR(values(y)(t, k), want, std::fabs(want) / 200.0);
      ASSERT_NEAR(values(tiles.data)(t, k) * scale, want, std::fabs(want) / 14.0 + scale * 0x1p-9);
    }
  }
  EXPECT_ERROR(ops::rmsnorm_forward_tiles(m.ctx, plain, weight, 1e-6, Tensor(y), Tensor(rstd),
                                          tile_rows(m, T + 1, D)),
               "x must have shape [4, 160], has [3, 160]");
}

// Tiles of the rows that SwiGLU reads and writes, against loops in f64.
TEST(Fp8Training, SwigluBetweenTiles) {
  Machine m(2);
  const int64_t T = 3, F = 160;
  const Array<double> gate_up = random_in("gate_up", {T, 2 * F}, DType::kBF16, 0, 2.0);
  const Array<double> dy = random_in("dy", {T, F}, DType::kBF16, 0, 0.1);
  const ops::TileRows kept = tile_rows(m, T, 2 * F), y = tile_rows(m, T, F);
  const ops::TileRows dgate = tile_rows(m, T, F), dup = tile_rows(m, T, F);
  const Tensor plain = put_strided(m, gate_up, DType::kBF16);
  const Tensor dgate_up = m.tensor(DType::kBF16, {T, 2 * F});
  const Tensor again = m.tensor(DType::kBF16, {T, F});
  ops::swiglu_forward_tiles(m.ctx, plain, kept, y);
  ops::swiglu_backward_tiles(m.ctx, kept, put_strided(m, dy, DType::kBF16), {}, Tensor(dgate_up),
                             dgate, dup, Tensor(again));
  // Half a unit of e4m3 next to the tile's largest element, and roundings of bf16.
  const auto value = [](const ops::TileRows& q, int64_t t, int64_t k) {
    return values(q.data)(t, k) * values(q.scale)(k / 128, t);
  };
  const auto near = [](double got, double want, double scale) {
    return std::fabs(got - want) <= std::fabs(want) / 15.0 + 2.0 * scale;
  };
  for (int64_t t = 0; t < T; ++t)
    for (int64_t k = 0; k < F; ++k) {
      const double gate = gate_up(t, k), up = gate_up(t, F + k), z = 1.0 / (1.0 + std::exp(-gate));
      const double unit = values(y.scale)(k / 128, t) * 0x1p-9;
      ASSERT_TRUE(near(value(y, t, k), gate * z * up, unit)) << t << " " << k;
      ASSERT_TRUE(near(value(kept, t, k), gate, values(kept.scale)(k / 128, t) * 0x1p-9));
      // Backward sees what was kept.
      const double g = value(kept, t, k), u = value(kept, t, F + k), s = 1.0 / (1.0 + std::exp(-g));
      const double dg = dy(t, k) * u * s * (1.0 + g * (1.0 - s)), du = dy(t, k) * g * s;
      // NOTE: 1 + g (1 - s) passes through zero, and g was rounded to bf16.
      ASSERT_NEAR(values(dgate_up)(t, k), dg, 0.02 * std::fabs(dy(t, k) * u) + 1e-4);
      ASSERT_NEAR(values(dgate_up)(t, F + k), du, 0.02 * std::fabs(du) + 1e-4);
      ASSERT_NEAR(values(again)(t, k), g * s * u, 0.02 * std::fabs(g * s * u) + 1e-4);
      ASSERT_TRUE(near(value(dgate, t, k), values(dgate_up)(t, k),
                       values(dgate.scale)(k / 128, t) * 0x1p-9));
      ASSERT_TRUE(near(value(dup, t, k), values(dgate_up)(t, F + k),
                       values(dup.scale)(k / 128, t) * 0x1p-9));
    }
  EXPECT_ERROR(ops::swiglu_forward_tiles(m.ctx, plain, kept, tile_rows(m, T, F + 1)),
               "swiglu_forward_tiles: got bf16 [3, 320] where [3, 322] is needed");
}

TEST(Fp8Training, DispatchQuantisesOncePerToken) {
  Machine m(2);
  const int64_t D = 200;
  ops::PagedRows tiles{m.tensor(DType::kE4M3, {2, kPageRows, D}), Tensor()};
  tiles.scale = m.tensor(DType::kF32, {num_tiles(D), 2 * kPageRows});
  const Tensor x = put_strided(m, random_in("x", {2, D}, DType::kBF16), DType::kBF16);
  const Tensor rows = m.put(std::vector<int32_t>{0, 130, 5, 129}, {2, 2});
  ops::scatter_quantised_rows(m.ctx, x, rows, tiles);
  const ops::TileRows want = tile_rows(m, 2, D);
  ops::quantise_rows(m.ctx, x, {.format = ops::ScaleFormat::kPowerOfTwo}, want);
  const Array<double> slab = values(tiles.slab), scale = values(tiles.scale);
  const Array<double> want_data = values(want.data), want_scale = values(want.scale);
  const int64_t rows_of[2][2] = {{0, 130}, {5, 129}};
  for (int64_t t = 0; t < 2; ++t)
    for (int64_t row : rows_of[t])
      for (int64_t d = 0; d < D; ++d) {
        ASSERT_EQ(at(slab, row / 128, row % 128, d), want_data(t, d));
        ASSERT_EQ(scale(d / 128, row), want_scale(d / 128, t));
      }
}

}  // namespace
}  // namespace hadal::test
