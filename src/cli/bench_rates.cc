// hadal bench rates: every operation of a training plan timed alone, and steps of the same plan
// between them, to see what the rates predict.
//
// Plans are those of `hadal train`. A round runs one training step and then each operation once, in
// the order of its name, so that both sides see the same minutes of a shared machine; medians over
// the rounds count. Before an operation its activations are written again, its results' too: in a
// step the operation before has just written the ones, and the pool gives blocks that were just
// freed to the others. Weights, gradients, optimizer state and results that backward needs were
// last touched a round ago. Nothing of a step goes into a rate.
//
// A plan of several CPU ranks has them all here, each a process with one thread that makes every
// call in the same round as the others, after a barrier: an operation of one rank runs while all
// cores do the same, and a collective finds nobody late. Time of the clock counts, over all ranks;
// a step takes as long as its slowest rank. A rank alone on the CPU counts the time of its thread.
// On CUDA the time between two marks in the stream counts; a long copy ahead of them gives the host
// the time to queue the operation, as it runs ahead of the device in a step, and takes what was
// last touched a round ago out of the L2.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <thread>

#include "cli/bench.h"
#include "cli/bench_rank.h"
#include "cli/op_calls.h"
#include "core/check.h"
#include "core/device_memory.h"
#include "core/rng.h"
#include "core/timer.h"
#include "core/transfer.h"
#include "io/atomic.h"
#include "ops/copy.h"
#include "parallel/launch.h"
#include "plan/runtime_mesh.h"
#include "plan/runtime_ops.h"
#include "plan/step.h"
#include "train/learner.h"
#include "train/micro_batches.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Seconds of `fn` as the device spends them.
class Stopwatch {
 public:
  Stopwatch(Context& ctx, const Team* team)
      : ctx_(ctx),
        team_(team),
        begin_(device::make_event(ctx.device)),
        end_(device::make_event(ctx.device)) {}
  ~Stopwatch() {
    device::destroy(ctx_.device, begin_);
    device::destroy(ctx_.device, end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  void start() {
    device::record(ctx_.device, ctx_.stream, begin_);
    cpu_ = now();
  }
  void stop() {
    cpu_ = now() - cpu_;
    device::record(ctx_.device, ctx_.stream, end_);
  }
  double seconds() {  // of the last start and stop; waits
    return ctx_.device.kind == DeviceKind::kCpu
               ? cpu_
               : 1e-3 * device::elapsed_ms(ctx_.device, begin_, end_);
  }

 private:
  double now() const { return team_ == nullptr ? thread_seconds() : clock_.seconds(); }

  Context& ctx_;
  const Team* team_;
  Timer clock_;
  Event begin_, end_;
  double cpu_ = 0.0;
};

// Leaves them in the caches, as far as they fit.
void write_again(Context& ctx, const std::vector<Tensor>& tensors) {
  for (const Tensor& t : tensors) {
    if (ctx.device.kind != DeviceKind::kCpu) {
      ops::cast(ctx, t, Tensor(t));
      continue;
    }
    auto* words = static_cast<volatile uint32_t*>(t.raw());
    for (int64_t i = 0; i < t.num_bytes() / 4; ++i) words[i] = words[i];
  }
}

// What the device does while the host queues the operation that is timed; nothing on a CPU.
class Backlog {
 public:
  explicit Backlog(Context& ctx) : ctx_(ctx) {
    if (ctx.device.kind == DeviceKind::kCpu) return;
    constexpr int64_t kElements = int64_t{1} << 28;  // 2 GiB of traffic: 0.7 ms of an H100
    block_ = ctx.memory.take_tensor(DType::kF32, {kElements}, &tensor_);
    ops::fill(ctx, 0.0, tensor_);
  }
  void queue() {
    if (ctx_.device.kind != DeviceKind::kCpu) ops::cast(ctx_, tensor_, Tensor(tensor_));
  }

 private:
  Context& ctx_;
  Block block_;
  Tensor tensor_;
};

// Micro-batches of a step, of all data-parallel ranks.
std::vector<std::vector<Sequence>> random_batch(const plan::TrainPlan& p, uint64_t seed) {
  const int64_t count = p.num_microbatches() * p.mesh.dp * p.micro_batch_sequences;
  return train::cut(random_sequences(Rng(seed, stream_id("bench rates")), count, p.sequence_length,
                                     p.model.vocab_size),
                    p.micro_batch_sequences, p.mesh.dp);
}

// Steps of a plan, in memory of their own.
class Steps {
 public:
  Steps(const MachineOptions& machine, const plan::TrainPlan& p, Team* team)
      : plan_(p),
        team_(team),
        machine_(machine.make()),
        ctx_(machine_->context()),
        before_(device::memory_in_use(ctx_.device)) {
    const DType compute = p.recipe == plan::Recipe::kBf16 ? DType::kBF16 : DType::kF32;
    learner_ = std::make_unique<train::Learner>(
        ctx_, p.model, compute, p.micro_batch_tokens(),
        train::LearnerOptions{.team = team, .max_micro_batches = p.num_microbatches()});
    init_params(ctx_, p.model, 1, learner_->masters().tree);
    learner_->masters_changed();
    step();  // fills the pool
    step();
    driver_bytes_ = device::memory_in_use(ctx_.device) - before_;
  }
  // CPU: of the thread, or, among ranks, of the clock; CUDA: of the clock, from launch to result.
  double step() {
    const auto batch = random_batch(plan_, static_cast<uint64_t>(++count_));
    if (team_ != nullptr) team_->world().barrier();
    const Timer timer;
    const double cpu = thread_seconds();
    const train::StepResult r = learner_->step(batch, {.lr = 1e-4}, count_);
    device::synchronize(ctx_.device, ctx_.stream);
    const double seconds = ctx_.device.kind == DeviceKind::kCpu && team_ == nullptr
                               ? thread_seconds() - cpu
                               : timer.seconds();
    count_rows(r.counts);
    return seconds;
  }
  size_t peak_bytes() const { return machine_->memory.peak_bytes(); }
  // What the driver gave from the start to the end of the second step; 0 on the CPU. Kernels that
  // it loaded meanwhile count, unless CUDA_MODULE_LOADING=EAGER.
  size_t driver_bytes() const { return driver_bytes_; }
  // Rows of the rank of an expert group that got most of them, over their mean; a mean over layers
  // and steps.
  double row_imbalance() const {
    return num_layers_ > 0 ? imbalance_ / static_cast<double>(num_layers_) : 1.0;
  }

 private:
  void count_rows(const std::vector<std::vector<int64_t>>& counts) {
    const auto ep = static_cast<size_t>(plan_.mesh.ep);
    for (const std::vector<int64_t>& layer : counts) {
      std::vector<int64_t> rows(ep);
      for (size_t e = 0; e < layer.size(); ++e) rows[e * ep / layer.size()] += layer[e];
      const auto all = static_cast<double>(std::accumulate(rows.begin(), rows.end(), int64_t{0}));
      const auto most = static_cast<double>(*std::max_element(rows.begin(), rows.end()));
      imbalance_ += most * static_cast<double>(ep) / all;
      ++num_layers_;
    }
  }

  const plan::TrainPlan& plan_;
  Team* team_;
  std::unique_ptr<Machine> machine_;
  Context ctx_;
  size_t before_, driver_bytes_ = 0;
  std::unique_ptr<train::Learner> learner_;
  int64_t count_ = 0, num_layers_ = 0;
  double imbalance_ = 0.0;
};

// What every rank measured: [rank][value].
std::vector<std::vector<double>> of_all_ranks(Context& ctx, Team* team,
                                              const std::vector<double>& mine) {
  if (team == nullptr) return {mine};
  Comm& world = team->world();
  const auto n = static_cast<int64_t>(mine.size());
  Tensor all;
  const Block memory = ctx.memory.take_tensor(DType::kF64, {world.size(), n}, &all);
  const Tensor own = all.row(world.rank());
  upload(ctx, mine, own);
  world.all_gather(ctx, own, all);
  const std::vector<double> flat = download<double>(ctx, all);
  std::vector<std::vector<double>> ranks;
  for (int r = 0; r < world.size(); ++r)
    ranks.emplace_back(flat.begin() + r * n, flat.begin() + (r + 1) * n);
  return ranks;
}

struct Measured {
  std::vector<plan::RateRow> rows;
  std::vector<double> steps;       // of the slowest rank
  std::vector<double> peak_bytes;  // of each rank
  size_t driver_bytes = 0;
  double row_imbalance = 1.0;
};

Measured measure(Context& ctx, const MachineOptions& machine, const plan::TrainPlan& p,
                 const RatesOptions& o, Team* team) {
  Steps steps(machine, p, team);
  std::vector<OpCall> calls;
  for (const plan::OpUse& use : plan::runtime::all_ops(p))
    calls.push_back(make_op_call(ctx, p, use, team));
  std::vector<std::vector<double>> seconds(calls.size());
  std::vector<double> step_seconds;
  Stopwatch watch(ctx, team);
  Backlog backlog(ctx);
  for (int64_t round = -1; round < o.rounds; ++round) {  // the first warms up
    const double step = steps.step();
    if (round >= 0) step_seconds.push_back(step);
    for (size_t i = 0; i < calls.size(); ++i) {
      backlog.queue();
      write_again(ctx, calls[i].recent);
      if (team != nullptr) team->world().barrier();
      if (!calls[i].run) continue;
      watch.start();
      calls[i].run();
      watch.stop();
      if (round >= 0) seconds[i].push_back(watch.seconds());
    }
  }
  Measured m;
  m.driver_bytes = steps.driver_bytes();
  m.row_imbalance = steps.row_imbalance();
  m.steps.resize(step_seconds.size());
  for (const std::vector<double>& rank : of_all_ranks(ctx, team, step_seconds))
    for (size_t i = 0; i < rank.size(); ++i) m.steps[i] = std::max(m.steps[i], rank[i]);
  for (const std::vector<double>& rank :
       of_all_ranks(ctx, team, {static_cast<double>(steps.peak_bytes())}))
    m.peak_bytes.push_back(rank[0]);
  for (size_t i = 0; i < calls.size(); ++i) {
    const plan::OpUse& use = calls[i].use;
    // A rank that has no part in a call has no time of it.
    seconds[i].resize(static_cast<size_t>(o.rounds), -1.0);
    std::vector<double> all;
    for (const std::vector<double>& rank : of_all_ranks(ctx, team, seconds[i]))
      for (const double s : rank)
        if (s >= 0.0) all.push_back(s);
    m.rows.push_back({.op = use.op,
                      .shape = use.shape,
                      .rate = plan::work_of(use.op, use.shape) / quantile(all, 0.5),
                      .sms = 0,
                      .source = o.source});
  }
  return m;
}

// Three digits more than the rates are good for.
double rounded(double x) { return std::stod(fmt::format("{:.6g}", x)); }

void report(const Context& ctx, const RatesOptions& o, const std::string& path, plan::TrainPlan p,
            const Measured& m) {
  p.rates = plan::RateTable(m.rows);
  const plan::TrainResult planned = plan::plan_step(p);
  const double step = quantile(m.steps, 0.5);
  // The rank that is farthest from its plan; pipeline ranks are the slowest axis of the mesh.
  double bytes = 0.0, planned_bytes = 0.0, worst = -1.0;
  for (size_t r = 0; r < m.peak_bytes.size(); ++r) {
    const double of_plan =
        planned.memory[static_cast<size_t>(coord_of(p.mesh, static_cast<int>(r)).pp)].device();
    const double error = std::abs(of_plan / m.peak_bytes[r] - 1.0);
    if (error <= worst) continue;
    worst = error;
    bytes = m.peak_bytes[r];
    planned_bytes = of_plan;
  }
  fmt::print("{}\n", json({{"bench", "rates"},
                           {"plan", path},
                           {"rounds", o.rounds},
                           {"device", device::name(ctx.device)},
                           {"ranks", p.mesh.num_ranks()},
                           {"row_imbalance", rounded(m.row_imbalance)},
                           {"step_seconds", rounded(step)},
                           {"step_p10", rounded(quantile(m.steps, 0.1))},
                           {"step_p90", rounded(quantile(m.steps, 0.9))},
                           {"planned_seconds", rounded(planned.step_seconds)},
                           {"time_error", rounded(planned.step_seconds / step - 1.0)},
                           {"peak_bytes", static_cast<int64_t>(bytes)},
                           {"driver_bytes", m.driver_bytes},
                           {"planned_bytes", planned_bytes},
                           {"memory_error", rounded(planned_bytes / bytes - 1.0)}})
                         .dump());
}

void write_rows(const std::string& path, const std::vector<plan::RateRow>& rows) {
  std::map<std::pair<std::string, plan::OpShape>, plan::RateRow> kept;
  // The first plan's rate of a shape is kept.
  for (const plan::RateRow& row : rows) kept.try_emplace({row.op, row.shape}, row);
  std::string list;
  for (const auto& [key, row] : kept)
    list += concat(list.empty() ? "" : ",\n", "    ",
                   json({{"op", row.op},
                         {"shape", row.shape},
                         {"rate", rounded(row.rate)},
                         {"source", row.source}})
                       .dump());
  io::write_file_atomic(
      path, concat("{\n  \"about\": \"hadal bench rates: each operation alone\",\n  \"rows\": [\n",
                   list, "\n  ]\n}\n"));
}

struct NamedPlan {
  std::string path;
  plan::TrainPlan plan;
};

// On every rank; world: of all of them, none for one alone.
void run_plans(Context& ctx, const MachineOptions& machine, const RatesOptions& o,
               const std::vector<NamedPlan>& plans, World* world) {
  std::vector<plan::RateRow> rows;
  for (const NamedPlan& named : plans) {
    std::unique_ptr<Team> team;
    if (world != nullptr)
      team = std::make_unique<Team>(plan::parallel_of(named.plan), named.plan.model, world);
    const Measured m = measure(ctx, machine, named.plan, o, team.get());
    if (world != nullptr && world->rank() != 0) continue;
    report(ctx, o, named.path, named.plan, m);
    rows.insert(rows.end(), m.rows.begin(), m.rows.end());
  }
  if (!rows.empty() && !o.output.empty()) write_rows(o.output, rows);
}

}  // namespace

void bench_rates(Context& ctx, const MachineOptions& machine, const RatesOptions& o) {
  HADAL_CHECK(!o.source.empty(), "--source is empty; say where and when, as rows of rates do");
  HADAL_CHECK(ctx.device.kind != DeviceKind::kCpu || ctx.threads.num_threads() == 1,
              "rates of a CPU are of one thread; add --threads 1");
  std::vector<NamedPlan> plans;
  for (const std::string& path : o.plans) {
    plan::TrainPlan p = plan::read_train_plan(path, {}, plan::Rates::kWithout);
    HADAL_CHECK(p.is_runtime(), path, ": hadal bench rates runs plans of hadal train: recipe f32, ",
                "or bf16 on one device");
    plan::check_train_plan(p);
    plans.push_back({.path = path, .plan = std::move(p)});
  }
  const int ranks = plans.front().plan.mesh.num_ranks();
  for (const NamedPlan& named : plans)
    HADAL_CHECK(named.plan.mesh.num_ranks() == ranks, named.path, " has ",
                named.plan.mesh.num_ranks(), " ranks and ", plans.front().path, " ", ranks,
                "; time them in runs of their own");
  if (ranks == 1) return run_plans(ctx, machine, o, plans, nullptr);
  HADAL_CHECK(ctx.device.kind == DeviceKind::kCpu, "plans of ", ranks,
              " ranks are timed on a CPU; use --device cpu");
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  HADAL_CHECK(ranks <= cores, plans.front().path, " has ", ranks, " ranks, and this machine ",
              cores, " cores: ranks would wait for a core");
  World world({.num_ranks = ranks});
  launch(world, [&](int) {
    const std::unique_ptr<Machine> mine = machine.make();
    Context own = mine->context();
    run_plans(own, machine, o, plans, &world);
  });
}

}  // namespace hadal::cli
