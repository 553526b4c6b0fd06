// The gate, the balance loss and the bias update against plain loops.
//
//   T tokens   S sequences   E experts   G groups   K choices of a token
// SPDX-License-Identifier: Apache-2.0
#include "ops/routing.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

using ops::GateRule;
using ops::GroupScore;
using ops::Scoring;

const struct {
  int64_t E;
  GateRule rule;
} kRules[] = {
    {1, {1, 1, 1, Scoring::kSigmoid, GroupScore::kTopTwoSum, true, 1.0}},
    {8, {4, 2, 3, Scoring::kSigmoid, GroupScore::kTopTwoSum, true, 2.5}},
    {8, {1, 1, 8, Scoring::kSigmoid, GroupScore::kTopTwoSum, true, 1.0}},
    {21, {7, 3, 5, Scoring::kSigmoid, GroupScore::kTopTwoSum, false, 1.5}},
    {6, {6, 4, 2, Scoring::kSigmoid, GroupScore::kTopTwoSum, true, 1.0}},  // groups of one
    {20, {5, 2, 4, Scoring::kSoftmax, GroupScore::kMax, false, 16.0}},
    {20, {5, 5, 6, Scoring::kSoftmax, GroupScore::kMax, true, 1.0}},
};

// The `count` best of `ids` by value; ties go to the smaller id.
std::vector<int64_t> best(std::vector<int64_t> ids, const std::vector<double>& value,
                          int64_t count) {
  std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) {
    return value[static_cast<size_t>(a)] > value[static_cast<size_t>(b)];
  });
  ids.resize(static_cast<size_t>(count));
  std::sort(ids.begin(), ids.end());
  return ids;
}
std::vector<int64_t> count_up(int64_t n) {
  std::vector<int64_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

std::vector<double> scores_of(Scoring scoring, const double* logits, int64_t E) {
  std::vector<double> s;
  double total = 0;
  for (int64_t e = 0; e < E; ++e) {
    s.push_back(scoring == Scoring::kSigmoid ? 1 / (1 + std::exp(-logits[e]))
                                             : std::exp(logits[e]));
    total += s.back();
  }
  if (scoring == Scoring::kSoftmax)
    for (double& v : s) v /= total;
  return s;
}

std::vector<int64_t> chosen(const GateRule& rule, const std::vector<double>& biased) {
  const auto E = static_cast<int64_t>(biased.size()), size = E / rule.n_group;
  std::vector<double> group;
  for (int64_t g = 0; g < rule.n_group; ++g) {
    std::vector<double> members(biased.begin() + g * size, biased.begin() + (g + 1) * size);
    std::sort(members.rbegin(), members.rend());
    group.push_back(rule.group_score == GroupScore::kTopTwoSum && size > 1 ? members[0] + members[1]
                                                                           : members[0]);
  }
  std::vector<int64_t> open;
  for (int64_t g : best(count_up(rule.n_group), group, rule.topk_group))
    for (int64_t e = g * size; e < (g + 1) * size; ++e) open.push_back(e);
  return best(open, biased, rule.num_experts_per_tok);
}

// Weights of a token's choices as a function of its logits, with the choice held fixed.
std::vector<double> weights_of(const GateRule& rule, const double* logits, int64_t E,
                               const std::vector<int64_t>& choice) {
  const std::vector<double> s = scores_of(rule.scoring, logits, E);
  double total = 0;
  std::vector<double> w;
  for (int64_t e : choice) w.push_back(s[static_cast<size_t>(e)]);
  for (double v : w) total += v;
  for (double& v : w)
    v = v / (rule.norm_topk_prob ? total + 1e-20 : 1.0) * rule.routed_scaling_factor;
  return w;
}

struct Gate {
  Tensor scores, idx, weight;
};
Gate run_gate(Machine& machine, const GateRule& rule, const Tensor& logits, const Tensor& bias) {
  const int64_t T = logits.dim(0), E = logits.dim(1), K = rule.num_experts_per_tok;
  Gate g = {machine.tensor(logits.dtype(), {T, E}), machine.tensor(DType::kI32, {T, K}),
            machine.tensor(logits.dtype(), {T, K})};
  ops::gate_forward(machine.ctx, rule, logits, bias, g.scores, g.idx, g.weight);
  return g;
}

TEST(Gate, MatchesThePlainLoop) {
  Machine machine(2);
  for (const DType dtype : {DType::kF64, DType::kF32})
    for (const auto& [E, rule] : kRules)
      for (int64_t T : {0, 1, 33}) {
        const Array<double> logits = random_in(concat("logits", E), {T, E}, dtype, 0, 1.5);
        // Biases large enough that biased scores are negative and the choice is another.
        const Array<double> bias = random_in(concat("bias", E), {E}, dtype, -0.6, 0.5);
        const Gate g =
            run_gate(machine, rule, machine.put(logits, dtype), machine.put(bias, dtype));
        const std::vector<int64_t> idx = integers(g.idx);
        const int64_t K = rule.num_experts_per_tok;
        for (int64_t t = 0; t < T; ++t) {
          const std::vector<double> s = scores_of(rule.scoring, &logits(t, 0), E);
          std::vector<double> biased;
          for (int64_t e = 0; e < E; ++e) {
            ASSERT_NEAR(values(g.scores)(t, e), s[static_cast<size_t>(e)], op_bound(dtype, 16, 1));
            // The choice is made from the scores that the op itself has.
            biased.push_back(dtype == DType::kF64 ? values(g.scores)(t, e) + bias[e]
                                                  : static_cast<float>(values(g.scores)(t, e)) +
                                                        static_cast<float>(bias[e]));
          }
          const std::vector<int64_t> choice = chosen(rule, biased);
          ASSERT_EQ((std::vector<int64_t>(idx.begin() + t * K, idx.begin() + (t + 1) * K)), choice);
          const std::vector<double> w = weights_of(rule, &logits(t, 0), E, choice);
          for (int64_t k = 0; k < K; ++k)
            ASSERT_NEAR(values(g.weight)(t, k), w[static_cast<size_t>(k)],
                        op_bound(dtype, 32, rule.routed_scaling_factor));
        }
      }
}

TEST(Gate, TiesGoToTheSmallerIndex) {
  Machine machine(1);
  const GateRule rule{4, 2, 3, Scoring::kSigmoid, GroupScore::kTopTwoSum, true, 1.0};
  const Gate g = run_gate(machine, rule, machine.tensor(DType::kF32, {1, 8}),
                          machine.tensor(DType::kF32, {8}));
  EXPECT_EQ(integers(g.idx), (std::vector<int64_t>{0, 1, 2}));
  for (const double w : values(g.weight).data) EXPECT_NEAR(w, 1.0 / 3, 1e-7);
}

// The bias decides who is chosen and nothing else.
TEST(Gate, TheBiasMovesTheChoiceNotTheWeights) {
  Machine machine(1);
  const GateRule rule{1, 1, 2, Scoring::kSigmoid, GroupScore::kTopTwoSum, false, 1.0};
  Array<double> bias({4}), logits({1, 4});
  logits.data = {3, 2, 1, 0};
  bias.data = {0, -5, 0, 5};
  const Gate g =
      run_gate(machine, rule, machine.put(logits, DType::kF64), machine.put(bias, DType::kF64));
  EXPECT_EQ(integers(g.idx), (std::vector<int64_t>{0, 3}));
  EXPECT_DOUBLE_EQ(values(g.weight)[0], 1 / (1 + std::exp(-3.0)));
  EXPECT_DOUBLE_EQ(values(g.weight)[1], 0.5);
}

// DeepSeek-V3: 8 experts of 256 in 8 groups, a group a node, and a token goes to 4 nodes at most
// (report, 2.1.2). Without the limit it would often go to more.
TEST(Gate, SendsATokenToAtMostFourNodes) {
  Machine machine(2);
  constexpr int64_t kTokens = 2000, kExperts = 256, kNodeExperts = 32;
  GateRule rule{8, 4, 8, Scoring::kSigmoid, GroupScore::kTopTwoSum, true, 2.5};
  const Array<double> logits = random_in("logits", {kTokens, kExperts}, DType::kF32, 0, 1.5);
  const Array<double> bias = random_in("bias", {kExperts}, DType::kF32, -0.2, 0.2);
  const auto most_nodes = [&] {
    const Gate g =
        run_gate(machine, rule, machine.put(logits, DType::kF32), machine.put(bias, DType::kF32));
    const std::vector<int64_t> idx = integers(g.idx);
    size_t most = 0;
    for (int64_t t = 0; t < kTokens; ++t) {
      std::set<int64_t> experts, nodes;
      for (int64_t k = 0; k < 8; ++k) {
        experts.insert(idx[static_cast<size_t>(t * 8 + k)]);
        nodes.insert(idx[static_cast<size_t>(t * 8 + k)] / kNodeExperts);
      }
      EXPECT_EQ(experts.size(), 8u);
      most = std::max(most, nodes.size());
    }
    return most;
  };
  EXPECT_EQ(most_nodes(), 4u);
  rule.topk_group = 8;
  EXPECT_GT(most_nodes(), 4u);
}

TEST(Gate, BackwardIsTheSlopeOfTheWeights) {
  Machine machine(2);
  constexpr double kStep = 1e-6;
  for (const auto& [E, rule] : kRules) {
    const int64_t T = 3, K = rule.num_experts_per_tok;
    Array<double> logits = ref::random("logits", {T, E}, 0, 1);
    const Array<double> bias = ref::random("bias", {E}, 0, 0.3),
                        dw = ref::random("dw", {T, K}, 0, 1);
    const Gate g =
        run_gate(machine, rule, machine.put(logits, DType::kF64), machine.put(bias, DType::kF64));
    Tensor dlogits = machine.put(ref::random("old", {T, E}, 0, 1), DType::kF64);
    ops::gate_backward(machine.ctx, rule, g.scores, g.idx, machine.put(dw, DType::kF64), dlogits);
    const std::vector<int64_t> idx = integers(g.idx);
    for (int64_t t = 0; t < T; ++t) {
      const std::vector<int64_t> choice(idx.begin() + t * K, idx.begin() + (t + 1) * K);
      for (int64_t e = 0; e < E; ++e) {
        double slope = 0;
        for (const double step : {kStep, -kStep}) {
          logits(t, e) += step;
          const std::vector<double> w = weights_of(rule, &logits(t, 0), E, choice);
          for (int64_t k = 0; k < K; ++k)
            slope += dw(t, k) * w[static_cast<size_t>(k)] / (step * 2);
          logits(t, e) -= step;
        }
        ASSERT_NEAR(values(dlogits)(t, e), slope, 1e-7 * rule.routed_scaling_factor);
      }
    }
  }
}

// Sequences of 1, 0, 5 and 9 tokens.
const std::vector<int32_t> kOffsets = {0, 1, 1, 6, 15};

Packed packed(Machine& machine, const std::vector<int32_t>& offsets) {
  Packed seq;
  seq.num_tokens = offsets.back();
  seq.num_seqs = static_cast<int64_t>(offsets.size()) - 1;
  seq.offsets = machine.put(offsets, {seq.num_seqs + 1});
  return seq;
}

// Sum over experts of f_i P_i of one sequence, with f given.
double balance_of(const GateRule& rule, const Array<double>& logits, int64_t begin, int64_t end,
                  const std::vector<double>& f) {
  const int64_t E = logits.dim(1);
  double loss = 0;
  for (int64_t t = begin; t < end; ++t) {
    const std::vector<double> s = scores_of(rule.scoring, &logits(t, 0), E);
    const double total = std::accumulate(s.begin(), s.end(), 0.0);
    for (int64_t e = 0; e < E; ++e)
      loss += f[static_cast<size_t>(e)] * s[static_cast<size_t>(e)] / total /
              static_cast<double>(end - begin);
  }
  return loss;
}

TEST(BalanceLoss, MatchesThePlainLoopAndItsSlope) {
  Machine machine(2);
  constexpr double kScale = 0.5, kStep = 1e-6;
  for (const auto& [E, rule] : kRules) {
    Array<double> logits = ref::random("logits", {15, E}, 0, 1);
    const int64_t S = 4, K = rule.num_experts_per_tok;
    const Packed seq = packed(machine, kOffsets);
    const Gate g = run_gate(machine, rule, machine.put(logits, DType::kF64),
                            machine.put(ref::random("bias", {E}, 0, 1), DType::kF64));
    Tensor loss = machine.tensor(DType::kF64, {S}), fraction = machine.tensor(DType::kF64, {S, E});
    const Array<double> old = ref::random("old", {15, E}, 0, 1);
    Tensor dlogits = machine.put(old, DType::kF64);
    ops::balance_loss_forward(machine.ctx, rule, seq, g.scores, loss, fraction);
    ops::balance_loss_backward(machine.ctx, rule, seq, kScale, g.scores, fraction, dlogits);
    for (int64_t s = 0; s < S; ++s) {
      const int64_t begin = kOffsets[static_cast<size_t>(s)],
                    end = kOffsets[static_cast<size_t>(s) + 1];
      std::vector<double> f(static_cast<size_t>(E), 0.0);
      for (int64_t t = begin; t < end; ++t)
        for (int64_t e : best(count_up(E), scores_of(rule.scoring, &logits(t, 0), E), K))
          f[static_cast<size_t>(e)] +=
              static_cast<double>(E) / static_cast<double>(K * (end - begin));
      for (int64_t e = 0; e < E; ++e)
        ASSERT_NEAR(values(fraction)(s, e), f[static_cast<size_t>(e)], 1e-14);
      ASSERT_NEAR(values(loss)[s], balance_of(rule, logits, begin, end, f), 1e-13);
      for (int64_t t = begin; t < end; ++t)
        for (int64_t e = 0; e < E; ++e) {
          double slope = 0;
          for (const double step : {kStep, -kStep}) {
            logits(t, e) += step;
            slope += balance_of(rule, logits, begin, end, f) / (2 * step);
            logits(t, e) -= step;
          }
          ASSERT_NEAR(values(dlogits)(t, e), old(t, e) + kScale * slope, 1e-8);
        }
    }
  }
}

// All experts alike: the loss is 1, its least value.
TEST(BalanceLoss, IsOneWhenBalanced) {
  Machine machine(1);
  const GateRule rule{1, 1, 4, Scoring::kSigmoid, GroupScore::kTopTwoSum, true, 1.0};
  Tensor scores = machine.tensor(DType::kF32, {3, 4}), loss = machine.tensor(DType::kF32, {1}),
         fraction = machine.tensor(DType::kF32, {1, 4});
  for (int64_t i = 0; i < 12; ++i) store_element(scores.raw(), DType::kF32, i, 0.5);
  ops::balance_loss_forward(machine.ctx, rule, packed(machine, {0, 3}), scores, loss, fraction);
  EXPECT_NEAR(values(loss)[0], 1.0, 1e-6);
}

TEST(CountChoices, AddsUpExactly) {
  Machine machine(1);
  Tensor counts = machine.tensor(DType::kI64, {4});
  const int64_t large = int64_t{1} << 40;  // more than f32 holds exactly
  counts.data<int64_t>()[2] = large;
  ops::count_choices(machine.ctx, machine.put({0, 2, 2, 3, 2, 0}, {3, 2}), counts);
  EXPECT_EQ(std::vector<int64_t>(counts.data<int64_t>(), counts.data<int64_t>() + 4),
            (std::vector<int64_t>{2, 0, large + 3, 1}));
  ops::count_choices(machine.ctx, machine.tensor(DType::kI32, {0, 2}), counts);
  EXPECT_EQ(counts.data<int64_t>()[0], 2);
  EXPECT_ERROR(ops::count_choices(machine.ctx, machine.put({0, 4}, {1, 2}), counts),
               "choice 1 of token 0 is expert 4, but there are 4 experts");
}

TEST(BiasUpdate, MovesByGammaTowardsTheMean) {
  Machine machine(1);
  const Array<double> old = random_in("bias", {5}, DType::kF32);
  Tensor counts = machine.tensor(DType::kI64, {5}), bias = machine.put(old, DType::kF32);
  // The mean is 2^40 + 1: only exact integers tell the third from it.
  const int64_t base = int64_t{1} << 40;
  const int64_t values_of[] = {base, base + 2, base + 1, 0, 2 * base + 2};
  const int sign[] = {1, -1, 0, 1, -1};
  std::copy(std::begin(values_of), std::end(values_of), counts.data<int64_t>());
  ops::bias_update(machine.ctx, counts, 0.125, bias);
  for (size_t e = 0; e < 5; ++e)
    EXPECT_EQ(bias.data<float>()[e],
              static_cast<float>(old.data[e]) + static_cast<float>(sign[e]) * 0.125f);
}

TEST(Routing, SameBitsAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    const auto& [E, rule] = kRules[3];
    const Packed seq = packed(machine, {0, 100, 350, 351, 700});
    const Gate g =
        run_gate(machine, rule, machine.put(ref::random("l", {700, E}, 0, 1), DType::kF32),
                 machine.put(ref::random("b", {E}, 0, 1), DType::kF32));
    Tensor loss = machine.tensor(DType::kF32, {4}), fraction = machine.tensor(DType::kF32, {4, E}),
           dlogits = machine.tensor(DType::kF32, {700, E});
    ops::gate_backward(machine.ctx, rule, g.scores, g.idx, g.weight, dlogits);
    ops::balance_loss_forward(machine.ctx, rule, seq, g.scores, loss, fraction);
    ops::balance_loss_backward(machine.ctx, rule, seq, 0.1, g.scores, fraction, dlogits);
    return std::vector<Tensor>{g.scores, g.idx, g.weight, loss, fraction, dlogits};
  });
}

TEST(Gate, NamesTheWrongArgument) {
  Machine machine(1);
  const Tensor logits = machine.tensor(DType::kF32, {2, 8}),
               bias = machine.tensor(DType::kF32, {8});
  const auto gate = [&](GateRule rule) { run_gate(machine, rule, logits, bias); };
  const auto sigmoid = Scoring::kSigmoid;
  const auto two = GroupScore::kTopTwoSum;
  EXPECT_ERROR(gate({3, 1, 1, sigmoid, two, true, 1.0}),
               "8 experts cannot be split into n_group = 3 equal groups");
  EXPECT_ERROR(gate({4, 5, 1, sigmoid, two, true, 1.0}),
               "topk_group = 5 must be from 1 to n_group = 4");
  EXPECT_ERROR(gate({4, 2, 5, sigmoid, two, true, 1.0}),
               "num_experts_per_tok = 5 must be from 1 to the 4 experts of the kept groups");
  EXPECT_ERROR(run_gate(machine, kRules[1].rule, logits, machine.tensor(DType::kF32, {7})),
               "bias must have shape [8], has [7]");
  EXPECT_ERROR(run_gate(machine, kRules[1].rule, machine.tensor(DType::kBF16, {2, 8}), bias),
               "logits must be f32 or f64, is bf16 [2, 8]");
  Tensor dlogits = machine.tensor(DType::kF32, {1, 8});
  EXPECT_ERROR(ops::gate_backward(machine.ctx, kRules[1].rule, machine.tensor(DType::kF32, {1, 8}),
                                  machine.put({0, 8, 1}, {1, 3}),
                                  machine.tensor(DType::kF32, {1, 3}), dlogits),
               "choice 1 of token 0 is expert 8, but there are 8 experts");
}

}  // namespace
}  // namespace hadal::test
