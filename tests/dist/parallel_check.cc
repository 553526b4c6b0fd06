// parallel_check: trains a tiny model on every mesh and schedule, on processes of this machine, and
// compares every loss, gradient, count and router bias of 10 steps with one rank.
//
//   parallel_check [--ranks N,N,...] [--case TEXT] [--types NAME,...] [--device cpu|cuda]
//                  [--sabotage NAME] [--fast]
//
// --ranks: meshes of that many ranks (4). --case: only those whose name contains TEXT. --types: of
// f64, f32, bf16, fp8; f64 and f32 if nothing is said. --device cuda: each rank on a GPU of its
// own, against one rank on one GPU. --sabotage plants a fault in the ranks, not in the run they are
// compared with. --fast: but for f64 on CPUs, two of the schedules. Exits 1 beyond the bounds:
// losses 1e-11 and gradients 1e-10 in f64, 2e-6 and 2e-5 in f32, relative; a gradient's error is
// that of the worst parameter, in L2 norm. In f32 every step begins at one rank's weights
// ("pinned"), and again the 10 steps go on from their own ("free"), with a wider bound for
// gradients: why, and what is printed about updates, says docs/parallel.md, and so it does of bf16
// and fp8, where the bound is on the error of all gradients together.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>

#include "core/transfer.h"
#include "ops/fp8_wire.h"
#include "parallel/comm_nccl.h"
#include "parallel/launch.h"
#include "tests/dist/machine.h"
#include "tests/unit/train.h"

namespace hadal::train {
namespace {

using hadal::testing::Machine;

constexpr int kSteps = 10;
constexpr int64_t kSequences = 64, kMicroBatches = 8;  // of a step; of each data-parallel rank

enum class Weights : uint8_t { kFree, kPinned };

struct Bounds {
  double loss, gradient;
  double counts;  // choices that may be of other experts, of all
};

// What is trained and how close it must be.
struct Setting {
  const char* type;
  DType dtype;
  Weights weights;
  Bounds pipeline, data, others;  // of meshes of pp alone, of pp and dp, and with ep or tp
  bool fp8 = false;
  // Every part of a matrix that a tensor group splits is of whole tiles of 128 x 128, as those of
  // DeepSeek-V3 are: each rank's quantisation is then one rank's.
  bool whole_tiles = false;

  bool is_exact() const { return dtype != DType::kBF16; }
  const Bounds& bounds(const Mesh& m) const {
    if (m.ep > 1 || m.tp > 1) return others;
    return m.dp > 1 ? data : pipeline;
  }
};
constexpr Bounds kF64{1e-11, 1e-10, 0.0}, kF32{2e-6, 2e-5, 0.0}, kFree{2e-6, 1e-4, 0.0};
constexpr Setting kSettings[] = {
    {"f64", DType::kF64, Weights::kFree, kF64, kF64, kF64},
    {"f32", DType::kF32, Weights::kPinned, kF32, kF32, kF32},
    {"f32", DType::kF32, Weights::kFree, kFree, kFree, kFree},
    {"bf16", DType::kBF16, Weights::kPinned, kF32, kF32, {3e-3, 4e-1, 1.5e-2}},
    {"fp8", DType::kBF16, Weights::kPinned, kF32, {2e-6, 1e-1, 0.0}, {4e-3, 5e-1, 2e-2}, true},
    {"fp8", DType::kBF16, Weights::kPinned, kF32, kF32, {4e-3, 5e-1, 2e-2}, true, true}};

// In bf16 and fp8 one choice of an expert may flip: more and wider tokens, so that it is one of
// many.
Config model(const Setting& setting) {
  Config c = test::tiny_config();
  c.num_hidden_layers = 8;
  c.num_attention_heads = 4;  // tp divides it,
  c.intermediate_size = 12;   // and this
  c.num_nextn_predict_layers = 1;
  c.initializer_range = 0.1;
  if (!setting.is_exact()) {
    c.vocab_size = 256;
    c.hidden_size = 128;
    c.intermediate_size = c.moe_intermediate_size = 128;
    c.q_lora_rank = c.kv_lora_rank = 64;
    c.qk_nope_head_dim = c.v_head_dim = 32;
    c.qk_rope_head_dim = 16;
    c.initializer_range = 0.05;
  }
  if (setting.whole_tiles) {
    c.intermediate_size = 256;
    c.qk_nope_head_dim = c.qk_rope_head_dim = c.v_head_dim = 64;
  }
  if (setting.fp8) c.precision = kFp8Recipe;
  c.validate();
  return c;
}
int64_t length_of(const Setting& setting) { return setting.is_exact() ? 7 : 33; }

Recipe recipe() {
  Recipe r;
  r.lr = 3e-4;
  r.balance_alpha = 1e-2;
  r.bias_gamma = 1e-2;
  return r;
}

// Whether a step's micro-batches are of one shape, so that a GPU records them, or the step where
// the one before was too: three steps of four, of what GPUs are checked with.
bool is_of_one_shape(const Setting& setting, int step) {
  return !setting.is_exact() && step % 4 != 1;
}

// The sequences of a step, cut for `dp` data-parallel ranks.
std::vector<std::vector<Sequence>> micro_batches(const Setting& setting, int step, int dp) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < kSequences; ++i)
    lengths.push_back(is_of_one_shape(setting, step)
                          ? length_of(setting)
                          : 2 + (i * 5 + step) % (length_of(setting) - 1));
  std::vector<Sequence> all =
      test::random_sequences(model(setting), lengths, concat("step ", step));
  if (is_of_one_shape(setting, step))
    for (Sequence& sequence : all)
      std::replace(sequence.targets.begin(), sequence.targets.end(), -1, 0);  // none is missing
  const auto size = static_cast<size_t>(kSequences / (dp * kMicroBatches));
  std::vector<std::vector<Sequence>> cut;
  for (size_t i = 0; i < all.size(); i += size)
    cut.emplace_back(all.begin() + static_cast<int64_t>(i),
                     all.begin() + static_cast<int64_t>(i + size));
  return cut;
}

// What one step of one rank left.
struct Reference {
  StepResult result;
  std::map<std::string, std::vector<double>> before, grads, after;  // masters, gradients, masters
};

std::vector<double> values_of(Context& ctx, const Tensor& t) {
  const HostRead host(ctx, t);
  std::vector<double> values;
  for (int64_t i = 0; i < t.num_elements(); ++i)
    values.push_back(load_element(host.tensor().raw(), t.dtype(), i));
  return values;
}

struct Rank {
  Rank(Context& context, const Setting& setting_, Team* team)
      : setting(setting_),
        ctx(context),
        learner(ctx, model(setting), setting.dtype, kSequences / kMicroBatches * length_of(setting),
                {.team = team, .max_micro_batches = kMicroBatches}) {
    init_params(ctx, model(setting), 5, learner.masters().tree,
                team == nullptr ? Share() : team->share().tensor);
    learner.masters_changed();
  }
  const Setting& setting;
  Context& ctx;
  Learner learner;
};

std::vector<Reference> train_alone(Context& ctx, const Setting& setting) {
  Rank rank(ctx, setting, nullptr);
  const Config config = model(setting);
  std::vector<Reference> steps;
  for (int step = 1; step <= kSteps; ++step) {
    Reference r;
    for_each_param(
        config,
        [&](const ParamInfo& info, Tensor& master) {
          r.before[info.name] = values_of(ctx, master);
        },
        rank.learner.masters().tree);
    r.result = rank.learner.compute_gradients(micro_batches(setting, step, 1), recipe());
    for_each_param(
        config,
        [&](const ParamInfo& info, Tensor& grad, Tensor&) {
          if (info.trained()) r.grads[info.name] = values_of(ctx, grad);
        },
        rank.learner.grads().tree, rank.learner.masters().tree);
    rank.learner.update(recipe(), step, r.result);
    for_each_param(
        config,
        [&](const ParamInfo& info, Tensor& master) { r.after[info.name] = values_of(ctx, master); },
        rank.learner.masters().tree);
    steps.push_back(std::move(r));
  }
  return steps;
}

// Worst errors of a rank, in memory that its parent reads.
struct Worst {
  double loss = 0.0, gradient = 0.0;
  // How far an update from one rank's weights is from one rank's, in learning rates, where it is
  // farthest; and the gradient there, in root mean squares of its parameter's.
  double update = 0.0, gradient_there = 0.0;
  double counts = 0.0;  // choices of other experts than one rank's, of all
};

double relative(double got, double want) {
  return want == 0.0 ? std::abs(got) : std::abs(got - want) / std::abs(want);
}

class Comparison {
 public:
  Comparison(const Setting& setting, const Mesh& mesh, int step, Worst& worst)
      : setting_(setting), bounds_(setting.bounds(mesh)), step_(step), worst_(worst) {}

  void loss(const std::string& what, double got, double want) {
    const double error = relative(got, want);
    worst_.loss = std::max(worst_.loss, error);
    HADAL_CHECK(error <= bounds_.loss, "step ", step_, ": ", what, " is ", got, ", one rank's is ",
                want, ": off by ", error);
  }
  void gradient(const std::string& name, const std::vector<double>& got,
                const std::vector<double>& want) {
    double square = 0.0, norm = 0.0;
    for (size_t i = 0; i < want.size(); ++i) {
      square += (got[i] - want[i]) * (got[i] - want[i]);
      norm += want[i] * want[i];
    }
    all_square_ += square;
    all_norm_ += norm;
    if (setting_.is_exact()) check_gradient(name, square, norm);
  }
  // After all parameters of this rank.
  void all_gradients() {
    if (!setting_.is_exact()) check_gradient("all parameters of the rank", all_square_, all_norm_);
  }
  void counts(const std::vector<std::vector<int64_t>>& got,
              const std::vector<std::vector<int64_t>>& want) {
    int64_t moved = 0, all = 0;
    for (size_t m = 0; m < want.size(); ++m)
      for (size_t e = 0; e < want[m].size(); ++e) {
        moved += std::max<int64_t>(0, got[m][e] - want[m][e]);
        all += want[m][e];
      }
    const double share = static_cast<double>(moved) / static_cast<double>(all);
    worst_.counts = std::max(worst_.counts, share);
    HADAL_CHECK(share <= bounds_.counts, "the counts of experts differ from one rank's: ", moved,
                " of ", all);
  }

  // The same update from the same weights.
  void update(const std::vector<double>& got, const std::vector<double>& want,
              const std::vector<double>& gradient) {
    double square = 0.0;
    for (const double g : gradient) square += g * g;
    const double rms = std::sqrt(square / static_cast<double>(gradient.size()));
    for (size_t i = 0; i < got.size(); ++i) {
      const double apart = std::abs(got[i] - want[i]) / recipe().lr;
      if (apart <= worst_.update) continue;
      worst_.update = apart;
      worst_.gradient_there = std::abs(gradient[i]) / rms;
    }
  }
  bool is_pinned() const { return setting_.weights == Weights::kPinned; }
  bool is_exact() const { return setting_.is_exact(); }

 private:
  void check_gradient(const std::string& name, double square, double norm) {
    const double error = norm == 0.0 ? std::sqrt(square) : std::sqrt(square / norm);
    worst_.gradient = std::max(worst_.gradient, error);
    HADAL_CHECK(error <= bounds_.gradient, "step ", step_, ": the gradient of ", name,
                " is off by ", error);
  }

  const Setting& setting_;
  const Bounds& bounds_;
  int step_;
  Worst& worst_;
  double all_square_ = 0.0, all_norm_ = 0.0;
};

void compare_losses(const StepResult& got, const StepResult& want, Comparison& comparison) {
  comparison.loss("the loss", got.main, want.main);
  for (size_t k = 0; k < want.mtp.size(); ++k)
    comparison.loss("the MTP loss", got.mtp[k], want.mtp[k]);
  comparison.loss("the balance loss", got.balance, want.balance);
  if (comparison.is_exact())
    comparison.gradient("all parameters, its norm,", {got.grad_norm}, {want.grad_norm});
  comparison.counts(got.counts, want.counts);
}

// Tokens reach at most topk_group nodes (as many times more as a group of experts spans nodes), and
// what crosses between nodes is at most a row for each of these, in each of the four trips; of FP8
// the two trips out are in FP8.
void check_node_limit(const ExchangeCounters& c, const Team& team, const Setting& setting) {
  const Config config = model(setting);
  const DType stat = stat_dtype(setting.dtype);
  const auto value = static_cast<int64_t>(dtype_size(stat));
  const int64_t K = config.num_experts_per_tok;
  const int64_t act = config.hidden_size * static_cast<int64_t>(dtype_size(setting.dtype));
  const int64_t out = config.precision.fp8 ? ops::wire_bytes(config.hidden_size) : act;
  const int64_t row = 2 * out + 2 * act + K * 4 + 2 * K * value;
  const Mesh& mesh = team.mesh();
  const int64_t nodes =
      team.parallel().ranks_per_node == 0 ? 1 : mesh.ep * mesh.tp / team.parallel().ranks_per_node;
  const int64_t limit = config.topk_group * std::max<int64_t>(1, nodes / config.n_group);
  const int64_t bound = limit * c.tokens * row;
  HADAL_CHECK(nodes <= 1 || c.most_nodes <= limit, "a token went to ", c.most_nodes,
              " nodes; the limit is ", limit);
  HADAL_CHECK(c.link_bytes <= bound, c.link_bytes, " bytes crossed between nodes; the bound for ",
              c.tokens, " tokens is ", bound);
}

// What a rank holds of a whole parameter.
std::vector<double> part_of(const std::vector<double>& whole, const ParamInfo& info,
                            const Tensor& held, const Team& team) {
  const Slice slice = slice_of(info, team.share().tensor);
  std::vector<double> part;
  for (int64_t i = 0; i < held.num_elements(); ++i)
    part.push_back(whole[static_cast<size_t>(slice.whole_of(i))]);
  return part;
}

void compare_step(Rank& rank, Team& team, int step, const Reference& want, Comparison& comparison) {
  Learner& learner = rank.learner;
  Context& ctx = rank.ctx;
  const Setting& setting = rank.setting;
  const Config config = model(setting);
  if (comparison.is_pinned()) {
    for_each_param(
        config,
        [&](const ParamInfo& info, Tensor& master) {
          if (master.empty()) return;
          const std::vector<double> values = part_of(want.before.at(info.name), info, master, team);
          HostWrite host(ctx, master);
          for (size_t i = 0; i < values.size(); ++i)
            store_element(host.tensor().raw(), master.dtype(), static_cast<int64_t>(i), values[i]);
          host.finish();
        },
        learner.masters().tree);
    learner.masters_changed();
  }
  const StepResult got =
      learner.compute_gradients(micro_batches(setting, step, team.mesh().dp), recipe());
  compare_losses(got, want.result, comparison);
  check_node_limit(got.exchange, team, setting);

  // Whole gradients out of the shares.
  ParamStore& grads = learner.grads();
  using Region = ParamStore::Region;
  for (const Region region : ParamStore::kRegions)
    team.summing(region).all_gather(ctx, grads.slice(grads.share(region)),
                                    grads.slice(grads.region(region)));
  for_each_param(
      config,
      [&](const ParamInfo& info, Tensor& grad) {
        if (!grad.empty())
          comparison.gradient(info.name, values_of(ctx, grad),
                              part_of(want.grads.at(info.name), info, grad, team));
      },
      grads.tree);
  comparison.all_gradients();

  learner.update(recipe(), step, got);
  for_each_param(
      config,
      [&](const ParamInfo& info, Tensor& master) {
        if (master.empty()) return;
        const std::vector<double> whole = part_of(want.after.at(info.name), info, master, team);
        const std::vector<double> values = values_of(ctx, master);
        HADAL_CHECK(info.trained() || !setting.is_exact() || values == whole, "step ", step, ": ",
                    info.name, " differs from one rank's");
        if (info.trained() && comparison.is_pinned())
          comparison.update(values, whole, part_of(want.grads.at(info.name), info, master, team));
      },
      learner.masters().tree);
}

std::string name_of(const ParallelConfig& p) {
  return concat(to_string(p.mesh), ", ", schedule_name(p.schedule),
                p.ranks_per_node == 0 ? "" : concat(", ", p.ranks_per_node, " a node"),
                p.exchange == ExchangeKind::kMessages ? ""
                : p.comm_sms == 0                     ? ", windows, copied"
                                                      : ", windows",
                p.link_sms > 0 ? ", links" : "");
}

// Every schedule of a mesh that it fits, and tokens in two hops where an expert group spans nodes.
void add_cases(const Mesh& mesh, std::vector<ParallelConfig>& list) {
  for (const ScheduleKind kind : all_schedules()) {
    ParallelConfig p;
    p.mesh = mesh;
    p.schedule = kind;
    if (!schedule_fits(schedule_shape(p, kMicroBatches))) continue;
    list.push_back(p);
    if (kind != ScheduleKind::k1F1B || mesh.ep <= 2) continue;
    for (int in_node = 1; in_node < mesh.ep; in_node *= 2) {
      p.ranks_per_node = in_node * mesh.tp;
      list.push_back(p);
    }
  }
}

// On GPUs tokens go through windows as well, put by SMs or by the copy engine in turns, and
// messages of a pipeline over links.
std::vector<ParallelConfig> cases(int num_ranks, bool on_gpus) {
  std::vector<ParallelConfig> list;
  for (const int tp : {1, 2})
    for (const int pp : {4, 2, 1}) {
      if (num_ranks % (pp * tp) != 0) continue;
      const int dp = num_ranks / (pp * tp);
      for (int ep = dp; ep >= 1; --ep)
        if (dp % ep == 0) add_cases({.pp = pp, .dp = dp, .ep = ep, .tp = tp}, list);
    }
  const size_t count = list.size();
  bool copied = true;
  for (size_t i = 0; on_gpus && i < count; ++i) {
    if (list[i].mesh.pp > 1 && list[i].ranks_per_node == 0) {
      ParallelConfig links = list[i];
      links.link_sms = 1;
      list.push_back(links);
    }
    if (list[i].mesh.ep == 1 || list[i].ranks_per_node > 0 ||
        list[i].exchange == ExchangeKind::kWindows)
      continue;
    ParallelConfig windows = list[i];
    windows.exchange = ExchangeKind::kWindows;
    if (copied) windows.comm_sms = 0;
    copied = !copied;
    list.push_back(windows);
  }
  return list;
}

struct Options {
  std::vector<int> ranks = {4};
  std::vector<std::string> types = {"f64", "f32"};
  std::string only, sabotage, device = "cpu";
  bool fast = false;
};

// One rank of a case. On GPUs it trains alone first: a process that forks has none.
void run_rank(World& world, const ParallelConfig& parallel, const Setting& setting,
              const std::vector<Reference>& reference, const Options& options, Worst& worst) {
  const bool on_gpus = options.device == "cuda";
  Machine machine(on_gpus ? gpu_of_rank(world) : Device{});
  std::vector<Reference> own;
  if (on_gpus) own = train_alone(machine.ctx, setting);
  const std::vector<Reference>& want = on_gpus ? own : reference;
  if (!options.sabotage.empty()) setenv("HADAL_SABOTAGE", options.sabotage.c_str(), 1);
  std::unique_ptr<NcclWorld> gpus;
  if (on_gpus) gpus = std::make_unique<NcclWorld>(world, machine.ctx);
  Team team(parallel, model(setting), &world, gpus.get());
  Rank rank(machine.ctx, setting, &team);
  for (int step = 1; step <= kSteps; ++step) {
    world.at_step(step);
    Comparison comparison(setting, parallel.mesh, step, worst);
    compare_step(rank, team, step, want[static_cast<size_t>(step) - 1], comparison);
  }
  HADAL_CHECK(!device::can_record(machine.ctx.device) ||
                  team.recordable() == Team::Recordable::kNothing || setting.is_exact() ||
                  rank.learner.num_recorded_launches() > 0,
              "no micro-batch was recorded");
}

// False beyond the bounds.
bool run_case(const ParallelConfig& parallel, const Setting& setting,
              const std::vector<Reference>& want, const Options& options) {
  check_parallel(parallel, model(setting), kSequences,
                 kSequences / (parallel.mesh.dp * kMicroBatches));
  const size_t bytes = sizeof(Worst) * static_cast<size_t>(parallel.mesh.num_ranks());
  auto* worst = static_cast<Worst*>(
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  HADAL_CHECK(worst != MAP_FAILED, "cannot map ", bytes, " bytes");
  const bool pinned = setting.weights == Weights::kPinned;
  const std::string name = concat(name_of(parallel), ", ", setting.type,
                                  setting.dtype != DType::kF32 ? ""
                                  : pinned                     ? " pinned"
                                                               : " free");
  std::string failure;
  try {
    World world({.num_ranks = parallel.mesh.num_ranks()});
    launch(world, [&](int r) { run_rank(world, parallel, setting, want, options, worst[r]); });
  } catch (const Error& e) {
    failure = e.what();
  }
  Worst all;
  for (int r = 0; r < parallel.mesh.num_ranks(); ++r) {
    all.loss = std::max(all.loss, worst[r].loss);
    all.gradient = std::max(all.gradient, worst[r].gradient);
    all.counts = std::max(all.counts, worst[r].counts);
    if (worst[r].update <= all.update) continue;
    all.update = worst[r].update;
    all.gradient_there = worst[r].gradient_there;
  }
  munmap(worst, bytes);
  fmt::print("{:<56} losses {:.1e}  gradients {:.1e}  {}\n", name, all.loss, all.gradient,
             failure.empty() ? "ok" : "FAILED: " + failure);
  if (!setting.is_exact())
    fmt::print("    choices of other experts: {:.1e} of all\n", all.counts);
  else if (pinned)
    fmt::print(
        "    updates: apart by {:.1e} learning rates, where a gradient is {:.1e} of its "
        "parameter's\n",
        all.update, all.gradient_there);
  std::fflush(stdout);
  return failure.empty();
}

// In FP8 tensor groups have a model of their own.
bool fits(const ParallelConfig& parallel, const Setting& setting) {
  return !setting.fp8 || setting.whole_tiles == (parallel.mesh.tp > 1);
}

// Of --fast. On GPUs transfers of experts' tokens run beside the work, in pairs.
bool is_left_out(const ParallelConfig& parallel, const Setting& setting, const Options& options) {
  const bool on_gpus = options.device == "cuda";
  if (on_gpus && setting.dtype == DType::kF32 && setting.weights == Weights::kFree) return true;
  if (on_gpus && parallel.mesh.ep > 1 && parallel.schedule == ScheduleKind::kDualPipeV)
    return false;
  return (on_gpus || setting.dtype != DType::kF64) && parallel.schedule != ScheduleKind::k1F1B &&
         parallel.schedule != ScheduleKind::kDualPipe;
}

int run(const Options& options) {
  int failed = 0, done = 0;
  for (const Setting& setting : kSettings) {
    if (std::find(options.types.begin(), options.types.end(), setting.type) == options.types.end())
      continue;
    std::vector<Reference> want;
    if (options.device == "cpu") {
      Machine machine;
      want = train_alone(machine.ctx, setting);
    }
    for (const int n : options.ranks)
      for (const ParallelConfig& parallel : cases(n, options.device == "cuda")) {
        if (name_of(parallel).find(options.only) == std::string::npos || !fits(parallel, setting))
          continue;
        if (options.fast && is_left_out(parallel, setting, options)) continue;
        ++done;
        failed += run_case(parallel, setting, want, options) ? 0 : 1;
      }
  }
  fmt::print("parallel_check: {} of {} equal one rank\n", done - failed, done);
  return failed == 0 && done > 0 ? 0 : 1;
}

std::vector<std::string> list_of(const std::string& text) {
  std::vector<std::string> items;
  std::stringstream list(text);
  for (std::string item; std::getline(list, item, ',');) items.push_back(item);
  return items;
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--fast") {
      o.fast = true;
      continue;
    }
    HADAL_CHECK(i + 1 < argc, flag, " needs a value");
    const std::string value = argv[++i];
    if (flag == "--ranks") {
      o.ranks.clear();
      for (const std::string& n : list_of(value)) o.ranks.push_back(std::stoi(n));
    } else if (flag == "--types") {
      o.types = list_of(value);
    } else if (flag == "--device") {
      HADAL_CHECK(value == "cpu" || value == "cuda", "--device is ", value, "; allowed: cpu, cuda");
      o.device = value;
    } else if (flag == "--case") {
      o.only = value;
    } else if (flag == "--sabotage") {
      o.sabotage = value;
    } else {
      HADAL_FAIL("unknown argument ", flag);
    }
  }
  return o;
}

}  // namespace
}  // namespace hadal::train

int main(int argc, char** argv) {
  try {
    return hadal::train::run(hadal::train::parse(argc, argv));
  } catch (const std::exception& e) {
    fmt::print(stderr, "parallel_check: {}\n", e.what());
    return 2;
  }
}
