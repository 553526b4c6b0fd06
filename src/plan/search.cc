// Search: enumeration, and the Pareto front.
// SPDX-License-Identifier: Apache-2.0
#include "plan/search.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "core/check.h"

namespace hadal::plan {
namespace {

std::vector<int> divisors(int n) {
  std::vector<int> all;
  for (int d = 1; d <= n; ++d)
    if (n % d == 0) all.push_back(d);
  return all;
}

// A cluster of some of the nodes.
Cluster part_of(const Cluster& whole, int devices) {
  Cluster c = whole;
  HADAL_CHECK(devices >= 1 && devices <= whole.num_devices(), "--devices has ", devices,
              "; allowed: 1 to ", whole.num_devices());
  if (devices < whole.devices_per_node) {
    c.num_nodes = 1;
    c.devices_per_node = devices;
  } else {
    HADAL_CHECK(devices % whole.devices_per_node == 0, "--devices has ", devices,
                ", which is not whole nodes of ", whole.devices_per_node);
    c.num_nodes = devices / whole.devices_per_node;
  }
  return c;
}

// Shapes of the pipeline of one mesh and micro-batch size.
struct Pipeline {
  ScheduleKind kind;
  int stages_per_rank;
};
std::vector<Pipeline> pipelines(const SearchSpace& space, int pp) {
  if (pp == 1) return {{ScheduleKind::k1F1B, 1}, {ScheduleKind::kDualPipeV, 2}};
  std::vector<Pipeline> all = {{ScheduleKind::k1F1B, 1},
                               {ScheduleKind::kZb1p, 1},
                               {ScheduleKind::kDualPipe, 2},
                               {ScheduleKind::kDualPipeV, 2}};
  for (const int stages : space.interleaved_stages)
    all.push_back({ScheduleKind::kInterleaved, stages});
  return all;
}

class Searcher {
 public:
  Searcher(const TrainPlan& base, const SearchSpace& space)
      : base_(base), space_(space), sums_(base.model) {}

  SearchResult run() {
    std::vector<int> counts = space_.devices;
    if (counts.empty()) counts = {base_.cluster.num_devices()};
    for (const int devices : counts) {
      TrainPlan p = base_;
      p.cluster = part_of(base_.cluster, devices);
      meshes(p);
    }
    HADAL_CHECK(result_.tried > 0, "no mesh divides ", base_.cluster.num_devices(), " devices, ",
                base_.batch_sequences, " sequences and ", base_.model.n_routed_experts,
                " experts at once; change batch_sequences");
    HADAL_CHECK(!result_.fit.empty(), "nothing fits: of ", result_.tried,
                " combinations the smallest needs ", least_ / 1e9, " GB of a device that has ",
                (base_.cluster.device.memory_bytes - base_.cluster.device.reserved_bytes) / 1e9,
                " GB; take more devices");
    std::sort(result_.fit.begin(), result_.fit.end(), [](const Candidate& a, const Candidate& b) {
      return std::tie(a.step_seconds, a.memory_bytes) < std::tie(b.step_seconds, b.memory_bytes);
    });
    front();
    return std::move(result_);
  }

 private:
  void meshes(TrainPlan& p) {
    const int devices = p.cluster.num_devices();
    for (int tp = 1; tp <= std::min(space_.max_tensor_parallel, p.cluster.devices_per_node);
         tp *= 2) {
      if (devices % tp != 0 || p.model.num_attention_heads % tp != 0) continue;
      if (tp > 1 && p.recipe == Recipe::kF32) break;  // the runtime has none
      for (const int pp : divisors(devices / tp)) {
        if (pp > p.model.num_hidden_layers) break;
        const int dp = devices / tp / pp;
        if (p.batch_sequences % dp != 0) continue;
        for (const int ep : divisors(dp)) {
          if (p.model.n_routed_experts % ep != 0) continue;
          p.mesh = {.pp = pp, .dp = dp, .ep = ep, .tp = tp};
          choices(p);
        }
      }
    }
  }

  void choices(TrainPlan& p) {
    for (int64_t mb = 1; mb <= space_.max_micro_batch_sequences; mb *= 2) {
      if (p.batch_sequences / p.mesh.dp % mb != 0) continue;
      p.micro_batch_sequences = mb;
      for (const Pipeline& pipeline : pipelines(space_, p.mesh.pp)) {
        p.schedule = pipeline.kind;
        p.stages_per_rank = pipeline.stages_per_rank;
        const int64_t stages = pipeline.kind == ScheduleKind::kDualPipe
                                   ? p.mesh.pp
                                   : p.mesh.pp * pipeline.stages_per_rank;
        if (stages > p.model.num_hidden_layers || !schedule_fits(p.schedule_shape())) continue;
        if (p.is_runtime() && !has_whole_backwards(p.schedule)) continue;
        for (const Recompute r : {Recompute::kNone, Recompute::kUpProjections, Recompute::kFull}) {
          // The runtime's own recipes have one choice beside full.
          if (p.recipe != Recipe::kFp8 && r == Recompute::kNone) continue;
          if (p.is_runtime() && r != Recompute::kUpProjections) continue;
          p.recompute = r;
          consider(p);
        }
      }
    }
  }

  void consider(const TrainPlan& p) {
    ++result_.tried;
    const double limit = p.cluster.device.memory_bytes - p.cluster.device.reserved_bytes;
    const double floor = least_memory(p);
    if (floor > limit) {
      drop(floor);
      return;
    }
    const TrainResult r = plan_totals(p, schedule_of(p.schedule_shape()), sums_);
    if (!r.fits) {
      drop(r.largest_memory);
      return;
    }
    result_.fit.push_back({.mesh = p.mesh,
                           .schedule = p.schedule,
                           .stages_per_rank = p.stages_per_rank,
                           .micro_batch_sequences = p.micro_batch_sequences,
                           .recompute = p.recompute,
                           .devices = p.cluster.num_devices(),
                           .step_seconds = r.step_seconds,
                           .memory_bytes = r.largest_memory,
                           .host_bytes_per_node = r.host_bytes_per_node,
                           .bubble_share = r.bubble_share,
                           .tokens_per_second_per_device = r.tokens_per_second_per_device,
                           .mfu_causal = r.mfu_causal,
                           .device_hours = r.device_hours,
                           .dollars = r.dollars});
  }

  // Meshes that differ in ep alone share their schedules.
  const Schedule& schedule_of(const ScheduleShape& shape) {
    const auto key =
        std::tuple(shape.kind, shape.num_ranks, shape.num_microbatches, stages_per_rank(shape));
    if (schedules_.size() > 64) schedules_.clear();
    const auto [it, is_new] = schedules_.try_emplace(key);
    if (is_new) it->second = make_schedule(shape);
    return it->second;
  }

  // Below what the fullest rank can hold: an even share of parameters and gradients, and the
  // micro-batches in flight in its layers.
  double least_memory(const TrainPlan& p) const {
    const double copies = p.schedule == ScheduleKind::kDualPipe ? 2.0 : 1.0;
    const StageRange all{.first_layer = 0,
                         .num_layers = p.model.num_hidden_layers,
                         .num_mtp = p.model.num_nextn_predict_layers,
                         .has_embed = true,
                         .has_head = true};
    const StageParams n = sums_.of(p.mesh, all);
    const double per_rank = copies / p.mesh.pp;
    const double in_flight = std::min(p.num_microbatches(), p.mesh.pp);
    const double layers = static_cast<double>(p.model.num_hidden_layers / p.mesh.pp);
    const double layer = std::min(layer_bytes(p, false).saved, layer_bytes(p, true).saved);
    return in_flight * layers * layer +
           per_rank *
               ((n.matrices + n.experts) * (weight_bytes(p.recipe, false) + 4.0) + n.plain * 4.0);
  }

  void drop(double bytes) {
    ++result_.dropped_for_memory;
    least_ = std::min(least_, bytes);
  }

  void front() {
    for (const Candidate& a : result_.fit) {
      const bool beaten =
          std::any_of(result_.front.begin(), result_.front.end(), [&](const Candidate& b) {
            return b.step_seconds <= a.step_seconds && b.memory_bytes <= a.memory_bytes &&
                   b.devices <= a.devices;
          });
      if (!beaten) result_.front.push_back(a);
    }
  }

  const TrainPlan& base_;
  const SearchSpace& space_;
  SearchResult result_;
  double least_ = std::numeric_limits<double>::infinity();
  ParamSums sums_;
  std::map<std::tuple<ScheduleKind, int, int, int>, Schedule> schedules_;
};

}  // namespace

SearchResult search(const TrainPlan& plan, const SearchSpace& space) {
  return Searcher(plan, space).run();
}

}  // namespace hadal::plan
