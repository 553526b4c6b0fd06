// The learner: a step does not depend on how it is cut, changes what it says, and nothing else.
// SPDX-License-Identifier: Apache-2.0
#include "train/learner.h"

#include <cmath>
#include <limits>

#include "tests/unit/train.h"

namespace hadal::train {
namespace {

using test::Machine;

constexpr int64_t kMaxTokens = 64;

// Six sequences of different lengths, one of them too short for the second MTP depth.
std::vector<Sequence> sequences() {
  return test::random_sequences(test::tiny_config(), {9, 4, 1, 7, 9, 2}, "learner");
}

std::vector<std::vector<Sequence>> cut(const std::vector<Sequence>& all, size_t size) {
  std::vector<std::vector<Sequence>> parts;
  for (size_t i = 0; i < all.size(); i += size)
    parts.emplace_back(all.begin() + static_cast<int64_t>(i),
                       all.begin() + static_cast<int64_t>(std::min(all.size(), i + size)));
  return parts;
}

// A learner with weights that make every gradient matter.
struct Subject {
  explicit Subject(DType compute, int num_threads = 1)
      : machine(num_threads), learner(machine.ctx, test::tiny_config(), compute, kMaxTokens) {
    Config config = test::tiny_config();
    config.initializer_range = 0.3;
    init_params(machine.ctx, config, 5, learner.masters().tree);
    learner.masters_changed();
  }
  Machine machine;
  Learner learner;
};

Recipe recipe() {
  Recipe r;
  r.lr = 1e-2;
  r.balance_alpha = 1e-2;
  r.bias_gamma = 1e-2;
  return r;
}

TEST(Learner, TheCutIntoMicroBatchesChangesOnlyRounding) {
  for (DType compute : {DType::kF64, DType::kF32}) {
    Subject whole(compute);
    const StepResult want = whole.learner.compute_gradients(cut(sequences(), 6), recipe());
    const test::Array<double> grads = ref::from_tensor<double>(whole.learner.grads().flat());
    EXPECT_GT(want.grad_norm, 0.1);
    // Each element is a sum of at most 32 tokens' terms, in another order.
    const double tolerance = 64 * test::unit_roundoff(compute);
    for (size_t size : {1, 2, 4}) {
      Subject s(compute);
      const StepResult got = s.learner.compute_gradients(cut(sequences(), size), recipe());
      test::expect_close_to_norm(concat("gradients in micro-batches of ", size),
                                 ref::from_tensor<double>(s.learner.grads().flat()), grads,
                                 tolerance);
      EXPECT_EQ(got.counts, want.counts);
      EXPECT_EQ(got.num_targets, want.num_targets);
      EXPECT_NEAR(got.main, want.main, tolerance * want.main);
      EXPECT_NEAR(got.balance, want.balance, tolerance * want.balance);
      ASSERT_EQ(got.mtp.size(), 2u);
      for (size_t k = 0; k < 2; ++k) EXPECT_NEAR(got.mtp[k], want.mtp[k], tolerance * want.mtp[k]);
    }
  }
}

// The sequences laid end to end as one, whose documents are they.
Sequence joined(const std::vector<Sequence>& all) {
  Sequence one;
  for (const Sequence& s : all) {
    one.documents.push_back(static_cast<int64_t>(one.ids.size()));
    one.ids.insert(one.ids.end(), s.ids.begin(), s.ids.end());
    one.targets.insert(one.targets.end(), s.targets.begin(), s.targets.end());
  }
  return one;
}

// Packed documents that are kept apart give the gradients of separate sequences, MTP included, bit
// for bit; without keeping them apart the gradients differ.
TEST(Learner, DocumentsKeptApartAreAsSequencesOfTheirOwn) {
  Recipe r = recipe();
  r.balance_alpha = 0.0;  // its mean is over whole sequences
  for (DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
    Subject separate(compute), packed(compute), mixed(compute);
    Sequence one = joined(sequences());
    const StepResult want = separate.learner.compute_gradients({sequences()}, r);
    const StepResult got = packed.learner.compute_gradients({{one}}, r);
    EXPECT_EQ(got.main, want.main);
    EXPECT_EQ(got.mtp, want.mtp);
    EXPECT_EQ(got.num_targets, want.num_targets);
    EXPECT_EQ(got.counts, want.counts);
    EXPECT_EQ(test::bits_of(packed.learner), test::bits_of(separate.learner));
    one.documents.clear();
    const StepResult other = mixed.learner.compute_gradients({{one}}, r);
    EXPECT_EQ(other.num_targets, want.num_targets);
    EXPECT_NE(other.main, want.main);
  }
}

// And two such rows are two sequences to the balance loss: cut in two, they give the same.
TEST(Learner, TheBalanceLossSeesWholeSequences) {
  const std::vector<Sequence> all = sequences();
  const Sequence a = joined({all[0], all[1], all[2]}), b = joined({all[3], all[4], all[5]});
  Subject whole(DType::kF64), parts(DType::kF64), apart(DType::kF64);
  Recipe r = recipe();
  r.balance_alpha = 10.0;
  const StepResult want = whole.learner.compute_gradients({{a, b}}, r);
  const StepResult got = parts.learner.compute_gradients({{a}, {b}}, r);
  EXPECT_NEAR(got.balance, want.balance, 1e-13 * want.balance);
  test::expect_close_to_norm("gradients", ref::from_tensor<double>(parts.learner.grads().flat()),
                             ref::from_tensor<double>(whole.learner.grads().flat()),
                             64 * test::unit_roundoff(DType::kF64));
  const StepResult separate = apart.learner.compute_gradients({all}, r);
  EXPECT_GT(std::abs(separate.balance - want.balance), 1e-3);  // of shorter sequences
}

TEST(Learner, MomentsInBf16AreRounded) {
  Machine machine(1);
  Config config = test::tiny_config();
  config.initializer_range = 0.3;
  Learner learner(machine.ctx, config, DType::kF32, kMaxTokens, {.moments = DType::kBF16});
  init_params(machine.ctx, config, 5, learner.masters().tree);
  Subject exact(DType::kF32);
  for (int64_t step = 1; step <= 3; ++step) {
    learner.step(cut(sequences(), 2), recipe(), step);
    exact.learner.step(cut(sequences(), 2), recipe(), step);
  }
  EXPECT_EQ(learner.first_moment().flat().dtype(), DType::kBF16);
  EXPECT_EQ(learner.masters().flat().dtype(), DType::kF32);
  // Moments within three roundings; weights moved by nearly the same.
  test::expect_relative_l2("v", ref::from_tensor<double>(learner.second_moment().flat()),
                           ref::from_tensor<double>(exact.learner.second_moment().flat()), 0.02);
  test::expect_relative_l2("weights", ref::from_tensor<double>(learner.masters().flat()),
                           ref::from_tensor<double>(exact.learner.masters().flat()), 0.01);
}

TEST(Learner, TheAverageFollowsTheWeights) {
  Machine machine(1);
  Config config = test::tiny_config();
  Learner learner(machine.ctx, config, DType::kF64, kMaxTokens, {.ema_decay = 0.75});
  init_params(machine.ctx, config, 5, learner.masters().tree);
  learner.start_average();
  std::vector<double> want = ref::from_tensor<double>(learner.masters().trained()).data;
  for (int64_t step = 1; step <= 4; ++step) {
    learner.step(cut(sequences(), 6), recipe(), step);
    const test::Array<double> now = ref::from_tensor<double>(learner.masters().trained());
    for (size_t i = 0; i < want.size(); ++i) want[i] = 0.75 * want[i] + 0.25 * now.data[i];
  }
  const test::Array<double> got = ref::from_tensor<double>(learner.average()->trained());
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got.data[i], want[i], 1e-15);
  // Router biases are not averaged.
  test::expect_bits_equal("bias", learner.average()->tree.layers[1].moe.gate.bias,
                          learner.masters().tree.layers[1].moe.gate.bias);
}

TEST(Learner, SameBitsTwiceAndAtAllThreadCounts) {
  for (DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
    std::vector<std::string> want;
    for (int num_threads : {1, 1, 2, 3}) {
      Subject s(compute, num_threads);
      for (int64_t step = 1; step <= 3; ++step) s.learner.step(cut(sequences(), 2), recipe(), step);
      const std::vector<std::string> bits = test::bits_of(s.learner);
      if (want.empty()) want = bits;
      ASSERT_TRUE(bits == want) << dtype_name(compute) << " at " << num_threads << " threads";
    }
  }
}

TEST(Learner, LearnsAlikeInEveryType) {
  std::vector<double> last;
  for (DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
    Subject s(compute);
    double first = 0.0, loss = 0.0;
    for (int64_t step = 1; step <= 25; ++step) {
      loss = s.learner.step(cut(sequences(), 6), recipe(), step).main;
      if (step == 1) first = loss;
    }
    EXPECT_LT(loss, 0.7 * first) << dtype_name(compute);
    last.push_back(loss);
  }
  EXPECT_NEAR(last[1], last[0], 1e-2 * last[0]);
  EXPECT_NEAR(last[2], last[0], 0.2 * last[0]);
}

TEST(Learner, Bf16ReadsACopyOfItsF32Masters) {
  Subject s(DType::kBF16);
  s.learner.step(cut(sequences(), 6), recipe(), 1);
  EXPECT_EQ(s.learner.master_dtype(), DType::kF32);
  const Tensor copy = s.learner.weights().head.data, master = s.learner.masters().tree.head;
  ASSERT_EQ(copy.dtype(), DType::kBF16);
  int64_t rounded = 0;
  for (int64_t i = 0; i < copy.num_elements(); ++i) {
    const float value = master.data<float>()[i];
    ASSERT_EQ(copy.data<bf16>()[i].bits, to_bf16(value).bits);
    rounded += to_f32(to_bf16(value)) != value ? 1 : 0;
  }
  EXPECT_GT(rounded, 0);
  EXPECT_EQ(s.learner.weights().norm.data.dtype(), DType::kF32);
}

TEST(Learner, EvaluateChangesNothing) {
  for (DType compute : {DType::kF32, DType::kBF16}) {
    Subject s(compute), untouched(compute);
    s.learner.step(cut(sequences(), 2), recipe(), 1);
    untouched.learner.step(cut(sequences(), 2), recipe(), 1);
    const Learner::Evaluation first = s.learner.evaluate(cut(sequences(), 3));
    const Learner::Evaluation again = s.learner.evaluate(cut(sequences(), 3));
    EXPECT_EQ(test::bits_of(s.learner), test::bits_of(untouched.learner));
    EXPECT_EQ(first.main_sum, again.main_sum);
    EXPECT_EQ(first.counts, again.counts);
    s.learner.step(cut(sequences(), 2), recipe(), 2);
    untouched.learner.step(cut(sequences(), 2), recipe(), 2);
    EXPECT_EQ(test::bits_of(s.learner), test::bits_of(untouched.learner));
  }
}

TEST(Learner, EvaluateMeasuresWhatAStepMeasures) {
  Subject s(DType::kF64);
  const Learner::Evaluation e = s.learner.evaluate(cut(sequences(), 4));
  const StepResult r = s.learner.compute_gradients(cut(sequences(), 6), recipe());
  EXPECT_EQ(e.num_targets, r.num_targets);
  EXPECT_NEAR(e.main_sum / static_cast<double>(e.num_targets), r.main, 1e-13);
  for (size_t k = 0; k < 2; ++k)
    EXPECT_NEAR(e.mtp_sum[k] / static_cast<double>(e.mtp_targets[k]), r.mtp[k], 1e-13);
  EXPECT_EQ(e.counts, r.counts);
}

// Router biases in the order of StepResult::counts.
std::vector<Tensor> biases(Learner& learner) {
  std::vector<Tensor> all;
  for (int64_t l = 0; l < learner.config().num_hidden_layers; ++l)
    if (learner.config().is_moe_layer(l))
      all.push_back(learner.masters().tree.layers[static_cast<size_t>(l)].moe.gate.bias);
  for (auto& module : learner.masters().tree.mtp) all.push_back(module.block.moe.gate.bias);
  return all;
}

TEST(Learner, BiasesMoveByGammaTimesTheSignOfTheWholeStepsCounts) {
  Subject s(DType::kF32);
  Recipe r = recipe();
  r.bias_gamma = 0.0078125;  // exact in f32, and so are its sums
  for (int64_t step = 1; step <= 4; ++step) {
    std::vector<std::vector<float>> before;
    for (const Tensor& b : biases(s.learner))
      before.emplace_back(b.data<float>(), b.data<float>() + b.dim(0));
    const StepResult result = s.learner.step(cut(sequences(), 1), r, step);
    ASSERT_EQ(result.counts.size(), 3u);  // one MoE layer and two MTP blocks
    int moved = 0;
    for (size_t m = 0; m < 3; ++m) {
      int64_t total = 0;
      for (int64_t count : result.counts[m]) total += count;
      const auto E = static_cast<int64_t>(result.counts[m].size());
      for (size_t e = 0; e < result.counts[m].size(); ++e) {
        const int64_t excess = E * result.counts[m][e] - total;
        const int sign = excess < 0 ? 1 : excess > 0 ? -1 : 0;
        ASSERT_EQ(biases(s.learner)[m].data<float>()[e],
                  before[m][e] + static_cast<float>(sign) * 0.0078125f);
        moved += sign != 0;
      }
    }
    EXPECT_GT(moved, 3);
  }
  r.bias_gamma = 0.0;
  const std::string before(static_cast<const char*>(biases(s.learner)[0].raw()), 32);
  s.learner.step(cut(sequences(), 1), r, 5);
  EXPECT_EQ(std::string(static_cast<const char*>(biases(s.learner)[0].raw()), 32), before);
}

TEST(Learner, ANonFiniteGradientNormIsRefusedAndChangesNothing) {
  Subject s(DType::kF32);
  StepResult measured = s.learner.step(cut(sequences(), 6), recipe(), 1);
  s.learner.compute_gradients(cut(sequences(), 6), recipe());
  const std::vector<std::string> before = test::bits_of(s.learner);
  measured.grad_norm = std::numeric_limits<double>::infinity();
  EXPECT_ERROR(s.learner.update(recipe(), 2, measured),
               "step 2: the gradient norm is inf; lower the learning rate or go on from an earlier "
               "checkpoint");
  EXPECT_TRUE(test::bits_of(s.learner) == before);
}

TEST(Learner, AStepFromBrokenWeightsIsRefusedAndChangesNothing) {
  for (DType compute : {DType::kF32, DType::kBF16}) {
    Subject s(compute);
    s.learner.step(cut(sequences(), 6), recipe(), 1);
    s.learner.masters().tree.head.data<float>()[3] = std::numeric_limits<float>::quiet_NaN();
    s.learner.masters_changed();
    std::vector<std::string> before = test::bits_of(s.learner);
    std::string message;
    try {
      s.learner.step(cut(sequences(), 2), recipe(), 2);
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_EQ(message.rfind("step 2: the gradient norm is ", 0), 0u) << message;
    std::vector<std::string> after = test::bits_of(s.learner);
    before.pop_back(), after.pop_back();  // the gradients themselves are not finite now
    EXPECT_TRUE(after == before);
  }
}

TEST(Learner, ClippingScalesTheGradients) {
  for (double clip_norm : {0.0, 0.25, 1e9}) {
    Subject s(DType::kF64);
    Recipe r = recipe();
    r.clip_norm = clip_norm;
    const StepResult result = s.learner.step(cut(sequences(), 6), r, 1);
    ASSERT_GT(result.grad_norm, 0.5);
    const double scale = clip_norm == 0.25 ? 0.25 / (result.grad_norm + 1e-6) : 1.0;
    // After the first step m is (1 - beta1) times the clipped gradient.
    const Tensor g = s.learner.grads().trained(), m = s.learner.first_moment().trained();
    double norm = 0.0;
    for (int64_t i = 0; i < g.num_elements(); ++i) {
      norm += g.data<double>()[i] * g.data<double>()[i];
      ASSERT_NEAR(m.data<double>()[i], 0.1 * scale * g.data<double>()[i], 1e-15);
    }
    EXPECT_NEAR(result.grad_norm, std::sqrt(norm), 1e-12);
  }
}

// With no gradient only decay moves anything: matrices, embeddings and gates, but no norms.
TEST(Learner, DecayIsForMatricesAlone) {
  Subject s(DType::kF64);
  s.learner.compute_gradients(cut(sequences(), 6), recipe());
  ops::fill(s.machine.ctx, 0.0, s.learner.grads().flat());
  Recipe r = recipe();
  r.bias_gamma = 0.0;
  StepResult measured;
  const std::string before = test::bits_of(s.learner)[0];
  const double* old = reinterpret_cast<const double*>(before.data());
  s.learner.update(r, 1, measured);
  for_each_param(
      s.learner.config(),
      [&](const ParamInfo& info, Tensor& w) {
        const auto* base = static_cast<const double*>(s.learner.masters().flat().raw());
        const bool decayed = info.shape.rank == 2;
        for (int64_t i = 0; i < w.num_elements(); ++i) {
          const double was = old[w.data<double>() - base + i];
          ASSERT_DOUBLE_EQ(w.data<double>()[i], decayed ? was * (1.0 - 1e-2 * 0.1) : was)
              << info.name;
        }
      },
      s.learner.masters().tree);
}

TEST(Learner, NoTargetsAreNoLossAndNoGradient) {
  Subject s(DType::kF64);
  std::vector<Sequence> all = sequences();
  for (Sequence& sequence : all) std::fill(sequence.targets.begin(), sequence.targets.end(), -1);
  Recipe r = recipe();
  r.balance_alpha = 0.0;
  const StepResult result = s.learner.compute_gradients(cut(all, 2), r);
  EXPECT_EQ(result.main, 0.0);
  EXPECT_EQ(result.num_targets, 0);
  EXPECT_EQ(result.grad_norm, 0.0);
}

TEST(Learner, RefusesTypesThatItCannotComputeIn) {
  Machine machine(1);
  EXPECT_ERROR(Learner(machine.ctx, test::tiny_config(), DType::kF16, kMaxTokens),
               "training computes in f64, f32 or bf16, not f16");
}

}  // namespace
}  // namespace hadal::train
