// AdamW and sums of squares against plain loops.
// SPDX-License-Identifier: Apache-2.0
#include "ops/optim.h"

#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

const ops::AdamW kRule = {.lr = 1e-2,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .step = 3,
                          .grad_scale = 0.5};

struct State {
  Array<double> param, m, v;
};

// One update in f64.
void update(const ops::AdamW& r, const Array<double>& grad, State& s) {
  for (int64_t i = 0; i < grad.size(); ++i) {
    const double g = grad[i] * r.grad_scale;
    s.m[i] = r.beta1 * s.m[i] + (1 - r.beta1) * g;
    s.v[i] = r.beta2 * s.v[i] + (1 - r.beta2) * g * g;
    const double m_hat = s.m[i] / (1 - std::pow(r.beta1, static_cast<double>(r.step)));
    const double v_hat = s.v[i] / (1 - std::pow(r.beta2, static_cast<double>(r.step)));
    s.param[i] =
        s.param[i] * (1 - r.lr * r.weight_decay) - r.lr * m_hat / (std::sqrt(v_hat) + r.eps);
  }
}

Array<double> absolute(Array<double> a) {
  for (double& v : a.data) v = std::abs(v);
  return a;
}

TEST(Ema, MatchesThePlainLoop) {
  Machine machine(2);
  for (DType dtype : {DType::kF64, DType::kF32})
    for (int64_t n : {0, 1, 1025, 20001}) {
      const Array<double> x = random_in("x", {n}, dtype), before = random_in("average", {n}, dtype);
      Array<double> want = before;
      for (int64_t i = 0; i < n; ++i) want[i] = 0.75 * before[i] + 0.25 * x[i];
      Tensor average = machine.put(before, dtype);
      ops::ema_update(machine.ctx, 0.75, machine.put(x, dtype), average);
      // Values are below 8: three roundings of at most half a unit each.
      test::expect_close("average", ref::from_tensor<double>(average), want,
                         16 * unit_roundoff(dtype));
    }
  Tensor x = machine.put(random_in("x", {3}, DType::kF32), DType::kF32);
  EXPECT_ERROR(ops::ema_update(machine.ctx, 1.0, x, x),
               "the decay of an average is 1; it must be in [0, 1)");
}

TEST(AdamW, MatchesThePlainLoop) {
  Machine machine(2);
  const struct {
    DType param, moment, grad;
  } types[] = {{DType::kF64, DType::kF64, DType::kF64},
               {DType::kF32, DType::kF32, DType::kF32},
               {DType::kF32, DType::kBF16, DType::kF32},
               {DType::kBF16, DType::kBF16, DType::kBF16}};
  for (const auto& type : types)
    for (int64_t n : {0, 1, 17, 1023, 20001}) {
      const Array<double> grad = random_in("grad", {n}, type.grad, 0, 0.1);
      State want = {random_in("param", {n}, type.param), random_in("m", {n}, type.moment, 0, 0.1),
                    // v as it would be: of the size of squared gradients
                    random_in("v", {n}, type.moment, 0, 0.01)};
      for (double& v : want.v.data) v = std::abs(v);
      Tensor param = machine.put(want.param, type.param), m = machine.put(want.m, type.moment),
             v = machine.put(want.v, type.moment);
      ops::adamw(machine.ctx, kRule, machine.put(grad, type.grad), param, m, v);
      update(kRule, grad, want);
      const DType arithmetic = stat_dtype(type.param);
      const auto bound = [&](DType stored, double size) {
        return (16 * unit_roundoff(arithmetic) +
                (stored == arithmetic ? 0 : unit_roundoff(stored))) *
               size;
      };
      expect_close("m", values(m), want.m, bound(type.moment, 1));
      expect_close("v", values(v), want.v, bound(type.moment, 0.1));
      expect_close("param", values(param), want.param, bound(type.param, 6));
    }
}

// The first step moves every weight by lr against its gradient's sign, whatever the gradient's
// size.
TEST(AdamW, TheFirstStepIsTheSign) {
  Machine machine(1);
  Array<double> grad({3});
  grad.data = {1e-3, -5, 200};
  Tensor param = machine.tensor(DType::kF64, {3}), m = machine.tensor(DType::kF64, {3}),
         v = machine.tensor(DType::kF64, {3});
  ops::AdamW rule = kRule;
  rule.step = 1;
  ops::adamw(machine.ctx, rule, machine.put(grad, DType::kF64), param, m, v);
  EXPECT_NEAR(values(param)[0], -0.01, 1e-6);
  EXPECT_NEAR(values(param)[1], 0.01, 1e-9);
  EXPECT_NEAR(values(param)[2], -0.01, 1e-9);
}

TEST(AdamW, NoGradientIsDecayAlone) {
  Machine machine(1);
  const Array<double> param = ref::random("p", {9}, 0, 1);
  Tensor p = machine.put(param, DType::kF64), m = machine.tensor(DType::kF64, {9}),
         v = machine.tensor(DType::kF64, {9});
  ops::adamw(machine.ctx, kRule, machine.tensor(DType::kF64, {9}), p, m, v);
  for (int64_t i = 0; i < 9; ++i) EXPECT_DOUBLE_EQ(values(p)[i], param[i] * (1 - 1e-3));
}

// Element-wise: a part alone gets the bits that it gets in the whole.
TEST(AdamW, DoesNotDependOnSharding) {
  Machine machine(2);
  constexpr int64_t kSize = 5000, kCut = 1237;
  const Array<double> grad = ref::random("g", {kSize}, 0, 1),
                      start = ref::random("p", {kSize}, 0, 1);
  const Tensor g = machine.put(grad, DType::kF32);
  Tensor p = machine.put(start, DType::kF32), q = machine.put(start, DType::kF32);
  Tensor m[2] = {machine.tensor(DType::kF32, {kSize}), machine.tensor(DType::kF32, {kSize})};
  Tensor v[2] = {machine.tensor(DType::kF32, {kSize}), machine.tensor(DType::kF32, {kSize})};
  ops::adamw(machine.ctx, kRule, g, p, m[0], v[0]);
  for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, kCut}, {kCut, kSize - kCut}})
    ops::adamw(machine.ctx, kRule, g.rows(begin, count), q.rows(begin, count),
               m[1].rows(begin, count), v[1].rows(begin, count));
  expect_bits_equal("param", q, p);
  expect_bits_equal("m", m[1], m[0]);
  expect_bits_equal("v", v[1], v[0]);
}

TEST(SumSquares, MatchesThePlainLoop) {
  Machine machine(2);
  for (const DType dtype : kOpTypes)
    for (int64_t n : {0, 1, 15, 4095, 4096, 4097, 20001}) {
      const Array<double> x = random_in("x", {n}, dtype);
      Tensor total = machine.tensor(DType::kF64, {1});
      store_element(total.raw(), DType::kF64, 0, 2.0);  // added to
      double want = 2.0;
      for (const double v : x.data) want += v * v;
      ops::sum_squares_acc(machine.ctx, machine.put(x, dtype), total);
      EXPECT_NEAR(values(total)[0], want, 1e-13 * want);
    }
}

TEST(Optim, SameBitsAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    const Shape shape{70001};
    const Tensor g = machine.put(ref::random("g", shape, 0, 1), DType::kF32);
    Tensor p = machine.put(ref::random("p", shape, 0, 1), DType::kF32);
    Tensor m = machine.put(ref::random("m", shape, 0, 1), DType::kBF16);
    Tensor v = machine.put(absolute(ref::random("v", shape, 0, 1)), DType::kBF16);
    Tensor total = machine.tensor(DType::kF64, {1});
    ops::adamw(machine.ctx, kRule, g, p, m, v);
    ops::sum_squares_acc(machine.ctx, p, total);
    return std::vector<Tensor>{p, m, v, total};
  });
}

TEST(Optim, NamesTheWrongArgument) {
  Machine machine(1);
  const Tensor g = machine.tensor(DType::kF32, {4});
  Tensor p = machine.tensor(DType::kF32, {4}), m = machine.tensor(DType::kF32, {4}),
         v = machine.tensor(DType::kF32, {4}), w = machine.tensor(DType::kF32, {2, 4});
  ops::AdamW rule = kRule;
  EXPECT_ERROR(ops::adamw(machine.ctx, rule, g, p, m, w),
               "v is f32 [2, 4] but param is f32 [4]; they must have the same shape");
  Tensor cut = machine.tensor(DType::kF32, {2, 4}).cols(0, 2),
         two = machine.tensor(DType::kF32, {2, 2});
  EXPECT_ERROR(ops::adamw(machine.ctx, rule, two, two, two, cut),
               "v must be dense, is a strided view of f32 [2, 2]");
  rule.step = 0;
  EXPECT_ERROR(ops::adamw(machine.ctx, rule, g, p, m, v),
               "AdamW's step is 0; the first update is step 1");
  rule.step = 1, rule.beta1 = 1.0;
  EXPECT_ERROR(ops::adamw(machine.ctx, rule, g, p, m, v), "beta1 = 1 must be in [0, 1)");
  rule.beta1 = 0.9, rule.beta2 = -0.5;
  EXPECT_ERROR(ops::adamw(machine.ctx, rule, g, p, m, v), "beta2 = -0.5 must be in [0, 1)");
  EXPECT_ERROR(ops::sum_squares_acc(machine.ctx, g, p), "total must have shape [1], has [4]");
}

}  // namespace
}  // namespace hadal::test
