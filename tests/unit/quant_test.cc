// Block FP8 against plain loops: ragged blocks, both scale formats, slices of rows.
//
//   N rows   K columns
// SPDX-License-Identifier: Apache-2.0
#include "ops/quant.h"

#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

using ops::ScaleFormat;

int64_t blocks(int64_t n) { return (n + kScaleBlock - 1) / kScaleBlock; }

struct Quantised {
  Tensor q, scale;
};

Quantised quantise(Machine& machine, const Tensor& w, ScaleFormat format) {
  Quantised r = {strided(machine, DType::kE4M3, w.shape()),
                 machine.tensor(DType::kF32, {blocks(w.dim(0)), blocks(w.dim(1))})};
  ops::quantise_blocks(machine.ctx, w, format, r.q, r.scale);
  return r;
}

TEST(Quant, MatchesThePlainLoop) {
  Machine machine(2);
  for (const DType dtype : kOpTypes)
    for (const ScaleFormat format : {ScaleFormat::kF32, ScaleFormat::kPowerOfTwo})
      for (const auto& [N, K] :
           {std::pair<int64_t, int64_t>{0, 4}, {1, 1}, {3, 130}, {128, 128}, {129, 257}, {5, 0}}) {
        const Array<double> w = random_in("w", {N, K}, dtype, 0, 0.05);
        const Quantised r = quantise(machine, put_strided(machine, w, dtype), format);
        const Array<double> q = values(r.q), scale = values(r.scale);
        for (int64_t i = 0; i < blocks(N); ++i)
          for (int64_t j = 0; j < blocks(K); ++j) {
            float amax = 0;
            for (int64_t n = i * 128; n < std::min(N, i * 128 + 128); ++n)
              for (int64_t k = j * 128; k < std::min(K, j * 128 + 128); ++k)
                amax = std::max(amax, std::fabs(static_cast<float>(w(n, k))));
            const float exact = std::max(amax, 1e-4f) / 448.0f;
            float want = exact;
            if (format == ScaleFormat::kPowerOfTwo) {
              want = 1.0f;
              while (want < exact) want *= 2;
              while (want / 2 >= exact) want /= 2;
            }
            ASSERT_EQ(scale(i, j), want);
          }
        for (int64_t n = 0; n < N; ++n)
          for (int64_t k = 0; k < K; ++k) {
            const auto s = static_cast<float>(scale(n / 128, k / 128));
            ASSERT_EQ(q(n, k), to_f32(to_e4m3(static_cast<float>(w(n, k)) / s)));
          }
      }
}

// The largest element of a block is stored as 448, exactly.
TEST(Quant, UsesTheWholeRange) {
  Machine machine(1);
  Array<double> w({2, 2});
  w.data = {0.7, -0.1, 0.0, 1e-9};
  const Quantised r = quantise(machine, machine.put(w, DType::kF32), ScaleFormat::kF32);
  EXPECT_EQ(values(r.q)(0, 0), 448.0);
  EXPECT_EQ(values(r.q)(1, 0), 0.0);
  // A block of zeros has the smallest scale, and decodes to zeros.
  const Quantised zero = quantise(machine, machine.tensor(DType::kF32, {3, 3}), ScaleFormat::kF32);
  EXPECT_EQ(values(zero.scale)[0], 1e-4f / 448.0f);
  for (const double v : values(zero.q).data) EXPECT_EQ(v, 0.0);
}

TEST(Quant, ReadsBackWithinHalfAUnit) {
  Machine machine(2);
  const Array<double> w = random_in("w", {130, 200}, DType::kF32, 0, 0.02);
  for (const ScaleFormat format : {ScaleFormat::kF32, ScaleFormat::kPowerOfTwo}) {
    const Quantised r = quantise(machine, machine.put(w, DType::kF32), format);
    Tensor y = strided(machine, DType::kF32, {130, 200});
    ops::dequantise_blocks(machine.ctx, Operand(r.q, r.scale), y);
    const Array<double> back = values(y), scale = values(r.scale);
    for (int64_t n = 0; n < 130; ++n)
      for (int64_t k = 0; k < 200; ++k)
        ASSERT_LE(std::abs(back(n, k) - w(n, k)),
                  std::abs(w(n, k)) * 0x1.001p-4 + scale(n / 128, k / 128) * 0x1p-10);
    // What was decoded quantises to the same bits again.
    const Quantised again = quantise(machine, y, format);
    expect_bits_equal("q", again.q, r.q);
    expect_bits_equal("scale", again.scale, r.scale);
  }
}

TEST(Quant, DequantisesSlicesOfRows) {
  Machine machine(2);
  const Tensor w = machine.put(random_in("w", {300, 140}, DType::kF32), DType::kF32);
  const Quantised r = quantise(machine, w, ScaleFormat::kF32);
  for (const DType dtype : kOpTypes) {
    Tensor all = machine.tensor(dtype, {300, 140});
    ops::dequantise_blocks(machine.ctx, Operand(r.q, r.scale), all);
    for (const auto& [begin, count] :
         {std::pair<int64_t, int64_t>{0, 300}, {127, 2}, {130, 170}, {299, 1}, {5, 0}}) {
      Tensor y = machine.tensor(dtype, {count, 140});
      ops::dequantise_blocks(machine.ctx, Operand(r.q, r.scale).rows(begin, count), y);
      expect_bits_equal(concat("rows from ", begin), y, all.rows(begin, count));
    }
  }
}

TEST(Quant, WithoutScalesIsAConversion) {
  Machine machine(1);
  for (const DType from : {DType::kE4M3, DType::kBF16, DType::kF32}) {
    const Array<double> w = random_in("w", {3, 130}, from);
    Tensor y = machine.tensor(DType::kF32, {3, 130});
    ops::dequantise_blocks(machine.ctx, machine.put(w, from), y);
    expect_close("y", values(y), w, 0.0);
  }
}

TEST(Quant, SameBitsAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    const Tensor w = machine.put(ref::random("w", {300, 300}, 0, 1), DType::kBF16);
    const Quantised r = quantise(machine, w, ScaleFormat::kF32);
    Tensor y = machine.tensor(DType::kBF16, {300, 300});
    ops::dequantise_blocks(machine.ctx, Operand(r.q, r.scale), y);
    return std::vector<Tensor>{r.q, r.scale, y};
  });
}

TEST(Quant, NamesTheWrongArgument) {
  Machine machine(2);
  Array<double> w({2, 3});
  w(1, 2) = INFINITY;
  Tensor q = machine.tensor(DType::kE4M3, {2, 3}), scale = machine.tensor(DType::kF32, {1, 1});
  EXPECT_ERROR(
      ops::quantise_blocks(machine.ctx, machine.put(w, DType::kF32), ScaleFormat::kF32, q, scale),
      "element [1, 2] of w is inf; FP8 holds finite weights only");
  Tensor wide = machine.tensor(DType::kF32, {1, 2}), y = machine.tensor(DType::kF32, {2, 3});
  EXPECT_ERROR(ops::quantise_blocks(machine.ctx, y, ScaleFormat::kF32, q, wide),
               "scale must have shape [1, 1], has [1, 2]");
  EXPECT_ERROR(ops::quantise_blocks(machine.ctx, y, ScaleFormat::kF32, y, scale),
               "q must be e4m3, is f32 [2, 3]");
  EXPECT_ERROR(ops::dequantise_blocks(machine.ctx, Operand(q, wide), y),
               "w has rows 0 to 2 of 3 columns, which needs scales of shape [1, 1] or more rows, "
               "has f32 [1, 2]");
}

}  // namespace
}  // namespace hadal::test
