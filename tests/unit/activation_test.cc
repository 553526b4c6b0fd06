// SwiGLU against plain loops, dense and over the rows of experts.
//
//   T rows   F hidden width
// SPDX-License-Identifier: Apache-2.0
#include "ops/activation.h"

#include "tests/unit/pages.h"

namespace hadal::test {
namespace {

struct Row {
  std::vector<double> y, dgate, dup;
  double dweight = 0;
};

// weight * silu(gate) * up of one row and its gradients.
Row reference(const double* gate_up, const double* dy, int64_t F, double weight) {
  Row r;
  for (int64_t f = 0; f < F; ++f) {
    const double g = gate_up[f], u = gate_up[F + f], z = 1 / (1 + std::exp(-g));
    r.y.push_back(weight * g * z * u);
    r.dgate.push_back(weight * dy[f] * u * (z + g * z * (1 - z)));
    r.dup.push_back(weight * dy[f] * g * z);
    r.dweight += dy[f] * g * z * u;
  }
  return r;
}

TEST(SwiGlu, MatchesThePlainLoop) {
  Machine machine(2);
  for (const DType dtype : kOpTypes)
    for (const auto& [T, F] :
         {std::pair<int64_t, int64_t>{0, 5}, {1, 1}, {3, 17}, {70, 300}, {4, 0}}) {
      const Array<double> gate_up = random_in("gate_up", {T, 2 * F}, dtype, 0, 2),
                          dy = random_in("dy", {T, F}, dtype);
      const Tensor x = put_strided(machine, gate_up, dtype);
      Tensor y = strided(machine, dtype, {T, F}), again = strided(machine, dtype, {T, F});
      Tensor dx = strided(machine, dtype, {T, 2 * F});
      ops::swiglu_forward(machine.ctx, x, y);
      ops::swiglu_backward(machine.ctx, x, put_strided(machine, dy, dtype), dx, again);
      Array<double> want_y({T, F}), want_dx({T, 2 * F});
      for (int64_t t = 0; t < T && F > 0; ++t) {
        const Row r = reference(&gate_up(t, 0), &dy(t, 0), F, 1.0);
        std::copy(r.y.begin(), r.y.end(), &want_y(t, 0));
        std::copy(r.dgate.begin(), r.dgate.end(), &want_dx(t, 0));
        std::copy(r.dup.begin(), r.dup.end(), &want_dx(t, 0) + F);
      }
      expect_close("y", values(y), want_y, op_bound(dtype, 12, 40));
      expect_bits_equal("y again", again, y);
      expect_close("dgate_up", values(dx), want_dx, op_bound(dtype, 16, 40));
    }
}

TEST(SwiGlu, SaturatesWithoutNan) {
  Machine machine(1);
  Array<double> gate_up({1, 6});
  gate_up.data = {-1e4, 1e4, -90, 1, 1, 1};
  Tensor y = machine.tensor(DType::kF32, {1, 3});
  ops::swiglu_forward(machine.ctx, machine.put(gate_up, DType::kF32), y);
  EXPECT_EQ(values(y)[0], 0.0);
  EXPECT_EQ(values(y)[1], 1e4);
  EXPECT_NEAR(values(y)[2], 0.0, 1e-30);
}

TEST(SwiGlu, BackwardMayOverwriteGateUp) {
  Machine machine(1);
  const Array<double> gate_up = ref::random("x", {5, 34}, 0, 1),
                      dy = ref::random("dy", {5, 17}, 0, 1);
  for (const DType dtype : kOpTypes) {
    Tensor x = machine.put(gate_up, dtype), dx = machine.tensor(dtype, {5, 34});
    Tensor y = machine.tensor(dtype, {5, 17});
    const Tensor d = machine.put(dy, dtype);
    ops::swiglu_backward(machine.ctx, x, d, dx, y);
    ops::swiglu_backward(machine.ctx, x, d, x, y);
    expect_bits_equal("dgate_up", x, dx);
  }
}

// Experts with 0, 1, 128 and 130 rows; rows past the counts keep their bits.
TEST(GroupedSwiGlu, MatchesThePlainLoop) {
  Machine machine(2);
  constexpr int64_t F = 19;
  for (const DType dtype : kOpTypes) {
    const ExpertRows experts(machine, {0, 1, 128, 130, 0});
    const DType stat = stat_dtype(dtype);
    const int64_t num_rows = experts.num_positions() * ops::kPageRows;
    const ops::PagedRows x = experts.rows(machine, "x", dtype, 2 * F),
                         dy = experts.rows(machine, "dy", dtype, F);
    const ops::PagedRows y = experts.rows(machine, "y", dtype, F),
                         again = experts.rows(machine, "y", dtype, F),
                         dx = experts.rows(machine, "dx", dtype, 2 * F);
    const ops::PagedRows y_before = experts.rows(machine, "y", dtype, F),
                         dx_before = experts.rows(machine, "dx", dtype, 2 * F);
    const Tensor weight = machine.put(random_in("weight", {num_rows}, stat), stat);
    Tensor dweight = machine.put(random_in("dweight", {num_rows}, stat), stat);
    const Array<double> dweight_before = values(dweight);
    ops::grouped_swiglu_forward(machine.ctx, experts.layout, x, weight, y);
    ops::grouped_swiglu_backward(machine.ctx, experts.layout, x, weight, dy, dx, again, dweight);
    expect_bits_equal("y again", again.slab, y.slab);
    for (int64_t row = 0; row < num_rows; ++row) {
      if (!experts.in_use(row)) {
        expect_bits_equal("unused y", experts.at(y, row), experts.at(y_before, row));
        expect_bits_equal("unused dx", experts.at(dx, row), experts.at(dx_before, row));
        EXPECT_EQ(values(dweight)[row], dweight_before[row]);
        row += 13;  // some of them are enough
        continue;
      }
      const Row r = reference(values(experts.at(x, row)).data.data(),
                              values(experts.at(dy, row)).data.data(), F, values(weight)[row]);
      const Array<double> got_y = values(experts.at(y, row)), got_dx = values(experts.at(dx, row));
      for (int64_t f = 0; f < F; ++f) {
        const auto i = static_cast<size_t>(f);
        ASSERT_NEAR(got_y[f], r.y[i], op_bound(dtype, 16, 40));
        ASSERT_NEAR(got_dx[f], r.dgate[i], op_bound(dtype, 20, 40));
        ASSERT_NEAR(got_dx[F + f], r.dup[i], op_bound(dtype, 20, 40));
      }
      ASSERT_NEAR(values(dweight)[row], r.dweight, op_bound(stat, 40, 40));
    }
  }
}

TEST(GroupedSwiGlu, NoRowsAtAll) {
  Machine machine(2);
  const ExpertRows experts(machine, {0, 0});
  const ops::PagedRows x = experts.rows(machine, "x", DType::kF32, 6),
                       y = experts.rows(machine, "y", DType::kF32, 3);
  ops::grouped_swiglu_forward(machine.ctx, experts.layout, x, machine.tensor(DType::kF32, {0}), y);
  expect_bits_equal("y", y.slab, experts.rows(machine, "y", DType::kF32, 3).slab);
}

TEST(SwiGlu, SameBitsAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    const ExpertRows experts(machine, {300, 0, 77, 129});
    const int64_t num_rows = experts.num_positions() * ops::kPageRows;
    const ops::PagedRows x = experts.rows(machine, "x", DType::kBF16, 66),
                         dy = experts.rows(machine, "dy", DType::kBF16, 33),
                         y = experts.rows(machine, "y", DType::kBF16, 33),
                         dx = experts.rows(machine, "dx", DType::kBF16, 66);
    const Tensor weight = machine.put(ref::random("w", {num_rows}, 0, 1), DType::kF32);
    Tensor dweight = machine.tensor(DType::kF32, {num_rows});
    ops::grouped_swiglu_backward(machine.ctx, experts.layout, x, weight, dy, dx, y, dweight);
    Tensor dense = machine.tensor(DType::kBF16, {128, 33});
    ops::swiglu_forward(machine.ctx, x.slab.row(1), dense);
    return std::vector<Tensor>{y.slab, dx.slab, dweight, dense};
  });
}

TEST(SwiGlu, NamesTheWrongArgument) {
  Machine machine(1);
  Tensor y = machine.tensor(DType::kF32, {2, 3});
  EXPECT_ERROR(ops::swiglu_forward(machine.ctx, machine.tensor(DType::kF32, {2, 5}), y),
               "gate_up must have shape [2, 6], has [2, 5]");
  const ExpertRows experts(machine, {3});
  const ops::PagedRows x = experts.rows(machine, "x", DType::kF32, 6),
                       out = experts.rows(machine, "y", DType::kF32, 3),
                       wide = experts.rows(machine, "y", DType::kF32, 4);
  const Tensor weight = machine.tensor(DType::kF32, {128}),
               few = machine.tensor(DType::kF32, {127});
  EXPECT_ERROR(ops::grouped_swiglu_forward(machine.ctx, experts.layout, x, weight, wide),
               "gate_up.slab must have shape [pages, 128, 8], is f32 [2, 128, 6]");
  EXPECT_ERROR(ops::grouped_swiglu_forward(machine.ctx, experts.layout, x, few, out),
               "row_weight has 127 values, but the layout uses 128 rows");
  EXPECT_ERROR(ops::grouped_swiglu_forward(machine.ctx, experts.layout, x,
                                           machine.tensor(DType::kF64, {128}), out),
               "row_weight must be f32 because gate_up is f32, is f64 [128]");
}

}  // namespace
}  // namespace hadal::test
