// A chunk forward beside another backward on a rank of an expert-parallel group, with transfers
// that take as long as those to the other ranks would (report, 3.2.1; DeepSeek's trace of such a
// pair).
//
//   T tokens   D model width
//
// Each transfer is a copy of the bytes that a rank of 64 sends for its tokens, at the rate of a
// link and on the SMs that a sending kernel takes: into the memory of the next rank's GPU where
// there are several ranks, else within the device's own. Everything else is the trainer's:
// stage::overlap over layers with a rank's share of the experts, recorded on a GPU as its steps
// are.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <optional>

#include "cli/bench.h"
#include "cli/bench_rank.h"
#include "cli/model_config.h"
#include "cli/paced_exchange.h"
#include "core/side_stream.h"
#include "core/timer.h"
#include "model/stage.h"
#include "ops/copy.h"
#include "parallel/comm_host.h"
#include "parallel/comm_nccl.h"
#include "parallel/launch.h"
#include "parallel/peer_windows.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

struct Options {
  MachineOptions machine;
  std::string config = "configs/deepseek_v3.json";
  std::vector<std::string> formats = {"bf16"};
  std::vector<int64_t> tokens = {4096};
  std::vector<double> gbps = {50.0};  // of the link
  int64_t layers = 4, samples = 10;
  int comm_sms = 20, ranks = 1;
  bool calls = false;  // not recorded
};

// A middle stage, and two micro-batches on their way through it, one a chunk behind the other.
class Chunks {
 public:
  Chunks(Context& ctx, const Config& c, const Precision& precision, int64_t layers, int64_t tokens,
         void* to)
      : ctx_(ctx),
        rank_(ctx, c, precision, layers + 2),
        pool_(ctx, rank_.config(), DType::kBF16, 2 * rank_.pages(tokens)),
        exchange_(ctx,
                  std::make_unique<BalancedExchange>(ctx, pool_, tokens,
                                                     rank_.config().num_experts_per_tok),
                  rank_.config(), tokens, to),
        batch_(one_sequence(ctx, rank_.config(), tokens)),
        stage_{.config = rank_.config(),
               .w = rank_.weights(),
               .exchange = exchange_,
               .first_layer = 1,
               .last_layer = 1 + layers,
               .num_mtp = 0},
        meter_(stage::make_meter(ctx, stage_)) {
    const Shape shape{tokens, c.hidden_size};
    x_ = random_rows(ctx, "x", shape, 1.0, &x_memory_);
    dy_ = random_rows(ctx, "dy", shape, 1e-4, &dy_memory_);
    dx_memory_ = ctx.memory.take_tensor(DType::kBF16, shape, &dx_);
    scale_.balance = 1e-4;
  }

  PacedExchange& exchange() { return exchange_; }
  void leave_sms(int sms) { stage_.spare_sms = sms; }
  void begin() { saved_ = stage::forward(ctx_, stage_, batch_, x_, meter_); }
  // The next chunk's forward, and the backward of the one before.
  void pair(bool side_by_side) {
    const stage::BackwardArgs args{.batch = batch_, .scale = scale_, .dy_in = dy_, .dx_out = dx_};
    if (side_by_side) {
      saved_ = stage::overlap(ctx_, {.stage = stage_, .batch = batch_, .x_in = x_, .meter = meter_},
                              stage_, std::move(saved_), args, rank_.grads());
      return;
    }
    stage::Saved next = stage::forward(ctx_, stage_, batch_, x_, meter_);
    stage::backward(ctx_, stage_, std::move(saved_), args, rank_.grads());
    saved_ = std::move(next);
  }
  void end() { saved_ = {}; }
  // A chunk's forward and so many pairs as one graph.
  Graph record(int pairs, bool side_by_side) {
    const GraphMemory::Scope scope(temporaries_);
    const auto all = [&] {
      begin();
      for (int i = 0; i < pairs; ++i) pair(side_by_side);
      end();
    };
    all();  // kernels are loaded, and there is memory
    device::begin_recording(ctx_.device, ctx_.stream);
    all();
    return device::end_recording(ctx_.device, ctx_.stream);
  }

 private:
  Context& ctx_;
  GraphMemory temporaries_{ctx_.memory};
  RankLayers rank_;
  RowPool pool_;
  PacedExchange exchange_;
  Batch batch_;
  stage::Stage stage_;
  stage::Meter meter_;
  stage::LossScale scale_;
  Block x_memory_, dy_memory_, dx_memory_;
  Tensor x_, dy_, dx_;
  stage::Saved saved_;
};

// What a rank has of the others.
struct Others {
  World* world = nullptr;  // none: the rank is alone
  std::unique_ptr<Comm> comm;
  void meet() const {
    if (comm) comm->barrier();
  }
  bool is_first() const { return world == nullptr || world->rank() == 0; }
};

void bench(Context& ctx, const Config& config, const Precision& precision, int64_t tokens,
           const Options& o, const Others& others, json row) {
  SideStream side(ctx.device);
  std::unique_ptr<PeerWindows> windows;
  void* to = nullptr;
  if (others.world != nullptr) {
    windows = std::make_unique<PeerWindows>(
        *others.world, others.world->all_ranks(), ctx.device,
        static_cast<size_t>(PacedExchange::buffer_bytes(config, tokens)));
    to = windows->view().window[static_cast<size_t>((others.world->rank() + 1) % o.ranks)];
  }
  const bool recorded = device::can_record(ctx.device) && !o.calls;
  Chunks chunks(ctx, config, precision, o.layers, tokens, to);
  PacedExchange& exchange = chunks.exchange();
  // Milliseconds a layer, the median.
  const auto timed = [&](const auto& fn) {
    std::vector<double> times;
    for (int64_t i = 0; i < o.samples + 2; ++i) {
      device::synchronize(ctx.device, ctx.stream);
      others.meet();
      const Timer timer;
      fn();
      device::synchronize(ctx.device, ctx.stream);
      others.meet();
      if (i >= 2) times.push_back(1e3 * timer.seconds() / static_cast<double>(o.layers));
    }
    return quantile(times, 0.5);
  };
  const auto run = [&](std::optional<PacedExchange::Link> link, int spare_sms, bool side_by_side) {
    exchange.link = link;
    chunks.leave_sms(spare_sms);
    if (recorded) {
      constexpr int kFew = 1, kMore = 3;  // what more pairs take longer: of the chunk none
      const auto time_of = [&](int pairs) {
        const Graph graph = chunks.record(pairs, side_by_side);
        const double ms = timed([&] { device::launch(ctx.device, ctx.stream, graph); });
        device::destroy(ctx.device, graph);
        return ms;
      };
      return (time_of(kMore) - time_of(kFew)) / (kMore - kFew);
    }
    chunks.begin();
    const double ms = timed([&] { chunks.pair(side_by_side); });
    chunks.end();
    return ms;
  };
  const auto nothing = std::nullopt;
  const double all_sms = run(nothing, 0, false), compute = run(nothing, o.comm_sms, true);
  for (const double gbps : o.gbps) {
    const PacedExchange::Link alone{1e9 * gbps, o.comm_sms, nullptr},
        beside{1e9 * gbps, o.comm_sms, &side};
    exchange.link = alone;
    const double transfers = timed([&] {
      for (int64_t l = 0; l < o.layers; ++l) exchange.send_layer(ctx);
    });
    const double serial = run(alone, 0, false), overlapped = run(beside, o.comm_sms, true);
    row.update({{"bench", "overlap"},
                {"ranks", o.ranks},
                {"products", precision.fp8 ? "fp8" : "bf16"},
                {"tokens", tokens},
                {"layers", o.layers},
                {"local_experts", kLocalExperts},
                {"link_GBps", gbps},
                {"comm_sms", o.comm_sms},
                {"recorded", recorded},
                {"sent_MB", 1e-6 * static_cast<double>(exchange.bytes_of_layer())},
                {"compute_all_sms_ms", all_sms},
                {"compute_ms", compute},
                {"transfers_ms", transfers},
                {"serial_ms", serial},
                {"overlapped_ms", overlapped},
                {"over_longer", overlapped / std::max(compute, transfers)},
                {"serial_over_overlapped", serial / overlapped}});
    if (others.is_first()) fmt::print("{}\n", row.dump());
    std::fflush(stdout);
  }
}

void bench_all(Context& ctx, const Options& o, const Others& others) {
  std::string command =
      fmt::format("hadal bench overlap --config {} --samples {} --layers {} --comm-sms {}",
                  o.config, o.samples, o.layers, o.comm_sms);
  if (o.calls) command += " --calls";
  if (o.ranks > 1) command += fmt::format(" --ranks {}", o.ranks);
  json row = machine_row(ctx, command);
  row.update({{"config", o.config}, {"device", device::name(ctx.device)}});
  for (const std::string& format : o.formats)
    for (const int64_t tokens : o.tokens)
      bench(ctx, read_model_config(o.config), precision_of(format), tokens, o, others, row);
}

void check(const Options& o) {
  const auto check_number = [](const char* flag, double value, double lowest, double most) {
    HADAL_CHECK(value >= lowest && value <= most, flag, " is ", value, "; allowed: ", lowest,
                " to ", most);
  };
  for (const std::string& format : o.formats) precision_of(format);
  for (const int64_t t : o.tokens) check_number("--tokens", static_cast<double>(t), 1, 65536);
  check_number("--samples", static_cast<double>(o.samples), 1, 10000);
  check_number("--layers", static_cast<double>(o.layers), 1, 64);
  check_number("--comm-sms", o.comm_sms, 1, 64);
  check_number("--ranks", o.ranks, 1, ops::kMaxPeers);
  for (const double gbps : o.gbps) check_number("--gbps", gbps, 0.001, 1000);
  HADAL_CHECK(o.ranks == 1 || o.machine.on_gpus(), "--ranks is ", o.ranks,
              ": transfers between ranks are those of GPUs; add --device cuda, or leave it out");
}

void run(const Options& o) {
  check(o);
  if (o.ranks == 1) {
    const auto machine = o.machine.make();
    Context ctx = machine->context();
    return bench_all(ctx, o, {});
  }
  World world({.num_ranks = o.ranks});
  launch(world, [&](int) {
    const auto machine = o.machine.make(gpu_of_rank(world), o.ranks);
    Context ctx = machine->context();
    bench_all(ctx, o, {.world = &world, .comm = make_comm_host(world, world.all_ranks(), "world")});
  });
}

}  // namespace

void add_bench_overlap_command(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* command = bench.add_subcommand(
      "overlap", "a chunk forward beside another backward, with transfers of a link's rate");
  command->add_option("--config", o->config, "config.json, or a run config")->capture_default_str();
  command->add_option("--format", o->formats, "of products: bf16, fp8")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--tokens", o->tokens, "of a micro-batch")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--samples", o->samples, "runs that are timed")->capture_default_str();
  command->add_option("--layers", o->layers, "of a chunk")->capture_default_str();
  command->add_option("--comm-sms", o->comm_sms, "SMs of a transfer")->capture_default_str();
  command->add_option("--gbps", o->gbps, "GB/s of the link")->delimiter(',');
  command->add_option("--ranks", o->ranks, "processes with a GPU each, that send to each other")
      ->capture_default_str();
  command->add_flag("--calls", o->calls, "call by call, and not recorded, on a GPU");
  o->machine.add_to(*command);
  command->footer(
      "Example: hadal bench overlap --tokens 4096 --format fp8 --device cuda --ranks 2");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
