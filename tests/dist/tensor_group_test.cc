// Tensor groups of two and three ranks against one rank, where parallel_check does not go: without
// a query latent, and with so few tokens that a rank has none.
// SPDX-License-Identifier: Apache-2.0
#include "model/tensor_group.h"

#include <cmath>

#include "parallel/comm_host.h"
#include "parallel/launch.h"
#include "tests/unit/train.h"

namespace hadal::train {
namespace {

constexpr double kBound = 1e-12;  // relative; sums in another order in f64

Config model(int64_t q_lora_rank) {
  Config c = test::tiny_config();
  c.num_attention_heads = 6;
  c.intermediate_size = 12;
  c.q_lora_rank = q_lora_rank;
  c.validate();
  return c;
}

// Losses and gradient norms of two steps.
std::vector<double> train(const Config& config, const std::vector<int64_t>& lengths, Team* team) {
  test::Machine machine(1);
  Learner learner(machine.ctx, config, DType::kF64, 64, {.team = team});
  init_params(machine.ctx, config, 5, learner.masters().tree,
              team == nullptr ? Share() : team->share().tensor);
  learner.masters_changed();
  const Recipe recipe{.lr = 1e-3, .balance_alpha = 1e-2};
  std::vector<double> values;
  for (int64_t step = 1; step <= 2; ++step) {
    const StepResult r =
        learner.step({test::random_sequences(config, lengths, "group")}, recipe, step);
    values.insert(values.end(), {r.main, r.balance, r.grad_norm});
    values.insert(values.end(), r.mtp.begin(), r.mtp.end());
  }
  return values;
}

void expect_equals_one_rank(int64_t q_lora_rank, int tp, const std::vector<int64_t>& lengths) {
  const Config config = model(q_lora_rank);
  const std::vector<double> want = train(config, lengths, nullptr);
  World world({.num_ranks = tp});
  ASSERT_NO_THROW(launch(world, [&](int) {
    Team team({.mesh = {.tp = tp}}, config, &world);
    const std::vector<double> got = train(config, lengths, &team);
    for (size_t i = 0; i < want.size(); ++i)
      HADAL_CHECK(std::abs(got[i] - want[i]) <= kBound * std::abs(want[i]), "value ", i, " is ",
                  got[i], ", one rank's is ", want[i]);
  }));
}

TEST(TensorGroup, EqualsOneRankWithAndWithoutAQueryLatent) {
  for (const int64_t q_lora_rank : {0, 6})
    for (const int tp : {2, 3}) expect_equals_one_rank(q_lora_rank, tp, {5, 1, 7});
}

TEST(TensorGroup, RanksMayHaveNoTokens) { expect_equals_one_rank(6, 3, {3, 1}); }

TEST(TensorGroup, RunsCoverAllTokensOnce) {
  constexpr int kRanks = 3;
  World world({.num_ranks = kRanks});
  ASSERT_NO_THROW(launch(world, [&](int rank) {
    const auto comm = make_comm_host(world, {0, 1, 2}, "world");
    const TensorGroup group(*comm);
    for (int64_t T = 0; T < 12; ++T) {
      const int64_t n = (T + kRanks - 1) / kRanks;
      HADAL_CHECK(group.first_token(T) == std::min(T, rank * n) &&
                      group.first_token(T) + group.num_tokens(T) == std::min(T, (rank + 1) * n),
                  "rank ", rank, " has ", group.num_tokens(T), " of ", T, " tokens");
    }
  }));
}

}  // namespace
}  // namespace hadal::train
