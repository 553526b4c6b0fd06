// Ranks that run one model: started, loaded, led.
// SPDX-License-Identifier: Apache-2.0
#include "cli/model_run.h"

#include <fmt/core.h>

#include <csignal>

#include "parallel/comm_host.h"
#include "parallel/comm_nccl.h"
#include "parallel/launch.h"
#include "parallel/step_channel.h"
#include "serve/follower.h"
#include "serve/rank_calls.h"

namespace hadal::cli {
namespace {

// Among all ranks; over their GPUs where they have some.
std::unique_ptr<Comm> make_comm(World& world, NcclWorld* gpus) {
  if (gpus != nullptr) return gpus->make_comm_with_sums(world.all_ranks(), "model");
  return make_comm_host(world, world.all_ranks(), "model");
}

// Says how far this rank is, by what it does next.
class StepCount {
 public:
  explicit StepCount(World& world) : world_(world) {}
  void count(const std::vector<int32_t>& words) {
    const auto is = [&](auto kind) { return words[0] == static_cast<int32_t>(kind); };
    if (is(DecoderCallKind::kForward) || is(serve::RankCall::kLaunch)) world_.at_step(next_++);
  }

 private:
  World& world_;
  int64_t next_ = 0;
};

void follow(Context& ctx, const LoadedModel& model, const DecoderRanks& ranks, World& world) {
  // The leader ends this rank, when it has done what these ask for.
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGTERM, SIG_IGN);
  StepChannel channel(world);
  StepCount step(world);
  channel.meet();
  serve::Follower(ctx, model.config(), model.weights, model.act, ranks).run([&] {
    std::vector<int32_t> words = channel.hear();
    step.count(words);
    return words;
  });
}

void lead(Context& ctx, const LoadedModel& model, const DecoderRanks& ranks, World& world,
          const std::function<void(ModelLead&)>& body) {
  StepChannel channel(world);
  StepCount step(world);
  channel.meet();
  ModelLead lead{.ctx = ctx, .model = model, .ranks = ranks, .world = &world};
  lead.ranks.announce = [&](const std::vector<int32_t>& words) {
    step.count(words);
    channel.say(words);
  };
  body(lead);
  channel.say(serve::words_of(serve::RankCall::kEnd));
}

}  // namespace

void check_ranks_of(const PlanInput& plan) {
  const auto ranks = static_cast<int>(plan.options.ranks);
  io::check_decode_parts(*plan.model.checkpoint, plan.model.format, ranks, plan.options.attention);
  if (ranks == 1) return;
  const MemoryPlan memory = plan_memory(plan);
  fmt::print(stderr, "{}", describe(memory, plan));
  if (!plan.options.machine.on_gpus()) check_fits(memory, plan, {});
}

void run_model(const PlanInput& plan, const std::function<void(ModelLead&)>& body) {
  const ModelOptions& o = plan.options;
  const auto ranks = static_cast<int>(o.ranks);
  if (ranks == 1) {
    const auto machine = o.machine.make();
    Context ctx = machine->context();
    const LoadedModel model(ctx, plan.model, Share());
    ModelLead lead{.ctx = ctx, .model = model};
    return body(lead);
  }
  World world({.num_ranks = ranks});
  const auto run_rank = [&](int rank) {
    const bool on_gpus = o.machine.on_gpus();
    const auto machine = o.machine.make(on_gpus ? gpu_of_rank(world) : Device{}, ranks);
    Context ctx = machine->context();
    if (on_gpus) check_fits(plan_memory(plan), plan, ctx.device);
    std::unique_ptr<NcclWorld> gpus;
    if (on_gpus) gpus = std::make_unique<NcclWorld>(world, ctx);
    const LoadedModel model(ctx, plan.model, Share{.ways = ranks, .index = rank}, o.attention);
    const std::unique_ptr<Comm> comm = make_comm(world, gpus.get());
    const DecoderRanks group{.tensor = TensorGroup(*comm), .attention = o.attention};
    if (rank == 0)
      lead(ctx, model, group, world, body);
    else
      follow(ctx, model, group, world);
  };
  launch(world, run_rank, {.leader = 0});
}

}  // namespace hadal::cli
