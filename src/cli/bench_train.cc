// hadal bench train: optimizer steps of a run config, on tokens that mean nothing: of one rank, or
// of all that the config's mesh has. Of a pipeline also what each of its steps takes, and what its
// schedule makes of that.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/bench.h"
#include "cli/bench_rank.h"
#include "cli/paced_exchange.h"
#include "cli/train_rank.h"
#include "core/pinned.h"
#include "core/rng.h"
#include "core/timer.h"
#include "core/transfer.h"
#include "io/atomic.h"
#include "ops/copy.h"
#include "parallel/launch.h"
#include "plan/measured.h"
#include "plan/schedule_report.h"
#include "train/learner.h"
#include "train/micro_batches.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

constexpr int64_t kWarmUp = 2;  // steps, at least

struct Options {
  std::string config = "configs/small.json", timeline;
  std::vector<std::string> assignments;
  int64_t samples = 10, warm_up = kWarmUp;
  double pace = 0.0;  // GB/s of a link; 0: transfers are what they are
  std::string command() const {
    std::string text = "hadal bench train --config " + config;
    for (const std::string& a : assignments) text += " --set " + a;
    if (pace > 0.0) text += fmt::format(" --pace {}", pace);
    if (warm_up != kWarmUp) text += fmt::format(" --warm-up {}", warm_up);
    return text + fmt::format(" --samples {}", samples);
  }
};

// Operations of a training step per token: the products of the forward pass, and twice as many of
// the backward pass; what is computed again does not count.
double flops_per_token(const Config& c, int64_t length) {
  double weights = 0.0;
  for_each_param(c, [&](const ParamInfo& info) {
    if (info.shape.rank < 2 || info.name == "embed") return;
    const double share =
        info.shard == ParamShard::kExpert
            ? static_cast<double>(c.num_experts_per_tok) / static_cast<double>(c.n_routed_experts)
            : 1.0;
    const double uses =
        info.name == "head" ? static_cast<double>(1 + c.num_nextn_predict_layers) : 1.0;
    weights += uses * share * static_cast<double>(info.shape.num_elements());
  });
  const auto head = static_cast<double>(c.vocab_size * c.hidden_size);
  if (c.tie_word_embeddings) weights += head * static_cast<double>(1 + c.num_nextn_predict_layers);
  const auto layers = static_cast<double>(c.num_hidden_layers + c.num_nextn_predict_layers);
  const auto widths = static_cast<double>(c.qk_head_dim() + c.v_head_dim);
  const double attention = layers * static_cast<double>(c.num_attention_heads) * widths * 0.5 *
                           static_cast<double>(length + 1);
  return 6.0 * (weights + attention);
}

// Rows of the busiest of `ranks` that share a layer's experts over the mean rank's, mean of layers:
// where all wait for one, what their experts take is this much longer.
double load_of_busiest(const std::vector<std::vector<int64_t>>& counts, int ranks) {
  double sum = 0.0;
  for (const std::vector<int64_t>& layer : counts) {
    const size_t experts = layer.size() / static_cast<size_t>(ranks);
    int64_t all = 0, most = 0;
    for (size_t first = 0; first < layer.size(); first += experts) {
      const auto begin = layer.begin() + static_cast<std::ptrdiff_t>(first);
      const int64_t rows =
          std::accumulate(begin, begin + static_cast<std::ptrdiff_t>(experts), int64_t{0});
      all += rows;
      most = std::max(most, rows);
    }
    sum += static_cast<double>(most * ranks) / static_cast<double>(all);
  }
  return sum / static_cast<double>(counts.size());
}

// Weights that mean nothing: pieces of one pattern of normal numbers, whose rows repeat nowhere
// within a gate.
void fill_weights(Context& ctx, const Config& config, ModelParams<Tensor>& tree) {
  constexpr int64_t kPattern = int64_t{1} << 22;
  Tensor pattern;
  const Block memory = ctx.memory.take_tensor(DType::kF32, {kPattern}, &pattern);
  {
    const Rng rng(1, stream_id("bench"));
    HostWrite values(ctx, pattern);
    auto* const to = values.tensor().data<float>();
    ctx.threads.parallel_for(kPattern >> 16, [&](int64_t task, int) {
      for (int64_t i = task << 16; i < (task + 1) << 16; ++i)
        to[i] = static_cast<float>(config.initializer_range * rng.normal(static_cast<uint64_t>(i)));
    });
    values.finish();
  }
  for_each_param(
      config,
      [&](const ParamInfo& info, Tensor& leaf) {
        if (leaf.empty()) return;
        const int64_t n = leaf.num_elements();
        if (info.shape.rank < 2)
          return ops::fill(ctx, info.kind == ParamKind::kNorm ? 1.0 : 0.0, leaf);
        int64_t from = static_cast<int64_t>(stream_id(info.name) % (kPattern / 2)) / 64 * 64;
        for (int64_t at = 0; at < n;) {
          const int64_t count = std::min(n - at, kPattern - from);
          device::copy_on_device(ctx.device, ctx.stream, pattern.data<float>() + from,
                                 leaf.data<float>() + at,
                                 static_cast<size_t>(count) * sizeof(float));
          at += count;
          from = 0;
        }
      },
      tree);
}

std::vector<std::vector<Sequence>> random_batches(const train::RunConfig& run) {
  const train::TrainConfig& t = run.train;
  const int dp = run.parallel.mesh.dp;
  return train::cut(random_sequences(Rng(4, stream_id("bench")), t.batch_of({}, dp),
                                     t.sequence_length, run.model.vocab_size),
                    t.micro_batch_sequences, dp);
}

// What the clocks of a pipeline's ranks have seen, on the first of them. ranks: of the world, in
// the order of the schedule.
plan::Timeline gather(World& world, const std::vector<int>& ranks, const Schedule& schedule,
                      std::vector<StepClock::Span> mine) {
  constexpr uint32_t kTag = 0x54494d45u;
  const bool is_first = world.rank() == ranks.front();
  std::vector<std::vector<StepClock::Span>> all(ranks.size());
  std::vector<Parcel> parcels;
  for (size_t p = 0; p < ranks.size(); ++p) {
    if (ranks[p] == world.rank())
      all[p] = std::move(mine);
    else
      all[p].resize(schedule.steps[p].size());
    if (is_first == (ranks[p] == world.rank())) continue;  // neither end of this message
    parcels.push_back({.send = !is_first,
                       .peer = is_first ? ranks[p] : ranks.front(),
                       .data = all[p].data(),
                       .bytes = all[p].size() * sizeof(StepClock::Span),
                       .tag = kTag});
  }
  world.exchange(parcels);
  plan::Timeline timeline;
  for (const auto& spans : all) {
    timeline.spans.emplace_back();
    for (const StepClock::Span& s : spans) {
      timeline.spans.back().push_back({.start = s.begin, .finish = s.end});
      timeline.makespan = std::max(timeline.makespan, s.end);
    }
  }
  return timeline;
}

class Bench {
 public:
  Bench(const Options& o, const train::RunConfig& run, World* world)
      : options_(o),
        run_(run),
        world_(world),
        rank_(run, world),
        ctx_(rank_.context()),
        learner_(ctx_, train::trained_model(run), run.train.dtype,
                 run.train.micro_batch_sequences * run.train.sequence_length,
                 {.moments = run.train.moments,
                  .ema_decay = run.train.ema_decay,
                  .team = &rank_.team(),
                  .max_micro_batches = train::most_micro_batches(run),
                  .wrap_exchange = paced()}),
        team_(learner_.team()),
        batches_(random_batches(run)) {
    fill_weights(ctx_, run.model, learner_.masters().tree);
    learner_.masters_changed();
  }

  void run() {
    json row = machine_row(ctx_, options_.command());
    const auto tokens = static_cast<double>(run_.train.batch_of({}, run_.parallel.mesh.dp) *
                                            run_.train.sequence_length);
    const double flops = flops_per_token(run_.model, run_.train.sequence_length);
    row.update({{"bench", "train"},
                {"config", options_.config},
                {"dtype", std::string(dtype_name(run_.train.dtype))},
                {"products", run_.train.precision.fp8 ? "fp8" : "compute"},
                {"tokens_per_step", tokens},
                {"gflop_per_token", flops / 1e9}});
    if (world_ == nullptr && ctx_.device.kind == DeviceKind::kCpu) {
      for (int64_t i = kWarmUp; i < options_.warm_up; ++i) step();  // sample() warms up too
      const Sampled s = sample(ctx_, options_.samples, [&] { step(); });
      row["tokens_per_s"] = tokens / quantile(s.wall, 0.5);
      row.update(s.to_json({.flops = tokens * flops, .bytes = 0.0}));
      fmt::print("{}\n", row.dump());
      return;
    }
    row.update({{"device", device::name(ctx_.device)},
                {"mesh", to_string(run_.parallel.mesh)},
                {"schedule", schedule_name(run_.parallel.schedule)},
                {"exchange", exchange_name(run_.parallel.exchange)},
                {"overlap", run_.parallel.overlap},
                {"micro_batches", train::most_micro_batches(run_)}});
    if (paced_ != nullptr) row.update(transfers());
    const std::vector<double> seconds = timed();
    const double median = quantile(seconds, 0.5), ranks = run_.parallel.mesh.num_ranks();
    row.update({{"samples", seconds.size()},
                {"seconds", median},
                {"seconds_p10", quantile(seconds, 0.1)},
                {"seconds_p90", quantile(seconds, 0.9)},
                {"tokens_per_s", tokens / median},
                {"tokens_per_s_of_rank", tokens / median / ranks},
                {"tflop_per_s_of_rank", 1e-12 * flops * tokens / median / ranks},
                {"splits", splits_},
                {"loss", last_.main},
                {"grad_norm", last_.grad_norm},
                {"peak_memory_gb", 1e-9 * static_cast<double>(ctx_.memory.peak_bytes())}});
    if (const int ep = run_.parallel.mesh.ep; ep > 1)
      row["load_of_busiest_rank"] = load_of_busiest(last_.counts, ep);
    if (run_.parallel.mesh.pp > 1) row["pipeline"] = pipeline();
    if (team_.is_first()) fmt::print("{}\n", row.dump());
  }

 private:
  // Transfers of a link's rate behind those of the experts' tokens.
  std::function<std::unique_ptr<Exchange>(std::unique_ptr<Exchange>)> paced() {
    if (options_.pace <= 0.0) return {};
    return [this](std::unique_ptr<Exchange> exchange) {
      const train::TrainConfig& t = run_.train;
      auto paced = std::make_unique<PacedExchange>(
          ctx_, std::move(exchange), train::trained_model(run_),
          t.micro_batch_sequences * t.sequence_length / run_.parallel.mesh.tp);
      paced->link = {.bytes_per_second = 1e9 * options_.pace,
                     .sms = run_.parallel.comm_sms,
                     .side = rank_.team().side()};
      paced_ = paced.get();
      return paced;
    };
  }
  // How long a step's would take by themselves. One step, which warms up too.
  json transfers() {
    const int64_t before = paced_->bytes_sent();
    step();
    const auto bytes = static_cast<double>(paced_->bytes_sent() - before);
    return {{"link_GBps", options_.pace},
            {"sent_GB", 1e-9 * bytes},
            {"transfers_s", 1e-9 * bytes / options_.pace}};
  }
  void step() {
    last_ = learner_.step(batches_, {.lr = 1e-4}, ++steps_);
    splits_ += last_.splits;
  }
  void meet() {
    device::synchronize(ctx_.device, ctx_.stream);
    team_.world().barrier();
  }
  // Of whole steps, from when all ranks are ready until all are done.
  std::vector<double> timed() {
    std::vector<double> seconds;
    for (int64_t i = 0; i < options_.samples + options_.warm_up; ++i) {
      meet();
      const Timer timer;
      step();
      meet();
      if (i >= options_.warm_up) seconds.push_back(timer.seconds());
    }
    return seconds;
  }
  // One more step under the clock. Of several pipelines the one of the first rank's.
  json pipeline() {
    const int P = run_.parallel.mesh.pp;
    const Schedule schedule =
        make_schedule(schedule_shape(run_.parallel, train::most_micro_batches(run_)));
    StepClock clock(ctx_.device);
    learner_.time_steps(&clock);
    meet();
    clock.start(ctx_);
    const int64_t splits = splits_;
    step();
    learner_.time_steps(nullptr);
    HADAL_CHECK(splits_ == splits, "parallel.row_capacity is ", run_.parallel.row_capacity,
                ", and the step that is timed did not fit and ran twice; raise it, or use 0");
    std::vector<int> ranks;
    for (int p = 0; p < P; ++p) ranks.push_back(rank_of(run_.parallel.mesh, MeshCoord{.pp = p}));
    const plan::Timeline measured = gather(*world_, ranks, schedule, clock.spans());
    if (!team_.is_first()) return {};
    if (!options_.timeline.empty()) {
      const std::string title =
          fmt::format("{}, {} ranks, {} micro-batches", schedule_name(schedule.kind), P,
                      schedule.num_microbatches);
      io::write_file_atomic(options_.timeline,
                            plan::draw_measured(schedule, measured, title).file(title));
    }
    const plan::ChunkTimes t = plan::chunk_times(schedule, measured);
    const plan::Timeline replayed = plan::replay(schedule, measured);
    double bubbles = 0.0;
    for (int p = 0; p < P; ++p) bubbles += plan::bubble(measured, p) / P;
    json row = {{"forward_ms", t.forward},
                {"backward_ms", t.backward},
                {"weight_ms", t.weight},
                {"overlap_ms", t.overlap},
                {"makespan_ms", measured.makespan},
                {"replayed_makespan_ms", replayed.makespan},
                {"bubble_ms", bubbles},
                {"bubble_of_busiest_ms", plan::smallest_bubble(measured)},
                {"largest_bubble_ms", plan::largest_bubble(measured)}};
    if (const auto formula = plan::formula_bubble(schedule, t)) row["formula_bubble_ms"] = *formula;
    return row;
  }

  const Options& options_;
  const train::RunConfig& run_;
  World* world_;
  TrainRank rank_;
  Context& ctx_;
  PacedExchange* paced_ = nullptr;  // the learner's, with --pace
  train::Learner learner_;
  Team& team_;
  std::vector<std::vector<Sequence>> batches_;
  int64_t steps_ = 0, splits_ = 0;
  train::StepResult last_;
};

void run(const Options& o) {
  HADAL_CHECK(o.samples >= 1 && o.samples <= 10000, "--samples is ", o.samples,
              "; allowed: 1 to 10000");
  HADAL_CHECK(o.warm_up >= kWarmUp && o.warm_up <= 10000, "--warm-up is ", o.warm_up,
              "; allowed: ", kWarmUp, " to 10000");
  const train::RunConfig run = train::read_run_config(o.config, o.assignments);
  HADAL_CHECK(
      o.timeline.empty() || run.parallel.mesh.pp > 1,
      "--timeline is of a pipeline, and parallel.pp is 1: leave it out, or set parallel.pp");
  HADAL_CHECK(o.pace >= 0.0 && o.pace <= 10000.0, "--pace is ", o.pace,
              " GB/s; allowed: 0 to 10000");
  HADAL_CHECK(o.pace == 0.0 || run.parallel.mesh.ep > 1,
              "--pace is of transfers between experts, and parallel.ep is 1: leave it out, or set "
              "parallel.ep");
  HADAL_CHECK(o.pace == 0.0 || run.parallel.comm_sms > 0,
              "--pace copies with parallel.comm_sms SMs, and that is 0: set it, to 20 say");
  const int num_ranks = run.parallel.mesh.num_ranks();
  if (num_ranks == 1) return Bench(o, run, nullptr).run();
  World world({.num_ranks = num_ranks});
  launch(world, [&](int) { Bench(o, run, &world).run(); });
}

}  // namespace

void add_bench_train_command(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* command = bench.add_subcommand("train", "optimizer steps of a run config");
  command->add_option("--config", o->config, "run config; its \"parallel\" says how many ranks")
      ->capture_default_str();
  command->add_option("--set", o->assignments, "override a value: parallel.pp=4");
  command->add_option("--samples", o->samples, "steps that are timed")->capture_default_str();
  command
      ->add_option("--warm-up", o->warm_up,
                   "steps before those; with enough of them the gate's bias spreads the rows "
                   "evenly over the ranks, as in training")
      ->capture_default_str();
  command->add_option("--pace", o->pace,
                      "GB/s of a link: each transfer of experts' tokens is followed by a copy of "
                      "what a rank of 64 sends, at that rate");
  command->add_option("--timeline", o->timeline,
                      "picture of a pipeline's steps, planned and measured");
  command->footer(
      "Example: hadal bench train --config configs/small.json\n"
      "         hadal bench train --config configs/train_300m.json --set parallel.pp=4 "
      "--timeline pp4.svg");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
