// Cross-entropy against plain loops.
//
//   T tokens   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "ops/loss.h"

#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

// Every third token has no target.
std::vector<int32_t> targets_of(int64_t T, int64_t V) {
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < T; ++t)
    targets.push_back(t % 3 == 2 ? -1 : static_cast<int32_t>(t * 7 % V));
  return targets;
}

struct Loss {
  Array<double> lse, loss, dlogits;
};

Loss reference(const Array<double>& logits, const std::vector<int32_t>& targets, double scale) {
  const int64_t T = logits.dim(0), V = logits.dim(1);
  Loss r = {Array<double>({T}), Array<double>({T}), Array<double>(logits.shape)};
  for (int64_t t = 0; t < T; ++t) {
    double top = -INFINITY, sum = 0;
    for (int64_t v = 0; v < V; ++v) top = std::max(top, logits(t, v));
    for (int64_t v = 0; v < V; ++v) sum += std::exp(logits(t, v) - top);
    r.lse[t] = top + std::log(sum);
    const int32_t target = targets[static_cast<size_t>(t)];
    if (target < 0) continue;
    r.loss[t] = r.lse[t] - logits(t, target);
    for (int64_t v = 0; v < V; ++v)
      r.dlogits(t, v) = scale * (std::exp(logits(t, v) - r.lse[t]) - (v == target ? 1 : 0));
  }
  return r;
}

TEST(CrossEntropy, MatchesThePlainLoop) {
  Machine machine(2);
  constexpr double kScale = 0.25;
  for (const DType dtype : kOpTypes)
    for (const auto& [T, V] :
         {std::pair<int64_t, int64_t>{0, 5}, {1, 1}, {3, 17}, {7, 257}, {64, 1000}}) {
      const Array<double> logits = random_in("logits", {T, V}, dtype, 0, 4);
      const std::vector<int32_t> targets = targets_of(T, V);
      const Loss want = reference(logits, targets, kScale);
      const DType stat = stat_dtype(dtype);
      const Tensor logits_t = put_strided(machine, logits, dtype),
                   targets_t = machine.put(targets, {T});
      Tensor lse = machine.tensor(stat, {T}), loss = machine.tensor(stat, {T});
      Tensor dlogits = strided(machine, dtype, logits.shape);
      ops::cross_entropy_forward(machine.ctx, logits_t, targets_t, lse, loss);
      ops::cross_entropy_backward(machine.ctx, logits_t, targets_t, lse, kScale, dlogits);
      const double terms = static_cast<double>(V) / 16 + 16;
      expect_close("lse", values(lse), want.lse, op_bound(stat, terms, 30));
      expect_close("loss", values(loss), want.loss, op_bound(stat, terms, 30));
      expect_close("dlogits", values(dlogits), want.dlogits, op_bound(dtype, terms + 30, kScale));
    }
}

TEST(CrossEntropy, LargeLogitsNeitherOverflowNorVanish) {
  Machine machine(1);
  Array<double> logits({2, 3});
  logits.data = {3e38, 0, -3e38, -1e4, -1e4, -1e4};
  const Tensor l = machine.put(logits, DType::kF32), targets = machine.put({0, 1}, {2});
  Tensor lse = machine.tensor(DType::kF32, {2}), loss = machine.tensor(DType::kF32, {2});
  Tensor dlogits = machine.tensor(DType::kF32, {2, 3});
  ops::cross_entropy_forward(machine.ctx, l, targets, lse, loss);
  ops::cross_entropy_backward(machine.ctx, l, targets, lse, 3.0, dlogits);
  EXPECT_EQ(values(loss)[0], 0.0);
  EXPECT_NEAR(values(loss)[1], std::log(3.0), 1e-3);
  for (const double v : values(dlogits).data) EXPECT_TRUE(std::isfinite(v));
  EXPECT_EQ(values(dlogits)(0, 0), 0.0);
}

TEST(CrossEntropy, BackwardMayOverwriteTheLogits) {
  Machine machine(1);
  for (const DType dtype : kOpTypes) {
    const Array<double> logits = random_in("l", {5, 37}, dtype);
    Tensor l = machine.put(logits, dtype), dlogits = machine.tensor(dtype, {5, 37});
    const Tensor targets = machine.put(targets_of(5, 37), {5});
    Tensor lse = machine.tensor(stat_dtype(dtype), {5}),
           loss = machine.tensor(stat_dtype(dtype), {5});
    ops::cross_entropy_forward(machine.ctx, l, targets, lse, loss);
    ops::cross_entropy_backward(machine.ctx, l, targets, lse, 0.5, dlogits);
    ops::cross_entropy_backward(machine.ctx, l, targets, lse, 0.5, l);
    expect_bits_equal("dlogits", l, dlogits);
  }
}

TEST(CrossEntropy, SameBitsAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    const Tensor l = machine.put(ref::random("l", {150, 300}, 0, 2), DType::kBF16);
    const Tensor targets = machine.put(targets_of(150, 300), {150});
    Tensor lse = machine.tensor(DType::kF32, {150}), loss = machine.tensor(DType::kF32, {150});
    Tensor dlogits = machine.tensor(DType::kBF16, {150, 300});
    Tensor total = machine.tensor(DType::kF64, {1});
    ops::cross_entropy_forward(machine.ctx, l, targets, lse, loss);
    ops::cross_entropy_backward(machine.ctx, l, targets, lse, 0.5, dlogits);
    ops::sum_acc(machine.ctx, loss, total);
    return std::vector<Tensor>{lse, loss, dlogits, total};
  });
}

TEST(SumAcc, AddsInOrderInF64) {
  Machine machine(2);
  for (const DType dtype : kOpTypes)
    for (int64_t n : {0, 1, 7, 1000}) {
      const Array<double> x = random_in("x", {n}, dtype);
      Tensor total = machine.put(Array<double>{ref::random("old", {1}, 0, 1)}, DType::kF64);
      double want = 0;
      for (const double v : x.data) want += v;
      want += values(total)[0];
      ops::sum_acc(machine.ctx, machine.put(x, dtype), total);
      EXPECT_EQ(values(total)[0], want);
    }
}

TEST(CrossEntropy, NamesTheWrongArgument) {
  Machine machine(1);
  const Tensor l = machine.tensor(DType::kF32, {2, 3});
  Tensor lse = machine.tensor(DType::kF32, {2}), loss = machine.tensor(DType::kF32, {2});
  EXPECT_ERROR(ops::cross_entropy_forward(machine.ctx, l, machine.put({0, 3}, {2}), lse, loss),
               "target 3 of token 1 is outside the vocabulary of 3 ids; use -1 for no target");
  EXPECT_ERROR(ops::cross_entropy_forward(machine.ctx, l, machine.put({-2, 0}, {2}), lse, loss),
               "target -2 of token 0 is outside the vocabulary of 3 ids; use -1 for no target");
  Tensor wide = machine.tensor(DType::kF64, {2});
  EXPECT_ERROR(ops::cross_entropy_forward(machine.ctx, l, machine.put({0, 0}, {2}), wide, loss),
               "lse must be f32 because logits is f32, is f64 [2]");
  EXPECT_ERROR(ops::cross_entropy_forward(machine.ctx, l, machine.put({0}, {1}), lse, loss),
               "targets must have shape [2], has [1]");
  EXPECT_ERROR(ops::sum_acc(machine.ctx, lse, loss), "total must have shape [1], has [2]");
}

}  // namespace
}  // namespace hadal::test
