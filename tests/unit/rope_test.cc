// Rotary embedding against plain loops: both layouts, both directions, strided views.
//
//   T tokens   H heads   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#include "ops/rope.h"

#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

using ops::RopeDirection;
using ops::RopeLayout;

constexpr RopeLayout kLayouts[] = {RopeLayout::kInterleaved, RopeLayout::kHalves};
constexpr RopeDirection kDirections[] = {RopeDirection::kForward, RopeDirection::kBackward};

Array<double> frequencies(int64_t pairs) {
  Array<double> f({pairs});
  for (int64_t j = 0; j < pairs; ++j) f[j] = std::pow(100.0, -static_cast<double>(j) / 3.0);
  return f;
}

Tensor positions(Machine& machine, int64_t T) {
  std::vector<int32_t> p;
  for (int64_t t = 0; t < T; ++t) p.push_back(static_cast<int32_t>(t * t % 1000));
  return machine.put(p, {T});
}

// x turned by the table's own values.
Array<double> turned(RopeLayout layout, RopeDirection direction, const Array<double>& table,
                     const Array<double>& x) {
  const int64_t T = x.shape[0], H = x.shape[1], Dr = x.shape[2], pairs = Dr / 2;
  Array<double> y(x.shape);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t j = 0; j < pairs; ++j) {
        const int64_t row = (t * H + h) * Dr;
        const int64_t a = layout == RopeLayout::kInterleaved ? 2 * j : j;
        const int64_t b = layout == RopeLayout::kInterleaved ? 2 * j + 1 : j + pairs;
        const double c = table(t, j);
        const double s = table(t, j + pairs) * (direction == RopeDirection::kForward ? 1 : -1);
        y[row + a] = x[row + a] * c - x[row + b] * s;
        y[row + b] = x[row + a] * s + x[row + b] * c;
      }
  return y;
}

TEST(Rope, TableHoldsCosinesThenSines) {
  Machine machine(2);
  for (const DType dtype : kOpTypes)
    for (const auto& [T, pairs] :
         {std::pair<int64_t, int64_t>{0, 3}, {1, 1}, {7, 3}, {300, 16}, {5, 0}}) {
      const Array<double> f = frequencies(pairs);
      const Tensor p = positions(machine, T), freq = machine.put(f, DType::kF64);
      Tensor table = strided(machine, dtype, {T, 2 * pairs});
      ops::rope_table(machine.ctx, p, freq, 1.25, table);
      Array<double> want({T, 2 * pairs});
      for (int64_t t = 0; t < T; ++t)
        for (int64_t j = 0; j < pairs; ++j) {
          const double angle = static_cast<double>(p.data<int32_t>()[t]) * f[j];
          want(t, j) = 1.25 * std::cos(angle);
          want(t, j + pairs) = 1.25 * std::sin(angle);
        }
      // Rounded once from f64.
      expect_close("table", values(table), want,
                   (dtype == DType::kF64 ? 4 : 1.01) * unit_roundoff(dtype) * 1.25);
    }
}

TEST(Rope, TurnsAsThePlainLoopDoes) {
  Machine machine(2);
  for (const DType dtype : kOpTypes)
    for (const RopeLayout layout : kLayouts)
      for (const RopeDirection direction : kDirections)
        for (const Shape& shape :
             {Shape{0, 2, 4}, Shape{1, 1, 2}, Shape{3, 5, 6}, Shape{65, 3, 64}, Shape{4, 0, 8}}) {
          const Array<double> x = random_in("x", shape, dtype);
          Tensor table = machine.tensor(stat_dtype(dtype), {shape[0], shape[2]});
          ops::rope_table(machine.ctx, positions(machine, shape[0]),
                          machine.put(frequencies(shape[2] / 2), DType::kF64), 1.0, table);
          Tensor y = put_strided(machine, x, dtype);
          ops::rope_apply(machine.ctx, layout, direction, table, y);
          expect_close("x turned", values(y), turned(layout, direction, values(table), x),
                       op_bound(dtype, 4, 6.0));
        }
}

// Turning back multiplies by the transpose: the identity, times the squared magnitude.
TEST(Rope, BackwardUndoesForward) {
  Machine machine(1);
  const Array<double> x = ref::random("x", {9, 2, 8}, 0, 1);
  for (const RopeLayout layout : kLayouts) {
    Tensor table = machine.tensor(DType::kF64, {9, 8}), y = machine.put(x, DType::kF64);
    ops::rope_table(machine.ctx, positions(machine, 9), machine.put(frequencies(4), DType::kF64),
                    2.0, table);
    ops::rope_apply(machine.ctx, layout, RopeDirection::kForward, table, y);
    ops::rope_apply(machine.ctx, layout, RopeDirection::kBackward, table, y);
    Array<double> want = x;
    for (double& v : want.data) v *= 4.0;
    expect_close("x", values(y), want, 1e-13);
  }
}

// A slice of a wider tensor, as the rope part of a query is: what lies beside it is not touched.
TEST(Rope, TouchesItsViewOnly) {
  Machine machine(1);
  const Array<double> all = ref::random("q", {5, 3, 10}, 0, 1);
  Tensor q = machine.put(all, DType::kF32), table = machine.tensor(DType::kF32, {5, 4});
  ops::rope_table(machine.ctx, positions(machine, 5), machine.put(frequencies(2), DType::kF64), 1.0,
                  table);
  ops::rope_apply(machine.ctx, RopeLayout::kInterleaved, RopeDirection::kForward, table,
                  q.cols(6, 4));
  const Tensor before = machine.put(all, DType::kF32);
  expect_bits_equal("the rest", q.cols(0, 6), before.cols(0, 6));
  expect_bits_equal("token 0, at position 0", q.row(0), before.row(0));
}

TEST(Rope, SameBitsAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    Tensor x = machine.put(ref::random("x", {700, 4, 16}, 0, 1), DType::kBF16);
    Tensor table = machine.tensor(DType::kF32, {700, 16});
    ops::rope_table(machine.ctx, positions(machine, 700), machine.put(frequencies(8), DType::kF64),
                    1.0, table);
    ops::rope_apply(machine.ctx, RopeLayout::kHalves, RopeDirection::kForward, table, x);
    return std::vector<Tensor>{table, x};
  });
}

TEST(Rope, NamesTheWrongArgument) {
  Machine machine(1);
  Tensor x = machine.tensor(DType::kF32, {2, 1, 5}), table = machine.tensor(DType::kF32, {2, 5});
  EXPECT_ERROR(ops::rope_apply(machine.ctx, RopeLayout::kHalves, RopeDirection::kForward, table, x),
               "x is f32 [2, 1, 5]; the rope width must be even");
  EXPECT_ERROR(ops::rope_apply(machine.ctx, RopeLayout::kHalves, RopeDirection::kForward,
                               table.rows(0, 1), x),
               "table must have shape [2, 5], has [1, 5]");
  EXPECT_ERROR(ops::rope_table(machine.ctx, positions(machine, 2), machine.tensor(DType::kF32, {2}),
                               1.0, table),
               "table must have shape [2, 4], has [2, 5]");
  Tensor narrow = machine.tensor(DType::kF32, {2, 4});
  EXPECT_ERROR(ops::rope_table(machine.ctx, positions(machine, 2), machine.tensor(DType::kF32, {2}),
                               1.0, narrow),
               "inv_freq must be f64, is f32 [2]");
}

}  // namespace
}  // namespace hadal::test
