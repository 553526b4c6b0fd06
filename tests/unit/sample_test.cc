// Sampling against a sorted list: greedy, top-k, top-p, ties, and the generator of (seed,
// position).
//
//   T rows   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "ops/sample.h"

#include <map>
#include <numeric>

#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

using ops::SampleRule;

std::vector<int64_t> sample(Machine& machine, const SampleRule& rule, const Tensor& logits,
                            const std::vector<int32_t>& positions) {
  const auto T = static_cast<int64_t>(positions.size());
  Tensor tokens = machine.tensor(DType::kI32, {T});
  ops::sample(machine.ctx, rule, logits, machine.put(positions, {T}), tokens);
  return integers(tokens);
}

std::vector<int32_t> count_up(int64_t T) {
  std::vector<int32_t> p(static_cast<size_t>(T));
  std::iota(p.begin(), p.end(), 0);
  return p;
}

// Ids by falling probability (ties by id), cut to k, then to the smallest set of mass p; the token
// where the cumulative mass passes u.
int64_t reference(const SampleRule& rule, const double* logits, int64_t V, int64_t position) {
  std::vector<int64_t> ids(static_cast<size_t>(V));
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  if (rule.temperature == 0) return ids[0];
  if (rule.top_k > 0) ids.resize(static_cast<size_t>(std::min(rule.top_k, V)));
  const auto weight = [&](int64_t id) {
    return std::exp((logits[id] - logits[ids[0]]) / rule.temperature);
  };
  double total = 0, mass = 0;
  for (int64_t id : ids) total += weight(id);
  if (rule.top_p < 1) {
    size_t count = 0;
    while (count < ids.size() && mass < rule.top_p * total) mass += weight(ids[count++]);
    ids.resize(count);
    total = mass;
  }
  const double u = Rng(rule.seed, stream_id("sample")).uniform(static_cast<uint64_t>(position));
  mass = 0;
  for (int64_t id : ids) {
    mass += weight(id);
    if (mass > u * total) return id;
  }
  return ids.back();
}

TEST(Sample, MatchesTheSortedList) {
  Machine machine(2);
  for (const DType dtype : kOpTypes)
    for (int64_t V : {1, 2, 7, 100})
      for (const SampleRule& rule :
           {SampleRule{}, SampleRule{.temperature = 1.0}, SampleRule{.temperature = 0.3, .seed = 5},
            SampleRule{.temperature = 2.0, .top_k = 5}, SampleRule{.temperature = 1.0, .top_k = 1},
            SampleRule{.temperature = 1.0, .top_p = 0.7},
            SampleRule{.temperature = 1.5, .top_k = 20, .top_p = 0.5, .seed = 9},
            SampleRule{.temperature = 1.0, .top_k = 1000, .top_p = 1e-9}}) {
        const int64_t T = 50;
        const Array<double> logits = random_in(concat("l", V), {T, V}, dtype, 0, 2);
        const auto got = sample(machine, rule, put_strided(machine, logits, dtype), count_up(T));
        for (int64_t t = 0; t < T; ++t)
          ASSERT_EQ(got[static_cast<size_t>(t)],
                    reference(rule, &logits.data[static_cast<size_t>(t * V)], V, t))
              << "V " << V << ", token " << t;
      }
  EXPECT_TRUE(sample(machine, {}, machine.tensor(DType::kF32, {0, 3}), {}).empty());
}

TEST(Sample, TiesGoToTheSmallerId) {
  Machine machine(1);
  Array<double> logits({1, 4});
  logits.data = {1, 3, 3, 3};
  const Tensor l = machine.put(logits, DType::kF32);
  EXPECT_EQ(sample(machine, {}, l, {0})[0], 1);
  for (int32_t p = 0; p < 20; ++p) {
    EXPECT_EQ(sample(machine, {.temperature = 1.0, .top_k = 1}, l, {p})[0], 1);
    EXPECT_LE(sample(machine, {.temperature = 1.0, .top_k = 2}, l, {p})[0], 2);
  }
}

// A draw is a function of logits, seed and position: not of its row, its neighbours or the call.
TEST(Sample, DependsOnSeedAndPositionAlone) {
  Machine machine(2);
  const Array<double> row = ref::random("row", {1, 50}, 0, 1);
  Array<double> many({30, 50});
  for (int64_t t = 0; t < 30; ++t)
    for (int64_t v = 0; v < 50; ++v) many(t, v) = row[v];
  const SampleRule rule{.temperature = 1.0, .seed = 3};
  const Tensor one = machine.put(row, DType::kF32), all = machine.put(many, DType::kF32);
  const auto together = sample(machine, rule, all, count_up(30));
  std::map<int64_t, int> seen;
  for (int32_t p = 0; p < 30; ++p) {
    ASSERT_EQ(sample(machine, rule, one, {p})[0], together[static_cast<size_t>(p)]);
    ++seen[together[static_cast<size_t>(p)]];
  }
  EXPECT_GT(seen.size(), 5u);
  EXPECT_NE(sample(machine, {.temperature = 1.0, .seed = 4}, all, count_up(30)), together);
}

TEST(Sample, FrequenciesAreTheProbabilities) {
  Machine machine(2);
  constexpr int64_t kDraws = 20000;
  const double p[] = {0.5, 0.3, 0.15, 0.05};
  Array<double> logits({kDraws, 4});
  for (int64_t t = 0; t < kDraws; ++t)
    for (int64_t v = 0; v < 4; ++v) logits(t, v) = 2.0 * std::log(p[v]);
  const auto tokens = sample(machine, {.temperature = 2.0, .seed = 1},
                             machine.put(logits, DType::kF64), count_up(kDraws));
  for (int64_t v = 0; v < 4; ++v) {
    const double share = static_cast<double>(std::count(tokens.begin(), tokens.end(), v)) / kDraws;
    EXPECT_NEAR(share, p[v], 5 * std::sqrt(p[v] * (1 - p[v]) / kDraws));
  }
}

TEST(Sample, ImpossibleTokensAreNeverDrawn) {
  Machine machine(1);
  Array<double> logits({1, 3});
  logits.data = {-INFINITY, 0.0, -INFINITY};
  const Tensor l = machine.put(logits, DType::kF32);
  for (int32_t p = 0; p < 50; ++p) EXPECT_EQ(sample(machine, {.temperature = 1.0}, l, {p})[0], 1);
  // A temperature near 0 is greedy.
  const Array<double> row = ref::random("row", {1, 9}, 0, 1);
  const Tensor r = machine.put(row, DType::kF32);
  EXPECT_EQ(sample(machine, {.temperature = 1e-300}, r, {7}), sample(machine, {}, r, {7}));
}

TEST(Sample, SameTokensAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    Tensor tokens = machine.tensor(DType::kI32, {64});
    ops::sample(machine.ctx, {.temperature = 1.0, .top_k = 40, .top_p = 0.9, .seed = 2},
                machine.put(ref::random("l", {64, 500}, 0, 1), DType::kF32),
                machine.put(count_up(64), {64}), tokens);
    return std::vector<Tensor>{tokens};
  });
}

TEST(Sample, NamesTheWrongArgument) {
  Machine machine(1);
  const Tensor l = machine.tensor(DType::kF32, {1, 3});
  EXPECT_ERROR(sample(machine, {.temperature = -1.0}, l, {0}),
               "temperature = -1 must be 0 (greedy) or a positive number");
  EXPECT_ERROR(sample(machine, {.temperature = INFINITY}, l, {0}),
               "temperature = inf must be 0 (greedy) or a positive number");
  EXPECT_ERROR(sample(machine, {.top_k = -1}, l, {0}),
               "top_k = -1 must be 0 (all) or a positive number");
  EXPECT_ERROR(sample(machine, {.top_p = 0.0}, l, {0}), "top_p = 0 must be in (0, 1]");
  EXPECT_ERROR(sample(machine, {.top_p = 1.5}, l, {0}), "top_p = 1.5 must be in (0, 1]");
  EXPECT_ERROR(sample(machine, {}, machine.tensor(DType::kF32, {1, 0}), {0}),
               "logits is f32 [1, 0]; there is no token to choose");
  for (const double bad :
       {static_cast<double>(NAN), static_cast<double>(INFINITY), -static_cast<double>(INFINITY)}) {
    Array<double> logits({2, 2});
    logits(1, 0) = logits(1, 1) = bad;
    EXPECT_ERROR(sample(machine, {}, machine.put(logits, DType::kF32), {0, 1}),
                 "row 1 of the logits has NaN or no finite largest element: nothing can be drawn "
                 "from it");
  }
}

TEST(Sample, TopLogitsAreASortedListsFirst) {
  Machine machine(2);
  const int64_t T = 4, V = 500, K = 20;
  for (DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    const Tensor logits = machine.put(ref::random("logits", {T, V}, 0, 2), dtype);
    if (dtype != DType::kBF16) store_element(logits.raw(), dtype, V + 7, std::nan(""));
    Tensor ids = machine.tensor(DType::kI32, {T, K}),
           values = machine.tensor(stat_dtype(dtype), {T, K});
    ops::top_logits(machine.ctx, logits, ids, values);
    for (int64_t t = 0; t < T; ++t) {
      std::vector<std::pair<double, int64_t>> sorted;
      for (int64_t v = 0; v < V; ++v) {
        const double value = load_element(logits.raw(), dtype, t * V + v);
        sorted.emplace_back(std::isnan(value) ? INFINITY : -value, v);
      }
      std::sort(sorted.begin(), sorted.end());
      for (int64_t k = 0; k < K; ++k) {
        const auto& [value, id] = sorted[static_cast<size_t>(k)];
        EXPECT_EQ(ids.data<int32_t>()[t * K + k], id) << dtype_name(dtype) << " " << t << " " << k;
        EXPECT_EQ(load_element(values.raw(), values.dtype(), t * K + k), -value);
      }
    }
  }
  Tensor ids = machine.tensor(DType::kI32, {1, 6}), values = machine.tensor(DType::kF32, {1, 6});
  EXPECT_ERROR(ops::top_logits(machine.ctx, machine.tensor(DType::kF32, {1, 5}), ids, values),
               "ids is i32 [1, 6]; the largest of f32 [1, 5] are [1, at most 5]");
}

}  // namespace
}  // namespace hadal::test
