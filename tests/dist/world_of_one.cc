// world_of_one: what the parallel path costs a run of one rank.
//
//   world_of_one [ROUNDS]
//
// Trains a small model by a plain loop (forward, backward, AdamW; no mesh, schedule, exchange
// between ranks or shares) and by a Learner in a world of one process, both in this process and
// step by step in turns, and compares losses, weights and the core seconds of the steps. Exits 1 if
// a loss or a weight differs, or if the Learner's median step takes over 1% more.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <cmath>
#include <cstdlib>
#include <ctime>

#include "model/bytes.h"
#include "ops/optim.h"
#include "tests/unit/train.h"

namespace hadal::train {
namespace {

constexpr int64_t kSequences = 8, kMicroBatches = 4, kLength = 128;

Config model() {
  Config c = test::tiny_config();
  c.vocab_size = 1024;
  c.hidden_size = 128;
  c.intermediate_size = 384;
  c.moe_intermediate_size = 64;
  c.num_hidden_layers = 4;
  c.num_attention_heads = 4;
  c.q_lora_rank = 64;
  c.kv_lora_rank = 32;
  c.qk_nope_head_dim = 32;
  c.qk_rope_head_dim = 16;
  c.v_head_dim = 32;
  c.n_routed_experts = 16;
  c.num_nextn_predict_layers = 1;
  c.max_position_embeddings = kLength;
  c.validate();
  return c;
}

std::vector<std::vector<Sequence>> micro_batches(int64_t step) {
  const std::vector<int64_t> lengths(kSequences, kLength);
  const std::vector<Sequence> all = test::random_sequences(model(), lengths, concat("step ", step));
  std::vector<std::vector<Sequence>> cut;
  for (auto at = all.begin(); at != all.end(); at += kSequences / kMicroBatches)
    cut.emplace_back(at, at + kSequences / kMicroBatches);
  return cut;
}

double core_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The step of a trainer that knows nothing of ranks.
class Plain {
 public:
  Plain()
      : masters_(ctx(), config_, DType::kF32, ParamStore::Extent::kAll),
        grads_(ctx(), config_, DType::kF32, ParamStore::Extent::kTrained),
        m_(ctx(), config_, DType::kF32, ParamStore::Extent::kTrained),
        v_(ctx(), config_, DType::kF32, ParamStore::Extent::kTrained),
        rows_(ctx(), config_, DType::kF32,
              config_.num_moe_layers() *
                  experts::max_pages(config_, kSequences / kMicroBatches * kLength)),
        exchange_(rows_, config_.n_routed_experts),
        weights_(weights_of(config_, masters_.tree, nullptr)),
        stage_(stage::whole_model(config_, weights_, exchange_, 1)),
        meter_(stage::make_meter(ctx(), stage_)) {
    init_params(ctx(), config_, 5, masters_.tree);
  }

  double step(const std::vector<std::vector<Sequence>>& batches, const Recipe& r, int64_t step) {
    stage::reset(ctx(), meter_);
    ops::fill(ctx(), 0.0, grads_.flat());
    double targets[2] = {};  // of the main model and of the MTP depth, which begins one later
    for (const auto& sequences : batches)
      for (const Sequence& s : sequences)
        for (size_t k = 0; k < 2; ++k)
          targets[k] += static_cast<double>(
              s.targets.end() - s.targets.begin() - static_cast<int64_t>(k) -
              std::count(s.targets.begin() + static_cast<int64_t>(k), s.targets.end(), -1));
    const double main = 1.0 / targets[0], mtp = 1.0 / targets[1];
    const stage::LossScale scale{.main = main,
                                 .mtp = {r.mtp_weight * mtp},
                                 .balance = r.balance_alpha / kSequences,
                                 .mtp_balance = {r.balance_alpha / kSequences}};
    for (const auto& sequences : batches) {
      const Batch batch = make_batch(ctx(), config_, sequences, 1, DType::kF32);
      stage::Saved saved = stage::forward(ctx(), stage_, batch, In(), meter_);
      stage::backward(ctx(), stage_, std::move(saved),
                      {.batch = batch, .scale = scale, .dy_in = In(), .dx_out = Tensor()},
                      grads_.tree);
    }
    const double loss = download<double>(ctx(), meter_.main)[0] * main;
    Tensor norm;
    const Block memory = ctx().memory.take_tensor(DType::kF64, {1}, &norm);
    ops::fill(ctx(), 0.0, norm);
    ops::sum_squares_acc(ctx(), grads_.trained(), norm);
    ops::AdamW rule{.lr = r.lr,
                    .beta1 = r.beta1,
                    .beta2 = r.beta2,
                    .eps = r.eps,
                    .weight_decay = r.weight_decay,
                    .step = step,
                    .grad_scale = std::min(
                        1.0, r.clip_norm / (std::sqrt(download<double>(ctx(), norm)[0]) + 1e-6))};
    ops::adamw(ctx(), rule, grads_.decayed(), masters_.decayed(), m_.decayed(), v_.decayed());
    rule.weight_decay = 0.0;
    ops::adamw(ctx(), rule, grads_.norms(), masters_.norms(), m_.norms(), v_.norms());
    for (int64_t l = 0, moe = 0; l <= config_.num_hidden_layers; ++l) {
      if (!config_.is_moe_layer(l)) continue;
      auto& block = l == config_.num_hidden_layers ? masters_.tree.mtp[0].block
                                                   : masters_.tree.layers[static_cast<size_t>(l)];
      ops::bias_update(ctx(), meter_.counts.row(moe++), r.bias_gamma, block.moe.gate.bias);
    }
    return loss;
  }
  const Tensor weights() const { return masters_.flat(); }

 private:
  Context& ctx() { return machine_.ctx; }
  test::Machine machine_{1};
  Config config_ = model();
  ParamStore masters_, grads_, m_, v_;
  RowPool rows_;
  LocalExchange exchange_;
  Weights weights_;
  stage::Stage stage_;
  stage::Meter meter_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int run(int64_t rounds) {
  World world(WorldOptions{});
  world.enter(0);
  Team team(ParallelConfig{}, model(), &world);
  test::Machine machine(1);
  Learner learner(machine.ctx, model(), DType::kF32, kSequences / kMicroBatches * kLength,
                  {.team = &team, .max_micro_batches = kMicroBatches});
  init_params(machine.ctx, model(), 5, learner.masters().tree);
  learner.masters_changed();
  Plain plain;
  const Recipe recipe{.lr = 1e-3};
  std::vector<double> plain_seconds, learner_seconds, ratios;
  for (int64_t step = 1; step <= rounds; ++step) {
    const auto batches = micro_batches(step);
    double seconds[2] = {}, losses[2] = {};
    for (const int side : {static_cast<int>(step % 2), static_cast<int>((step + 1) % 2)}) {
      const double begin = core_seconds();
      losses[side] =
          side == 0 ? plain.step(batches, recipe, step) : learner.step(batches, recipe, step).main;
      seconds[side] = core_seconds() - begin;
    }
    HADAL_CHECK(std::abs(losses[0] - losses[1]) <= 1e-12 * losses[0], "step ", step, ": losses ",
                losses[0], " and ", losses[1]);
    if (step <= 2) continue;  // memory is taken
    plain_seconds.push_back(seconds[0]);
    learner_seconds.push_back(seconds[1]);
    ratios.push_back(seconds[1] / seconds[0]);
  }
  test::expect_bits_equal("the weights", learner.masters().flat(), plain.weights());
  const double ratio = median(ratios);
  fmt::print(
      "{} rounds: plain {:.2f} ms, Learner in a world of one {:.2f} ms (medians); median of "
      "the ratios {:.4f}, of medians {:.4f}\n",
      ratios.size(), 1e3 * median(plain_seconds), 1e3 * median(learner_seconds), ratio,
      median(learner_seconds) / median(plain_seconds));
  world.leave(RankState::kDone, "");
  return ::testing::Test::HasFailure() || ratio > 1.01 ? 1 : 0;
}

}  // namespace
}  // namespace hadal::train

int main(int argc, char** argv) {
  try {
    return hadal::train::run(argc > 1 ? std::atoi(argv[1]) : 100);
  } catch (const std::exception& e) {
    fmt::print(stderr, "world_of_one: {}\n", e.what());
    return 2;
  }
}
