// Sums over ranks, and the numbers of a hop, against what their definitions say.
//
//   T tokens   K choices of a token   G ranks   E experts of a rank
// SPDX-License-Identifier: Apache-2.0
#include "ops/ranks.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/expect_error.h"
#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

TEST(SumOfRanks, AddsInRankOrderAndRoundsOnce) {
  Machine machine(2);
  Context& ctx = machine.ctx;
  constexpr int64_t kN = 3001;
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16})
    for (const int64_t place : {0, 1, 2}) {
      Tensor own, others, y;
      const Block a = ctx.memory.take_tensor(dtype, {kN}, &own);
      const Block b = ctx.memory.take_tensor(dtype, {2, kN + 3}, &others);
      const Block c = ctx.memory.take_tensor(dtype, {kN}, &y);
      const auto value = [](int64_t rank, int64_t i) {
        return std::sin(static_cast<double>(rank * 5000 + i)) * (rank == 1 ? 1e3 : 1.0);
      };
      for (int64_t i = 0; i < kN; ++i) {
        store_element(own.raw(), dtype, i, value(place, i));
        for (int64_t r = 0; r < 3; ++r)
          if (r != place)
            store_element(others.row(r < place ? r : r - 1).raw(), dtype, i, value(r, i));
      }
      ops::sum_of_ranks(ctx, place, own, others.cols(0, kN), y);
      ops::sum_of_ranks(ctx, place, own, others.cols(0, kN), own);
      for (int64_t i = 0; i < kN; ++i) {
        double f64 = 0.0;
        float f32 = 0.0f;
        for (int64_t r = 0; r < 3; ++r) {
          double element = 0.0;
          store_element(&element, dtype, 0, value(r, i));
          const double v = load_element(&element, dtype, 0);
          f64 = r == 0 ? v : f64 + v;
          f32 = r == 0 ? static_cast<float>(v) : f32 + static_cast<float>(v);
        }
        double want = 0.0;
        store_element(&want, dtype, 0, dtype == DType::kF64 ? f64 : static_cast<double>(f32));
        want = load_element(&want, dtype, 0);
        ASSERT_EQ(load_element(y.raw(), dtype, i), want) << dtype_name(dtype) << " " << i;
        ASSERT_EQ(load_element(own.raw(), dtype, i), want) << "in place, " << i;
      }
    }
}

TEST(SumOfRanks, OtherTypesAreErrors) {
  Machine machine(1);
  Tensor own, others;
  const Block a = machine.ctx.memory.take_tensor(DType::kI32, {4}, &own);
  const Block b = machine.ctx.memory.take_tensor(DType::kI32, {1, 4}, &others);
  EXPECT_ERROR(ops::sum_of_ranks(machine.ctx, 0, own, others, own),
               "reductions add f32, f64, bf16 and i64, not i32");
}

TEST(Hop, NumbersCopiesByRankAndTokensWithinARank) {
  Machine machine(1);
  Context& ctx = machine.ctx;
  constexpr int64_t kT = 4, kK = 3, kG = 3, kE = 2;
  const int32_t choices[kT][kK] = {{0, 1, 4}, {-1, 2, 5}, {4, -1, 5}, {-1, -1, -1}};
  const auto make = [&](DType dtype, const Shape& shape, Block* memory) {
    Tensor t;
    *memory = ctx.memory.take_tensor(dtype, shape, &t);
    return t;
  };
  Block m[8];
  const Tensor ids = make(DType::kI32, {kT, kK}, &m[0]);
  std::memcpy(ids.raw(), choices, sizeof(choices));
  Tensor of_rank = make(DType::kI32, {kT, kG}, &m[1]),
         of_choice = make(DType::kI32, {kT, kK}, &m[2]);
  Tensor counts = make(DType::kI64, {kG, 1 + kE}, &m[3]), most = make(DType::kI64, {1}, &m[4]);
  ops::hop_copies(ctx, ids, of_rank, of_choice, counts, most);
  const auto values = [](const Tensor& t) {
    std::vector<int64_t> v;
    for (int64_t i = 0; i < t.num_elements(); ++i)
      v.push_back(static_cast<int64_t>(load_element(t.raw(), t.dtype(), i)));
    return v;
  };
  using V = std::vector<int64_t>;
  // Copies: 0 to rank 0; 1 to rank 1; 2, 3, 4 to rank 2, of tokens 0, 1, 2.
  EXPECT_EQ(values(of_rank), (V{0, 2, -1, 1, 3, -1, 4, -1, -1, -1, -1, -1}));
  EXPECT_EQ(values(of_choice), (V{0, 0, 2, -1, 1, 3, 4, -1, 4, -1, -1, -1}));
  EXPECT_EQ(values(counts), (V{1, 1, 1, 1, 1, 0, 3, 2, 2}));
  EXPECT_EQ(values(most), (V{2}));

  const Tensor weights = make(DType::kF32, {kT, kK}, &m[5]);
  for (int64_t i = 0; i < kT * kK; ++i)
    store_element(weights.raw(), DType::kF32, i, static_cast<double>(i + 1));
  Tensor ids_out = make(DType::kI32, {5, kK}, &m[6]),
         weights_out = make(DType::kF32, {5, kK}, &m[7]);
  ops::hop_choices(ctx, kE, ids, weights, of_choice, ids_out, weights_out);
  EXPECT_EQ(values(ids_out), (V{0, 1, -1, -1, 0, -1, -1, -1, 0, -1, -1, 1, 0, -1, 1}));
  EXPECT_EQ(values(weights_out), (V{1, 2, 0, 0, 5, 0, 0, 0, 3, 0, 0, 6, 7, 0, 9}));
  Block back_memory;
  Tensor back = make(DType::kF32, {kT, kK}, &back_memory);
  ops::hop_values(ctx, weights_out, of_choice, back);
  EXPECT_EQ(values(back), (V{1, 2, 3, 0, 5, 6, 7, 0, 9, 0, 0, 0}));

  ids.data<int32_t>()[0] = 6;
  EXPECT_ERROR(ops::hop_copies(ctx, ids, of_rank, of_choice, counts, most),
               "choice 0 of token 0 is expert 6, but there are 6");
}

}  // namespace
}  // namespace hadal::test
