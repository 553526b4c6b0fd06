// RMSNorm against plain loops in f64.
//
//   T rows   D width
// SPDX-License-Identifier: Apache-2.0
#include "ops/norm.h"

#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

constexpr double kEps = 1e-6;

struct Norm {
  Array<double> y, rstd, dx, dgain;
};

Norm reference(const Array<double>& x, const Array<double>& gain, const Array<double>& dy) {
  const int64_t T = x.dim(0), D = x.dim(1);
  Norm r = {Array<double>(x.shape), Array<double>({T}), Array<double>(x.shape), Array<double>({D})};
  for (int64_t t = 0; t < T; ++t) {
    double square = 0, along = 0;
    for (int64_t d = 0; d < D; ++d) square += x(t, d) * x(t, d);
    const double inverse = 1 / std::sqrt(square / static_cast<double>(D) + kEps);
    r.rstd[t] = inverse;
    for (int64_t d = 0; d < D; ++d) along += dy(t, d) * gain[d] * x(t, d) * inverse;
    for (int64_t d = 0; d < D; ++d) {
      const double x_hat = x(t, d) * inverse;
      r.y(t, d) = gain[d] * x_hat;
      r.dx(t, d) = inverse * (gain[d] * dy(t, d) - x_hat * along / static_cast<double>(D));
      r.dgain[d] += dy(t, d) * x_hat;
    }
  }
  return r;
}

double largest(const Array<double>& a) {
  double size = 0;
  for (const double v : a.data) size = std::max(size, std::abs(v));
  return size;
}

TEST(Norm, MatchesThePlainLoop) {
  Machine machine(2);
  for (const DType dtype : kOpTypes) {
    for (const auto& [T, D] :
         {std::pair<int64_t, int64_t>{0, 5}, {1, 1}, {3, 17}, {65, 48}, {130, 257}}) {
      const Array<double> x = random_in("x", {T, D}, dtype, 0.1, 1),
                          dy = random_in("dy", {T, D}, dtype);
      const Array<double> gain = random_in("gain", {D}, dtype, 1, 0.2);
      const Norm want = reference(x, gain, dy);
      const DType stat = stat_dtype(dtype);
      const Tensor x_t = put_strided(machine, x, dtype), gain_t = machine.put(gain, dtype);
      Tensor y = strided(machine, dtype, x.shape), again = machine.tensor(dtype, x.shape);
      Tensor dx = strided(machine, dtype, x.shape);
      Tensor rstd = machine.tensor(stat, {T}),
             dgain = machine.put(ref::random("old", {D}, 0, 1), stat);
      ops::rmsnorm_forward(machine.ctx, x_t, gain_t, kEps, y, rstd);
      ops::rmsnorm_recompute(machine.ctx, x_t, gain_t, rstd, again);
      ops::rmsnorm_backward(machine.ctx, x_t, gain_t, rstd, put_strided(machine, dy, dtype), dx,
                            dgain);
      // A sum of D terms in 16 chains, a root and a few products.
      const double terms = static_cast<double>(D) / 16 + 16;
      expect_close("y", values(y), want.y, op_bound(dtype, terms, largest(want.y)));
      expect_bits_equal("y again", again, y);
      expect_close("rstd", values(rstd), want.rstd, op_bound(stat, terms, largest(want.rstd)));
      expect_close("dx", values(dx), want.dx,
                   op_bound(dtype, 2 * terms, 2 * largest(want.rstd) * largest(dy)));
      expect_close("dgain", values(dgain), want.dgain,
                   op_bound(stat, terms + static_cast<double>(T),
                            4 * std::sqrt(static_cast<double>(T) + 1) * 4));
    }
  }
}

TEST(Norm, WritesZeroGainGradientForNoRows) {
  Machine machine(2);
  const Tensor none = machine.tensor(DType::kF32, {0, 3}), rstd = machine.tensor(DType::kF32, {0});
  Tensor dx = none,
         dgain = machine.put({Array<double>{ref::random("old", {3}, 0, 1)}}, DType::kF32);
  ops::rmsnorm_backward(machine.ctx, none, machine.tensor(DType::kF32, {3}), rstd, none, dx, dgain);
  for (const double v : values(dgain).data) EXPECT_EQ(v, 0.0);
}

TEST(Norm, ARowDoesNotDependOnOthers) {
  Machine machine(2);
  const Array<double> x = ref::random("x", {40, 515}, 0, 1);
  const Tensor x_t = machine.put(x, DType::kF32),
               gain = machine.put(ref::random("g", {515}, 1, 1), DType::kF32);
  Tensor y = machine.tensor(DType::kF32, x.shape), rstd = machine.tensor(DType::kF32, {40});
  Tensor y1 = machine.tensor(DType::kF32, {1, 515}), rstd1 = machine.tensor(DType::kF32, {1});
  ops::rmsnorm_forward(machine.ctx, x_t, gain, kEps, y, rstd);
  ops::rmsnorm_forward(machine.ctx, x_t.rows(33, 1), gain, kEps, y1, rstd1);
  expect_bits_equal("row 33", y1, y.rows(33, 1));
}

TEST(Norm, BackwardMayOverwriteItsInput) {
  Machine machine(1);
  const Array<double> x = ref::random("x", {9, 37}, 0, 1), dy = ref::random("dy", {9, 37}, 0, 1);
  const Tensor x_t = machine.put(x, DType::kF32),
               gain = machine.put(ref::random("g", {37}, 1, 1), DType::kF32);
  Tensor y = machine.tensor(DType::kF32, x.shape), rstd = machine.tensor(DType::kF32, {9});
  Tensor dx = machine.tensor(DType::kF32, x.shape), dgain = machine.tensor(DType::kF32, {37});
  Tensor in_place = machine.put(dy, DType::kF32);
  ops::rmsnorm_forward(machine.ctx, x_t, gain, kEps, y, rstd);
  ops::rmsnorm_backward(machine.ctx, x_t, gain, rstd, in_place, dx, dgain);
  ops::rmsnorm_backward(machine.ctx, x_t, gain, rstd, in_place, in_place, dgain);
  expect_bits_equal("dx", in_place, dx);
}

TEST(Norm, SameBitsAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    const Array<double> x = ref::random("x", {333, 65}, 0, 1),
                        dy = ref::random("dy", {333, 65}, 0, 1);
    const Tensor x_t = machine.put(x, DType::kBF16),
                 gain = machine.put(ref::random("g", {65}, 1, 1), DType::kBF16);
    Tensor y = machine.tensor(DType::kBF16, x.shape), rstd = machine.tensor(DType::kF32, {333});
    Tensor dx = machine.tensor(DType::kBF16, x.shape), dgain = machine.tensor(DType::kF32, {65});
    ops::rmsnorm_forward(machine.ctx, x_t, gain, kEps, y, rstd);
    ops::rmsnorm_backward(machine.ctx, x_t, gain, rstd, machine.put(dy, DType::kBF16), dx, dgain);
    return std::vector<Tensor>{y, rstd, dx, dgain};
  });
}

TEST(Norm, NamesTheWrongArgument) {
  Machine machine(1);
  const Tensor x = machine.tensor(DType::kF64, {2, 3}), gain = machine.tensor(DType::kF32, {4});
  Tensor y = machine.tensor(DType::kF32, {2, 3}), rstd = machine.tensor(DType::kF32, {2});
  EXPECT_ERROR(ops::rmsnorm_forward(machine.ctx, x, gain, kEps, y, rstd),
               "gain must have shape [3], has [4]");
  EXPECT_ERROR(
      ops::rmsnorm_forward(machine.ctx, x, machine.tensor(DType::kF32, {3}), kEps, y, rstd),
      "rstd must be f64 because x is f64, is f32 [2]");
}

}  // namespace
}  // namespace hadal::test
