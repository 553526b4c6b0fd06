// hadal bench comm: what crosses between ranks, call by call: collectives by size beside the bare
// sends and receives of the same bytes, and the exchange of tokens at a model's shapes.
//
// Rates are of the bytes that leave a rank for others. A sample is a run of calls that begins with
// all ranks ready and idle and ends when this rank's device is; rows are of rank 0.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "cli/bench.h"
#include "cli/model_config.h"
#include "core/rng.h"
#include "core/timer.h"
#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/copy.h"
#include "parallel/comm_host.h"
#include "parallel/comm_nccl.h"
#include "parallel/expert_exchange.h"
#include "parallel/launch.h"
#include "parallel/peer_windows.h"
#include "parallel/window_exchange.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

struct Options {
  int ranks = 2, samples = 10, calls = 20;
  std::string device = "cpu", config = "configs/deepseek_v3.json";
  std::vector<int64_t> bytes = {1 << 13, 1 << 16, 1 << 20, 1 << 24, 1 << 28};
  std::vector<int64_t> tokens = {128, 4096};
};

// What the rows of a rank are measured with.
class Bench {
 public:
  Bench(Context& ctx, Comm& comm, const Options& o, json row)
      : ctx_(ctx), comm_(comm), options_(o), row_(std::move(row)) {}

  Context& ctx() { return ctx_; }
  Comm& comm() { return comm_; }

  // `sent`: bytes that leave this rank in one call.
  template <class Call>
  void measure(const std::string& op, int64_t bytes, int64_t sent, const Call& call) {
    std::vector<double> seconds;
    for (int i = 0; i < options_.samples + 2; ++i) {
      device::synchronize(ctx_.device, ctx_.stream);
      comm_.barrier();
      const Timer timer;
      for (int c = 0; c < options_.calls; ++c) call();
      device::synchronize(ctx_.device, ctx_.stream);
      if (i >= 2) seconds.push_back(timer.seconds() / options_.calls);  // the first two warm up
    }
    print(op, bytes, sent, seconds);
  }
  // The same calls recorded and launched as one.
  template <class Call>
  void measure_recorded(const std::string& op, int64_t bytes, int64_t sent, const Call& call) {
    if (!device::can_record(ctx_.device)) return;
    GraphMemory temporaries(ctx_.memory);
    const GraphMemory::Scope scope(temporaries);
    device::begin_recording(ctx_.device, ctx_.stream);
    call();
    const Graph graph = device::end_recording(ctx_.device, ctx_.stream);
    measure(op + ", recorded", bytes, sent,
            [&] { device::launch(ctx_.device, ctx_.stream, graph); });
    device::synchronize(ctx_.device, ctx_.stream);
    device::destroy(ctx_.device, graph);
  }

 private:
  void print(const std::string& op, int64_t bytes, int64_t sent, const std::vector<double>& s) {
    if (comm_.rank() != 0) return;
    json row = row_;
    const double median = quantile(s, 0.5);
    row.update({{"op", op},
                {"bytes", bytes},
                {"sent_bytes", sent},
                {"us", 1e6 * median},
                {"us_p10", 1e6 * quantile(s, 0.1)},
                {"us_p90", 1e6 * quantile(s, 0.9)},
                {"gigabytes_per_second", 1e-9 * static_cast<double>(sent) / median}});
    fmt::print("{}\n", row.dump());
    std::fflush(stdout);
  }

  Context& ctx_;
  Comm& comm_;
  const Options& options_;
  json row_;
};

Tensor filled(Context& ctx, DType dtype, const Shape& shape, Block* memory) {
  Tensor t;
  *memory = ctx.memory.take_tensor(dtype, shape, &t);
  ops::fill(ctx, 1.0, t);
  return t;
}

// Every rank's share of `bytes` to every other, by NCCL's own calls and nothing else.
void bench_sends(Bench& bench, NcclWorld& gpus, const Tensor& x, const Tensor& y) {
  Comm& comm = bench.comm();
  const int64_t part = x.num_bytes() / comm.size();
  std::vector<NcclWorld::Piece> pieces;
  for (int r = 0; r < comm.size(); ++r) {
    if (r == comm.rank()) continue;
    const auto at = [&](const Tensor& t) { return static_cast<std::byte*>(t.raw()) + r * part; };
    pieces.push_back({.send = true, .peer = r, .data = at(x), .bytes = part});
    pieces.push_back({.send = false, .peer = r, .data = at(y), .bytes = part});
  }
  const auto call = [&] { gpus.exchange(bench.ctx().stream, pieces, NcclWorld::Channel::kWork); };
  const int64_t sent = part * (comm.size() - 1);
  bench.measure("ncclSend and ncclRecv", x.num_bytes(), sent, call);
  bench.measure_recorded("ncclSend and ncclRecv", x.num_bytes(), sent, call);
}

// Collectives over tensors of `bytes` bytes.
void bench_collectives(Bench& bench, NcclWorld* gpus, int64_t bytes) {
  Context& ctx = bench.ctx();
  Comm& comm = bench.comm();
  const int64_t N = comm.size(), n = std::max<int64_t>(1, bytes / N / 4);
  Block x_memory, y_memory;
  const Tensor x = filled(ctx, DType::kF32, {N, n}, &x_memory);
  const Tensor y = filled(ctx, DType::kF32, {N, n}, &y_memory);
  const int64_t all = x.num_bytes(), part = all / N, others = part * (N - 1);
  if (gpus != nullptr) bench_sends(bench, *gpus, x, y);
  const auto both = [&](const std::string& op, int64_t sent, const auto& call) {
    bench.measure(op, all, sent, call);
    bench.measure_recorded(op, all, sent, call);
  };
  both("all_to_all", others, [&] { comm.all_to_all(ctx, x, Out(Tensor(y))); });
  both("all_gather", others, [&] { comm.all_gather(ctx, y.row(comm.rank()), Out(Tensor(y))); });
  both("reduce_scatter", others, [&] { comm.reduce_scatter(ctx, x, Out(y.row(comm.rank()))); });
  both("all_reduce", 2 * others, [&] { comm.all_reduce(ctx, Acc(Tensor(x))); });
}

// Sums of bf16 rows as ranks that share a model make them in decode: by NCCL, and by kernels of our
// own through windows.
void bench_sums(Bench& bench, World& world, NcclWorld& gpus) {
  Context& ctx = bench.ctx();
  const std::unique_ptr<Comm> windows = gpus.make_comm_with_sums(world.all_ranks(), "model");
  if (windows->peer_sums() == nullptr) return;
  for (const int64_t bytes :
       {int64_t{1} << 12, int64_t{1} << 14, int64_t{1} << 18, int64_t{1} << 20}) {
    Block memory;
    const Tensor x = filled(ctx, DType::kBF16, {bytes / 2}, &memory);
    const int64_t sent = bytes * (bench.comm().size() - 1);
    for (const auto& [how, comm] : {std::pair<const char*, Comm*>{"sum of bf16", &bench.comm()},
                                    {"sum of bf16, windows", windows.get()}}) {
      const auto call = [&, comm = comm] { comm->all_reduce(ctx, Acc(Tensor(x))); };
      bench.measure(how, bytes, sent, call);
      bench.measure_recorded(how, bytes, sent, call);
    }
  }
  device::synchronize(ctx.device, ctx.stream);
}

// Choices of T tokens: K different experts each, ascending.
Tensor random_choices(Context& ctx, const Config& c, int64_t T, int rank, Block* memory) {
  Tensor idx;
  *memory = ctx.memory.take_tensor(DType::kI32, {T, c.num_experts_per_tok}, &idx);
  const Rng rng(3, stream_id(concat("choices of rank ", rank)));
  std::vector<int32_t> values, experts(static_cast<size_t>(c.n_routed_experts));
  uint64_t draw = 0;
  for (int64_t t = 0; t < T; ++t) {
    std::iota(experts.begin(), experts.end(), 0);
    for (int64_t k = 0; k < c.num_experts_per_tok; ++k) {
      const auto left = static_cast<uint64_t>(c.n_routed_experts - k);
      std::swap(experts[static_cast<size_t>(k)],
                experts[static_cast<size_t>(k) + rng.u64(draw++) % left]);
    }
    std::sort(experts.begin(), experts.begin() + c.num_experts_per_tok);
    values.insert(values.end(), experts.begin(), experts.begin() + c.num_experts_per_tok);
  }
  upload(ctx, values, idx);
  return idx;
}

// T tokens of each rank on their way to random experts and back.
class Trips {
 public:
  Trips(Bench& bench, const Config& c, int64_t T)
      : bench_(bench), ctx_(bench.ctx()), config_(c), T_(T) {
    const int64_t N = bench.comm().size(), K = c.num_experts_per_tok, D = c.hidden_size;
    const int64_t local = c.n_routed_experts / N;
    pool_ = std::make_unique<RowPool>(ctx_, c, DType::kBF16,
                                      experts::max_pages(N * T * std::min(K, local), local));
    x_ = filled(ctx_, DType::kBF16, {T, D}, &x_memory_);
    y_ = filled(ctx_, DType::kBF16, {T, D}, &y_memory_);
    idx_ = random_choices(ctx_, c, T, bench.comm().rank(), &idx_memory_);
    weight_ = filled(ctx_, DType::kF32, {T, K}, &weight_memory_);
  }
  RowPool& pool() { return *pool_; }

  // Bytes of rows that leave this rank, out and back.
  void count(CountedExchange& exchange) {
    run(exchange, [&](Ticket& ticket, const ops::PagedRows& rows) {
      sent_ = exchange.counters(ctx_).node_bytes;
      exchange.reset_counters(ctx_);
      exchange.combine_start(ctx_, ticket, rows);
      exchange.combine_finish(ctx_, ticket, rows, y_);
      back_ = exchange.counters(ctx_).node_bytes;
    });
  }
  // Dispatch in bf16 or FP8, and combine, which is in bf16 either way. `how`: as a row's name ends.
  // What needs no host is recorded as well.
  void measure(CountedExchange& exchange, const std::string& how, bool needs_host) {
    const auto both = [&](const std::string& op, int64_t sent, const auto& call) {
      bench_.measure(op + how, T_, sent, call);
      if (!needs_host) bench_.measure_recorded(op + how, T_, sent, call);
    };
    run(exchange, [&](Ticket& ticket, const ops::PagedRows& rows) {
      if (config_.precision.fp8) return;
      both("combine", back_, [&] {
        exchange.combine_start(ctx_, ticket, rows);
        exchange.combine_finish(ctx_, ticket, rows, y_);
      });
    });
    const std::string dispatch = config_.precision.fp8 ? "dispatch, FP8" : "dispatch";
    both(dispatch, sent_, [&] {
      Ticket ticket = exchange.dispatch_start(ctx_, x_, idx_, weight_);
      RowLease lease;
      exchange.dispatch_finish(ctx_, ticket, &lease);
    });
    if (needs_host) return;
    // Until the rows are in the windows of their experts' ranks, and no further.
    both(dispatch + " without rows by expert", sent_,
         [&] { const Ticket t = exchange.dispatch_start(ctx_, x_, idx_, weight_); });
  }

 private:
  template <class Fn>
  void run(CountedExchange& exchange, const Fn& fn) {
    Ticket ticket = exchange.dispatch_start(ctx_, x_, idx_, weight_);
    RowLease lease;
    exchange.dispatch_finish(ctx_, ticket, &lease);
    ops::PagedRows rows;
    const Block memory = ctx_.memory.take_tensor(
        DType::kBF16, {ticket.num_pages, ops::kPageRows, config_.hidden_size}, &rows.slab);
    ops::fill(ctx_, 1.0, Tensor(rows.slab));
    fn(ticket, rows);
  }

  Bench& bench_;
  Context& ctx_;
  const Config& config_;
  int64_t T_, sent_ = 0, back_ = 0;
  std::unique_ptr<RowPool> pool_;
  Block x_memory_, y_memory_, idx_memory_, weight_memory_;
  Tensor x_, y_, idx_, weight_;
};

// As messages, where dispatch waits for the host; on GPUs of one host through windows as well.
void bench_exchange(Bench& bench, const Config& c, int64_t T, World& world, NcclWorld* gpus) {
  Trips trips(bench, c, T);
  Comm& comm = bench.comm();
  ExpertExchange messages({.inner = comm, .outer = nullptr, .num_experts = c.n_routed_experts},
                          trips.pool());
  trips.count(messages);
  trips.measure(messages, "", true);
  if (gpus == nullptr || world.hosts().size() > 1 || comm.size() > ops::kMaxPeers) return;
  const WindowLayout layout(comm.size(), T, c.num_experts_per_tok, c.hidden_size, DType::kBF16,
                            c.precision.fp8);
  const PeerWindows windows(world, world.all_ranks(), gpus->device(),
                            static_cast<size_t>(layout.bytes));
  for (const int sms : {20, 8, 0}) {
    WindowExchange exchange(bench.ctx(),
                            {.view = windows.view(),
                             .num_experts = c.n_routed_experts,
                             .sms = sms,
                             .stop = gpus->stop_flag()},
                            layout, trips.pool());
    trips.measure(exchange,
                  sms > 0 ? fmt::format(", windows, {} SMs", sms) : ", windows, copy engine",
                  false);
  }
  device::synchronize(bench.ctx().device, bench.ctx().stream);
}

void run_rank(World& world, const Options& o, const std::string& command) {
  const bool on_gpus = o.device == "cuda";
  Machine machine(1, on_gpus ? gpu_of_rank(world) : Device{});
  Context ctx = machine.context();
  std::unique_ptr<NcclWorld> gpus;
  if (on_gpus) gpus = std::make_unique<NcclWorld>(world, ctx);
  const std::unique_ptr<Comm> comm = gpus ? gpus->make_comm(world.all_ranks(), "world")
                                          : make_comm_host(world, world.all_ranks(), "world");
  json row = machine_row(ctx, command);
  row.update({{"bench", "comm"},
              {"ranks", world.size()},
              {"hosts", world.hosts().size()},
              {"device", device::name(ctx.device)},
              {"nccl", gpus ? gpus->api().version() : ""}});
  Bench bench(ctx, *comm, o, row);
  for (const int64_t bytes : o.bytes) bench_collectives(bench, gpus.get(), bytes);
  if (gpus) bench_sums(bench, world, *gpus);
  Config config = read_model_config(o.config);
  for (const Precision& precision : {Precision{}, kFp8Recipe}) {
    config.precision = precision;
    for (const int64_t tokens : o.tokens) bench_exchange(bench, config, tokens, world, gpus.get());
  }
}

void run(const Options& o) {
  HADAL_CHECK(o.ranks >= 2 && o.ranks <= 64, "--ranks is ", o.ranks, "; allowed: 2 to 64");
  HADAL_CHECK(o.samples >= 1 && o.calls >= 1, "--samples and --calls are at least 1");
  HADAL_CHECK(o.device == "cpu" || o.device == "cuda", "--device is ", o.device,
              "; allowed: cpu, cuda");
  for (const int64_t bytes : o.bytes)
    HADAL_CHECK(bytes >= 1 && bytes <= (int64_t{1} << 34), "--bytes is ", bytes,
                "; allowed: 1 to 2^34");
  const Config config = read_model_config(o.config);
  HADAL_CHECK(o.tokens.empty() || config.n_routed_experts % o.ranks == 0, "--ranks ", o.ranks,
              " does not divide the ", config.n_routed_experts, " experts of ", o.config);
  std::string command =
      fmt::format("hadal bench comm --ranks {} --device {} --config {} --samples {} --calls {}",
                  o.ranks, o.device, o.config, o.samples, o.calls);
  World world({.num_ranks = o.ranks});
  launch(world, [&](int) { run_rank(world, o, command); });
}

}  // namespace

void add_bench_comm_command(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* command = bench.add_subcommand("comm", "what crosses between the ranks of this host");
  command->add_option("--ranks", o->ranks, "processes; on cuda with a GPU each")
      ->capture_default_str();
  command->add_option("--device", o->device, "cpu or cuda")->capture_default_str();
  command->add_option("--config", o->config, "of the model whose tokens are exchanged")
      ->capture_default_str();
  command->add_option("--bytes", o->bytes, "of a rank's tensor in collectives")->delimiter(',');
  command->add_option("--tokens", o->tokens, "of a rank, to be dispatched")->delimiter(',');
  command->add_option("--samples", o->samples, "that are timed")->capture_default_str();
  command->add_option("--calls", o->calls, "of a sample")->capture_default_str();
  command->footer("Example: hadal bench comm --ranks 2 --device cuda --tokens 128,4096");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
