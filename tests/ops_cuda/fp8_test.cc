// FP8 training on CUDA against the CPU's: formats have the same bits; products differ by what the
// matrix unit cuts from its sums of 128 products.
//
//   T tokens   N output width   K inner width   E experts   P pages
// SPDX-License-Identifier: Apache-2.0
#include "ops/fp8.h"

#include "ops/fp8_wire.h"
#include "ops/norm.h"
#include "ops/swiglu_tiles.h"
#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

using ops::kPageRows;
using ops::kTileSize;
using ops::num_tiles;

// The unit keeps 14 bits of a sum (report, 3.3.2): its error is below 2^-13 of the partial sum,
// which may be some times larger than the result. In roundings of f32, and of a bf16 result.
double fp8_roundings(DType result) { return result == DType::kF32 ? 0x1p13 : 4.0; }

int64_t whole_pages(int64_t rows) { return num_tiles(rows) * kPageRows; }
int64_t padded(int64_t width) { return (width + 15) / 16 * 16; }

ops::TileRows tile_rows(Side& s, int64_t T, int64_t K) {
  return {s.make(DType::kE4M3, {T, padded(K)}, [](int64_t) { return 0.0; }).cols(0, K),
          s.make(DType::kF32, {num_tiles(K), whole_pages(T)}, [](int64_t) { return 0.0; })};
}
// A matrix with the padding of its rows.
Tensor whole(const Tensor& t) { return Tensor(t.raw(), t.dtype(), {t.dim(0), t.stride(0)}); }
ops::TileColumns tile_columns(Side& s, int64_t P, int64_t W) {
  return {s.make(DType::kE4M3, {P, W, kTileSize}, [](int64_t) { return 0.0; }),
          s.make(DType::kF32, {P, W}, [](int64_t) { return 0.0; })};
}
ops::PagedRows tile_pages(Side& s, int64_t P, int64_t W, const Tensor& page) {
  ops::PagedRows rows;
  rows.slab = s.make(DType::kE4M3, {P, kPageRows, W}, [](int64_t) { return 0.0; });
  rows.scale = s.make(DType::kF32, {num_tiles(W), P * kPageRows}, [](int64_t) { return 0.0; });
  rows.page = page;
  return rows;
}

// E weights [N, K] at even distances, quantised.
std::vector<Operand> weights(Side& s, int64_t E, int64_t N, int64_t K, DType type) {
  const Tensor all = s.random("w", type, {E, N, K}, 0.02);
  const auto zero = [](int64_t) { return 0.0; };
  const Tensor data = s.make(DType::kE4M3, {E, N, padded(K)}, zero);
  const Tensor transposed = s.make(DType::kE4M3, {E, K, padded(N)}, zero);
  const Tensor scale = s.make(DType::kF32, {E, num_tiles(N), num_tiles(K)}, zero);
  const Tensor transposed_scale = s.make(DType::kF32, {E, num_tiles(K), num_tiles(N)}, zero);
  std::vector<Tensor> from;
  std::vector<Operand> to;
  for (int64_t e = 0; e < E; ++e) {
    from.push_back(all.row(e));
    Operand o(data.row(e).cols(0, K), scale.row(e));
    o.transposed = transposed.row(e).cols(0, N);
    o.transposed_scale = transposed_scale.row(e);
    to.push_back(o);
  }
  ops::quantise_weights(s.ctx, from, to);
  return to;
}

const int64_t kShapes[][2] = {{0, 64}, {1, 16}, {3, 33}, {128, 128}, {130, 264}, {300, 1040}};

TEST(OpsCuda, Fp8Formats) {
  for (DType type : {DType::kF32, DType::kBF16})
    for (const auto& [T, K] : kShapes)
      for (ops::TileShape shape : {ops::TileShape::kRow, ops::TileShape::kSquare})
        expect_twins(concat("fp8 formats ", dtype_name(type), " ", T, " ", K), [&](Side& s) {
          const Tensor x = s.random("x", type, {T, K + 8}, 3.0).cols(8, K);
          const ops::TileRows rows = tile_rows(s, T, K), pow = tile_rows(s, T, K);
          const ops::TileColumns columns = tile_columns(s, num_tiles(T), K);
          const Tensor y = s.out(type, {T, K}), z = s.out(type, {T, K});
          const Tensor words = s.out(DType::kI32, {T, ops::e5m6_words(K)});
          const Tensor scale = s.out(DType::kF32, {T, num_tiles(K)});
          ops::quantise_rows(s.ctx, x, {.shape = shape}, rows);
          ops::quantise_rows(s.ctx, x, {ops::ScaleFormat::kPowerOfTwo, shape}, pow);
          ops::dequantise_rows(s.ctx, rows, Tensor(y));
          ops::quantise_columns(s.ctx, x, columns);
          ops::pack_e5m6(s.ctx, x, Tensor(words), Tensor(scale));
          ops::unpack_e5m6(s.ctx, words, scale, Tensor(z));
          return std::vector<Tensor>{
              whole(rows.data), rows.scale,    whole(pow.data), pow.scale, y,
              columns.data,     columns.scale, words,           scale,     z};
        });
}

TEST(OpsCuda, Fp8Weights) {
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{1, 1}, {64, 96}, {130, 257}, {256, 128}})
    expect_twins(concat("fp8 weights ", N, " ", K), [&](Side& s) {
      const std::vector<Operand> w = weights(s, 3, N, K, DType::kF32);
      std::vector<Tensor> all;
      for (const Operand& o : w) {
        all.push_back(whole(o.data));
        all.push_back(o.scale);
        all.push_back(whole(o.transposed));
        all.push_back(o.transposed_scale);
      }
      return all;
    });
}

// NaN, wherever it is, is an error and not an element.
TEST(OpsCuda, Fp8OfNaNIsAnError) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  Side s({DeviceKind::kCuda, 0});
  const Tensor x = s.make(DType::kBF16, {2, 128}, [](int64_t i) { return i == 200 ? NAN : 1.0; });
  const ops::TileRows rows = tile_rows(s, 2, 128);
  ops::quantise_rows(s.ctx, x, {}, rows);
  EXPECT_THROW(static_cast<void>(download<float>(s.ctx, rows.scale)), Error);
}

TEST(OpsCuda, Fp8DenseProducts) {
  const int64_t shapes[][3] = {{1, 8, 16},      {5, 33, 70},      {130, 576, 264}, {257, 264, 512},
                               {300, 1040, 72}, {512, 136, 2080}, {1, 512, 1024}};
  for (DType result : {DType::kF32, DType::kBF16})
    for (const auto& [T, N, K] : shapes)
      expect_twins(
          concat("fp8 products ", dtype_name(result), " ", T, " ", N, " ", K),
          [&](Side& s) {
            const Operand w = weights(s, 1, N, K, DType::kF32)[0];
            const Tensor x = s.random("x", DType::kBF16, {T, K}, 2.0);
            const Tensor dy = s.random("dy", DType::kBF16, {T, N}, 1e-3);
            const ops::TileRows x_q = tile_rows(s, T, K), dy_q = tile_rows(s, T, N);
            const ops::TileColumns x_c = tile_columns(s, num_tiles(T), K);
            const ops::TileColumns dy_c = tile_columns(s, num_tiles(T), N);
            ops::quantise_rows(s.ctx, x, {}, x_q);
            ops::quantise_rows(s.ctx, dy, {}, dy_q);
            ops::quantise_columns(s.ctx, x, x_c);
            ops::quantise_columns(s.ctx, dy, dy_c);
            const Tensor y = s.out(result, {T, N}), dx = s.out(result, {T, K});
            Tensor dx_acc = s.random("dx", result, {T, K}, 1e-4);
            Tensor dw = s.random("dw", DType::kF32, {N, K}, 1e-3);
            ops::fp8_gemm_nt(s.ctx, x_q, w, Tensor(y));
            ops::fp8_gemm_nn(s.ctx, dy_q, w, Tensor(dx));
            ops::fp8_gemm_nn_acc(s.ctx, dy_q, w, dx_acc);
            ops::fp8_gemm_tn_acc(s.ctx, dy_c, x_c, dw);
            if (result == DType::kBF16) return std::vector<Tensor>{y, dx, dx_acc};
            return std::vector<Tensor>{y, dx, dx_acc, dw};
          },
          fp8_roundings(result));
}

// A narrow gradient over many tokens is summed in parts.
TEST(OpsCuda, Fp8NarrowGradient) {
  expect_twins(
      "fp8 narrow gradient",
      [&](Side& s) {
        const int64_t T = 5000, N = 64, K = 256;
        const ops::TileColumns x = tile_columns(s, num_tiles(T), K);
        const ops::TileColumns dy = tile_columns(s, num_tiles(T), N);
        ops::quantise_columns(s.ctx, s.random("x", DType::kBF16, {T, K}), x);
        ops::quantise_columns(s.ctx, s.random("dy", DType::kBF16, {T, N}), dy);
        Tensor dw = s.random("dw", DType::kF32, {N, K});
        ops::fp8_gemm_tn_acc(s.ctx, dy, x, dw);
        return std::vector<Tensor>{dw};
      },
      fp8_roundings(DType::kF32));
}

// Rows of each expert: none, one, a page exactly, more than a page; the pages of x lie anywhere.
TEST(OpsCuda, Fp8GroupedProducts) {
  const std::vector<int32_t> counts = {0, 1, 128, 0, 150}, begin = {0, 0, 1, 2, 2, 4};
  const std::vector<int32_t> row_of_choice = {0, 128, 256, 300, 5};
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{144, 208}, {33, 70}, {256, 384}})
    expect_twins(
        concat("fp8 grouped ", N, " ", K),
        [&](Side& s) {
          const int64_t E = 5, P = 4, slots = 6;
          const DType type = DType::kBF16;
          const ops::ExpertLayout layout{s.list(counts), s.list(begin)};
          const Tensor page = s.list({5, 0, 3, 1});
          const std::vector<Operand> w = weights(s, E, N, K, DType::kF32);
          const ops::PagedRows x{s.random("x", type, {slots, kPageRows, K}), page};
          const ops::PagedRows dy{s.random("dy", type, {P, kPageRows, N}), Tensor()};
          const ops::PagedRows x_q = tile_pages(s, slots, K, page);
          const ops::PagedRows dy_q = tile_pages(s, P, N, Tensor());
          const ops::PagedRows x_again{s.out(type, {P, kPageRows, K}), Tensor()};
          const ops::TileColumns x_c = tile_columns(s, P, K), dy_c = tile_columns(s, P, N);
          ops::grouped_quantise_rows(s.ctx, layout, x, {}, x_q);
          ops::grouped_quantise_rows(s.ctx, layout, dy, {.shape = ops::TileShape::kSquare}, dy_q);
          ops::grouped_dequantise_rows(s.ctx, layout, x_q, x_again);
          ops::grouped_quantise_columns(s.ctx, layout, x_q, x_c);
          ops::grouped_quantise_columns(s.ctx, layout, dy, dy_c);
          const Tensor y = s.out(type, {P, kPageRows, N}), dx = s.out(type, {P, kPageRows, K});
          Tensor dx_acc = s.random("dx_acc", type, {slots, kPageRows, K}, 1e-2);
          const Tensor grads = s.random("dw", DType::kF32, {E, N, K});
          std::vector<Tensor> dw;
          for (int64_t e = 0; e < E; ++e) dw.push_back(grads.row(e));
          ops::grouped_fp8_gemm_nt(s.ctx, layout, x_q, w, {y, Tensor()});
          ops::grouped_fp8_gemm_nn(s.ctx, layout, dy_q, w, {dx, Tensor()});
          ops::grouped_fp8_gemm_nn_acc(s.ctx, layout, dy_q, w, {dx_acc, page});
          ops::grouped_fp8_gemm_tn_acc(s.ctx, layout, dy_c, x_c, dw);
          return std::vector<Tensor>{y, dx, dx_acc, grads, x_again.slab};
        },
        fp8_roundings(DType::kF32));
}

// More tiles than a device has SMs, so that a block goes from tile to tile, of no pages to three.
TEST(OpsCuda, Fp8GradientsOfManyExperts) {
  const int64_t E = 36, N = 260, K = 276;
  std::vector<int32_t> counts, begin = {0};
  for (int32_t e = 0; e < E; ++e) {
    counts.push_back(e % 4 * 128 - (e % 4 == 2 ? 5 : 0));
    begin.push_back(begin.back() + e % 4);
  }
  const int64_t P = begin.back();
  expect_twins(
      "fp8 gradients of many experts",
      [&](Side& s) {
        const ops::ExpertLayout layout{s.list(counts), s.list(begin)};
        const ops::PagedRows x{s.random("x", DType::kBF16, {P, kPageRows, K}), Tensor()};
        const ops::PagedRows dy{s.random("dy", DType::kBF16, {P, kPageRows, N}), Tensor()};
        const ops::TileColumns x_c = tile_columns(s, P, K), dy_c = tile_columns(s, P, N);
        ops::grouped_quantise_columns(s.ctx, layout, x, x_c);
        ops::grouped_quantise_columns(s.ctx, layout, dy, dy_c);
        const Tensor grads = s.random("dw", DType::kF32, {E, N, K});
        std::vector<Tensor> dw;
        for (int64_t e = 0; e < E; ++e) dw.push_back(grads.row(e));
        ops::grouped_fp8_gemm_tn_acc(s.ctx, layout, dy_c, x_c, dw);
        return std::vector<Tensor>{grads};
      },
      fp8_roundings(DType::kF32));
}

// Widths that the one-pass kernels take, and others; gate and up from tiles and as they are.
TEST(OpsCuda, Fp8Swiglu) {
  for (const auto& [T, F] :
       {std::pair<int64_t, int64_t>{0, 128}, {1, 128}, {5, 72}, {130, 384}, {40, 1152}, {3, 2048}})
    for (const bool keep : {true, false})
      for (const ops::TileShape shape : {ops::TileShape::kRow, ops::TileShape::kSquare})
        expect_twins(concat("fp8 swiglu ", T, " ", F, keep ? " kept" : ""), [&](Side& s) {
          const DType type = DType::kBF16;
          const Tensor gate_up = s.random("gate_up", type, {T, 2 * F}, 2.0);
          const Tensor dy = s.random("dy", type, {T, F}, 1e-2);
          const ops::TileRows kept = keep ? tile_rows(s, T, 2 * F) : ops::TileRows{};
          const ops::TileRows y = tile_rows(s, T, F), dgate = tile_rows(s, T, F);
          const ops::TileRows dup = tile_rows(s, T, F);
          const Tensor dgate_up = s.out(type, {T, 2 * F}), again = s.out(type, {T, F});
          ops::swiglu_forward_tiles(s.ctx, gate_up, kept, y);
          ops::swiglu_backward_tiles(s.ctx, keep ? kept : ops::TileRows{gate_up, {}}, dy,
                                     {.shape = shape}, Tensor(dgate_up), dgate, dup, Tensor(again));
          std::vector<Tensor> all{whole(y.data),   y.scale,   whole(dgate.data), dgate.scale,
                                  whole(dup.data), dup.scale, dgate_up,          again};
          if (keep) all.insert(all.end(), {whole(kept.data), kept.scale});
          return all;
        });
}

// Widths that the one-pass kernel takes, and others. NOTE: against the two ops on the same device:
// the CPU adds a row's squares in another order.
TEST(OpsCuda, Fp8NormHasTheBitsOfItsSteps) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  Side s({DeviceKind::kCuda, 0});
  for (const auto& [T, D] :
       {std::pair<int64_t, int64_t>{0, 128}, {1, 8}, {5, 72}, {130, 384}, {3, 7168}, {2, 100}})
    for (DType type : {DType::kBF16, DType::kF32}) {
      const Tensor x = s.random("x", type, {T, D}, 3.0), gain = s.random("gain", type, {D});
      const Tensor y = s.out(type, {T, D}), want_y = s.out(type, {T, D});
      const Tensor rstd = s.out(DType::kF32, {T}), want_rstd = s.out(DType::kF32, {T});
      const ops::TileRows tiles = tile_rows(s, T, D), want = tile_rows(s, T, D);
      ops::rmsnorm_forward_tiles(s.ctx, x, gain, 1e-6, Tensor(y), Tensor(rstd), tiles);
      ops::in_steps::rmsnorm_forward_tiles(s.ctx, x, gain, 1e-6, Tensor(want_y), Tensor(want_rstd),
                                           want);
      for (const auto& [got, other] : {std::pair(y, want_y),
                                       {rstd, want_rstd},
                                       {whole(tiles.data), whole(want.data)},
                                       {tiles.scale, want.scale}}) {
        const HostRead a(s.ctx, got), b(s.ctx, other);
        expect_bits_equal(concat("fp8 norm ", T, " ", D), a.tensor(), b.tensor());
      }
    }
}

TEST(OpsCuda, Fp8GroupedSwiglu) {
  const std::vector<int32_t> counts = {0, 1, 128, 0, 150}, begin = {0, 0, 1, 2, 2, 4};
  for (const int64_t F : {int64_t{128}, int64_t{72}, int64_t{1152}})
    for (const bool keep : {true, false}) {
      Tensor drow_weight;
      const auto calls = [&, F = F, keep = keep](Side& s) {
        const int64_t P = 4, slots = 6;
        const DType type = DType::kBF16;
        const ops::ExpertLayout layout{s.list(counts), s.list(begin)};
        const Tensor page = s.list({5, 0, 3, 1});
        const auto pages = [&](const char* name, int64_t W) {
          return ops::PagedRows{s.random(name, type, {P, kPageRows, W}, 2.0), Tensor()};
        };
        const ops::PagedRows gate_up = pages("gate_up", 2 * F), dy = pages("dy", F);
        const Tensor weight = s.random("weight", DType::kF32, {P * kPageRows});
        const ops::PagedRows kept = keep ? tile_pages(s, slots, 2 * F, page) : ops::PagedRows{};
        const ops::PagedRows y = tile_pages(s, P, F, Tensor());
        const ops::PagedRows dgate = tile_pages(s, P, F, Tensor());
        const ops::PagedRows dup = tile_pages(s, P, F, Tensor());
        const ops::PagedRows dgate_up{s.out(type, {P, kPageRows, 2 * F}), Tensor()};
        const ops::PagedRows again{s.out(type, {P, kPageRows, F}), Tensor()};
        drow_weight = s.out(DType::kF32, {P * kPageRows});
        ops::grouped_swiglu_forward_tiles(s.ctx, layout, gate_up, weight, kept, y);
        ops::grouped_swiglu_backward_tiles(s.ctx, layout, keep ? kept : gate_up, weight, dy, {},
                                           dgate_up, dgate, dup, again, Tensor(drow_weight));
        std::vector<Tensor> all{y.slab,   y.scale,   dgate.slab,    dgate.scale,
                                dup.slab, dup.scale, dgate_up.slab, again.slab};
        if (keep) all.insert(all.end(), {kept.slab, kept.scale});
        return all;
      };
      expect_twins(concat("fp8 grouped swiglu ", F, keep ? " kept" : ""), calls);
      expect_twins(
          concat("fp8 grouped swiglu, gradient of the weight, ", F),
          [&](Side& s) {
            calls(s);
            return std::vector<Tensor>{drow_weight};
          },
          64.0);
    }
}

TEST(OpsCuda, Fp8Dispatch) {
  for (int64_t D : {16, 130, 512})
    expect_twins(concat("fp8 dispatch ", D), [&](Side& s) {
      const Tensor rows_of = s.make(DType::kI32, {3, 2}, [](int64_t i) {
        constexpr int kRow[] = {0, 129, 7, 130, 255, 1};
        return static_cast<double>(kRow[i]);
      });
      const ops::PagedRows rows = tile_pages(s, 4, D, s.list({3, 1}));
      ops::scatter_quantised_rows(s.ctx, s.random("x", DType::kBF16, {3, D}), rows_of, rows);
      return std::vector<Tensor>{rows.slab, rows.scale};
    });
}

// What travels between ranks: packed, passed on, and put into rows.
TEST(OpsCuda, Fp8Wire) {
  for (int64_t D : {16, 130, 512, 7168})
    expect_twins(concat("fp8 wire ", D), [&](Side& s) {
      const auto numbers = [&](Shape shape, std::vector<int> values) {
        return s.make(DType::kI32, shape, [values](int64_t i) {
          return static_cast<double>(values[static_cast<size_t>(i)]);
        });
      };
      const Tensor first = s.out(DType::kE4M3, {5, ops::wire_bytes(D)});
      const Tensor second = s.out(DType::kE4M3, {5, ops::wire_bytes(D)});
      const ops::PagedRows rows = tile_pages(s, 4, D, s.list({3, 1}));
      ops::pack_wire_rows(s.ctx, s.random("x", DType::kBF16, {3, D}),
                          numbers({3, 2}, {1, 3, 0, -1, 2, 4}), Tensor(first));
      ops::copy_wire_rows(s.ctx, first, numbers({5, 1}, {3, 4, 0, 1, 2}), Tensor(second));
      ops::place_wire_rows(s.ctx, second, numbers({5, 2}, {0, -1, 129, 5, 7, -1, 130, 6, 255, 1}),
                           rows);
      return std::vector<Tensor>{first, second, rows.slab, rows.scale};
    });
}

}  // namespace
}  // namespace hadal::test
