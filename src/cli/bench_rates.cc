// hadal bench rates: every operation of a training plan timed alone, and steps of the same plan
// between them, to see what the rates predict.
//
// Plans are those of `hadal train` on one device. A round runs one training step and then each
// operation once, in the order of its name, so that both sides see the same minutes of a shared
// machine; medians over the rounds count. Before an operation its activations are written again,
// its results' too: in a step the operation before has just written the ones, and the pool gives
// blocks that were just freed to the others. Weights, gradients, optimizer state and results that
// backward needs were last touched a round ago. Nothing of a step goes into a rate.
//
// On the CPU one thread runs, and CPU time counts. On CUDA the time between two marks in the stream
// counts; a long copy ahead of them gives the host the time to queue the operation, as it runs
// ahead of the device in a step, and takes what was last touched a round ago out of the L2.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <time.h>

#include <map>

#include "cli/bench.h"
#include "cli/op_calls.h"
#include "core/check.h"
#include "core/device_memory.h"
#include "core/rng.h"
#include "core/timer.h"
#include "io/atomic.h"
#include "ops/copy.h"
#include "plan/runtime_ops.h"
#include "plan/step.h"
#include "train/learner.h"

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
  explicit Stopwatch(Context& ctx)
      : ctx_(ctx), begin_(device::make_event(ctx.device)), end_(device::make_event(ctx.device)) {}
  ~Stopwatch() {
    device::destroy(ctx_.device, begin_);
    device::destroy(ctx_.device, end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  void start() {
    device::record(ctx_.device, ctx_.stream, begin_);
    cpu_ = thread_seconds();
  }
  void stop() {
    cpu_ = thread_seconds() - cpu_;
    device::record(ctx_.device, ctx_.stream, end_);
  }
  double seconds() {  // of the last start and stop; waits
    return ctx_.device.kind == DeviceKind::kCpu
               ? cpu_
               : 1e-3 * device::elapsed_ms(ctx_.device, begin_, end_);
  }

 private:
  Context& ctx_;
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

std::vector<std::vector<Sequence>> random_batch(const plan::TrainPlan& p, uint64_t seed) {
  const Rng rng(seed, stream_id("bench rates"));
  const auto V = static_cast<uint64_t>(p.model.vocab_size);
  std::vector<std::vector<Sequence>> batches(static_cast<size_t>(p.num_microbatches()));
  uint64_t drawn = 0;
  for (auto& batch : batches)
    for (int64_t s = 0; s < p.micro_batch_sequences; ++s) {
      Sequence sequence;
      for (int64_t t = 0; t < p.sequence_length; ++t) {
        sequence.ids.push_back(static_cast<int32_t>(rng.u64(drawn++) % V));
        sequence.targets.push_back(static_cast<int32_t>(rng.u64(drawn++) % V));
      }
      batch.push_back(std::move(sequence));
    }
  return batches;
}

// Steps of a plan, in memory of their own.
class Steps {
 public:
  Steps(const MachineOptions& machine, const plan::TrainPlan& p)
      : plan_(p),
        machine_(machine.make()),
        ctx_(machine_->context()),
        before_(device::memory_in_use(ctx_.device)) {
    const DType compute = p.recipe == plan::Recipe::kBf16 ? DType::kBF16 : DType::kF32;
    learner_ = std::make_unique<train::Learner>(ctx_, p.model, compute, p.micro_batch_tokens());
    init_params(ctx_, p.model, 1, learner_->masters().tree);
    learner_->masters_changed();
    step();  // fills the pool
    step();
    driver_bytes_ = device::memory_in_use(ctx_.device) - before_;
  }
  // CPU: of the thread; CUDA: of the clock, from launch to result.
  double step() {
    const auto batch = random_batch(plan_, static_cast<uint64_t>(++count_));
    const Timer timer;
    const double cpu = thread_seconds();
    learner_->step(batch, {.lr = 1e-4}, count_);
    device::synchronize(ctx_.device, ctx_.stream);
    return ctx_.device.kind == DeviceKind::kCpu ? thread_seconds() - cpu : timer.seconds();
  }
  size_t peak_bytes() const { return machine_->memory.peak_bytes(); }
  // What the driver gave from the start to the end of the second step; 0 on the CPU. Kernels that
  // it loaded meanwhile count, unless CUDA_MODULE_LOADING=EAGER.
  size_t driver_bytes() const { return driver_bytes_; }

 private:
  const plan::TrainPlan& plan_;
  std::unique_ptr<Machine> machine_;
  Context ctx_;
  size_t before_, driver_bytes_ = 0;
  std::unique_ptr<train::Learner> learner_;
  int64_t count_ = 0;
};

struct Measured {
  std::vector<plan::RateRow> rows;
  std::vector<double> steps;
  size_t peak_bytes = 0, driver_bytes = 0;
};

Measured measure(Context& ctx, const MachineOptions& machine, const plan::TrainPlan& p,
                 const RatesOptions& o) {
  Steps steps(machine, p);
  std::vector<OpCall> calls;
  for (const plan::OpUse& use : plan::runtime::all_ops(p))
    calls.push_back(make_op_call(ctx, p, use));
  std::vector<std::vector<double>> seconds(calls.size());
  Measured m;
  Stopwatch watch(ctx);
  Backlog backlog(ctx);
  for (int64_t round = -1; round < o.rounds; ++round) {  // the first warms up
    const double step = steps.step();
    if (round >= 0) m.steps.push_back(step);
    for (size_t i = 0; i < calls.size(); ++i) {
      backlog.queue();
      write_again(ctx, calls[i].recent);
      watch.start();
      calls[i].run();
      watch.stop();
      if (round >= 0) seconds[i].push_back(watch.seconds());
    }
  }
  m.peak_bytes = steps.peak_bytes();
  m.driver_bytes = steps.driver_bytes();
  for (size_t i = 0; i < calls.size(); ++i) {
    const plan::OpUse& use = calls[i].use;
    m.rows.push_back({.op = use.op,
                      .shape = use.shape,
                      .rate = plan::work_of(use.op, use.shape) / quantile(seconds[i], 0.5),
                      .sms = 0,
                      .source = o.source});
  }
  return m;
}

// Three digits more than the rates are good for.
double rounded(double x) { return std::stod(fmt::format("{:.6g}", x)); }

}  // namespace

void bench_rates(Context& ctx, const MachineOptions& machine, const RatesOptions& o) {
  HADAL_CHECK(!o.source.empty(), "--source is empty; say where and when, as rows of rates do");
  HADAL_CHECK(ctx.device.kind != DeviceKind::kCpu || ctx.threads.num_threads() == 1,
              "rates of a CPU are of one thread; add --threads 1");
  std::map<std::pair<std::string, plan::OpShape>, plan::RateRow> rows;
  for (const std::string& path : o.plans) {
    plan::TrainPlan p = plan::read_train_plan(path, {}, plan::Rates::kWithout);
    HADAL_CHECK(p.is_runtime(), path, ": hadal bench rates runs plans of hadal train: one device, ",
                "recipe f32 or bf16");
    const Measured m = measure(ctx, machine, p, o);
    // The first plan's rate of a shape is kept; what is predicted here rests on this plan's own.
    for (const plan::RateRow& row : m.rows) rows.try_emplace({row.op, row.shape}, row);
    p.rates = plan::RateTable(m.rows);
    const plan::TrainResult planned = plan::plan_step(p);
    const double step = quantile(m.steps, 0.5), bytes = static_cast<double>(m.peak_bytes);
    fmt::print("{}\n", json({{"bench", "rates"},
                             {"plan", path},
                             {"rounds", o.rounds},
                             {"device", device::name(ctx.device)},
                             {"step_seconds", rounded(step)},
                             {"step_p10", rounded(quantile(m.steps, 0.1))},
                             {"step_p90", rounded(quantile(m.steps, 0.9))},
                             {"planned_seconds", rounded(planned.step_seconds)},
                             {"time_error", rounded(planned.step_seconds / step - 1.0)},
                             {"peak_bytes", m.peak_bytes},
                             {"driver_bytes", m.driver_bytes},
                             {"planned_bytes", planned.largest_memory},
                             {"memory_error", rounded(planned.largest_memory / bytes - 1.0)}})
                           .dump());
  }
  if (o.output.empty()) return;
  std::string list;
  for (const auto& [key, row] : rows)
    list += concat(list.empty() ? "" : ",\n", "    ",
                   json({{"op", row.op},
                         {"shape", row.shape},
                         {"rate", rounded(row.rate)},
                         {"source", row.source}})
                       .dump());
  io::write_file_atomic(
      o.output,
      concat("{\n  \"about\": \"hadal bench rates: each operation alone\",\n  \"rows\": [\n", list,
             "\n  ]\n}\n"));
}

}  // namespace hadal::cli
