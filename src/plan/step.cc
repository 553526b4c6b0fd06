// One training step: playing the schedule, and sums.
// SPDX-License-Identifier: Apache-2.0
#include "plan/step.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"
#include "model/bytes.h"
#include "plan/runtime_memory.h"
#include "plan/runtime_ops.h"

namespace hadal::plan {
namespace {

constexpr double kSecondsPerDay = 86400.0;
// Of a parameter in the all-gather: bf16, whatever the weight's own format. A ZeRO-1 shard is a
// flat range that cuts through 128 x 128 blocks, whose scales need the whole block.
constexpr double kGatheredBytes = 2.0;

// A fixed draw of a chunk from the standard normal distribution.
double normal_of(const Chunk& c) {
  const auto mix = [](uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  };
  const uint64_t key = (static_cast<uint64_t>(c.direction) << 60) ^
                       (static_cast<uint64_t>(c.stage) << 32) ^ static_cast<uint64_t>(c.microbatch);
  const auto uniform = [&](uint64_t salt) {
    return (static_cast<double>(mix(mix(key) ^ salt) >> 11) + 0.5) * 0x1p-53;
  };
  return std::sqrt(-2.0 * std::log(uniform(1))) * std::cos(2.0 * std::numbers::pi * uniform(2));
}

// Durations of steps, with what is fitted.
class Durations {
 public:
  Durations(const TrainPlan& plan, const ChunkCosts& costs) : plan_(plan), costs_(costs) {}

  double of(const ScheduleStep& step) const {
    const Chunk &f = step.forward, &b = step.backward;
    switch (step.work) {
      case Work::kForward:
        return costs_.forward(f.stage) * jitter(f);
      case Work::kBackwardInput:
        return costs_.backward_input(b.stage) * jitter(b);
      case Work::kBackwardWeight:
        return costs_.backward_weight(b.stage) * plan_.fitted.deferred_weight_stretch * jitter(b);
      case Work::kBackward:
        return (costs_.backward_input(b.stage) + costs_.backward_weight(b.stage)) * jitter(b);
      case Work::kOverlap:
        return costs_.pair(f.stage, b.stage) * plan_.fitted.overlap_stretch *
               (jitter(f) + jitter(b)) / 2.0;
    }
    HADAL_UNREACHABLE("work");
  }

  // Messages of a pair travel beside its last weight half.
  double message(const ScheduleStep& maker, int from, int to) const {
    if (maker.work == Work::kOverlap) return 0.0;
    if (plan_.is_runtime()) return costs_.message_seconds();
    const Cluster& c = plan_.cluster;
    const int ranks = plan_.mesh.dp * plan_.mesh.tp;  // of a stage
    const bool same_node = from * ranks / c.devices_per_node == to * ranks / c.devices_per_node &&
                           ranks <= c.devices_per_node / 2;
    return same_node ? c.scale_up.latency + costs_.message_bytes() / c.scale_up.bandwidth
                     : c.scale_out.latency_cross_leaf +
                           costs_.message_bytes() / c.scale_out.effective_bandwidth;
  }

 private:
  double jitter(const Chunk& c) const {
    const double sigma = plan_.fitted.chunk_jitter;
    return sigma == 0.0 ? 1.0 : std::exp(sigma * normal_of(c) - sigma * sigma / 2.0);
  }
  const TrainPlan& plan_;
  const ChunkCosts& costs_;
};

StepParts parts_of(const Schedule& schedule, const Timeline& timeline, int rank) {
  StepParts p;
  const auto& steps = schedule.steps[static_cast<size_t>(rank)];
  const auto& spans = timeline.spans[static_cast<size_t>(rank)];
  for (size_t i = 0; i < steps.size(); ++i) {
    const double seconds = spans[i].finish - spans[i].start;
    switch (steps[i].work) {
      case Work::kForward:
        p.forward += seconds;
        break;
      case Work::kBackwardInput:
      case Work::kBackward:
        p.backward += seconds;
        break;
      case Work::kBackwardWeight:
        p.weight += seconds;
        break;
      case Work::kOverlap:
        p.overlapped += seconds;
        break;
    }
  }
  p.bubble = timeline.makespan - p.forward - p.backward - p.weight - p.overlapped;
  return p;
}

// Bandwidth of a ring over `group` ranks that stand `stride` ranks apart: inside a node the links
// of the node; across nodes the group's members in a node share its NICs, as far as its links go.
double ring_bandwidth(const Cluster& c, int group, int stride) {
  if (group <= 1) return 1e30;
  if (static_cast<int64_t>(group) * stride <= c.devices_per_node) return c.scale_up.bandwidth;
  const int members = std::max(1, c.devices_per_node / stride);
  const double nics =
      c.scale_out.effective_bandwidth * c.scale_out.nics_per_node / c.devices_per_node;
  return members == 1 ? nics : std::min(c.scale_up.bandwidth, members * nics);
}

double ring_seconds(const Cluster& c, int group, int stride, double bytes) {
  return bytes * (group - 1) / group / ring_bandwidth(c, group, stride);
}

// Of one pipeline rank: what follows the last micro-batch.
double optimizer_seconds(const TrainPlan& p, int pp, const std::vector<StageParams>& held,
                         Basis& basis) {
  const Mesh& m = p.mesh;
  if (p.is_runtime()) {
    double own = 0.0;
    for (const OpUse& use : runtime::optimizer_ops(p, pp))
      own += p.rates.seconds(use.op, use.shape, 0, basis);
    return own;
  }
  const int dense_group = replica_group(p), expert_ranks = expert_group(p);
  double seconds = 0.0, gradients = 0.0, shards = 0.0, quantised = 0.0;
  for (const StageParams& n : held) {
    const double dense = n.matrices + n.plain;
    seconds += ring_seconds(p.cluster, dense_group, m.tp, (4.0 + kGatheredBytes) * dense);
    seconds +=
        ring_seconds(p.cluster, expert_ranks, m.tp * m.ep, (4.0 + kGatheredBytes) * n.experts);
    if (p.recipe == Recipe::kFp8) quantised += n.matrices + n.experts;
    gradients += 4.0 * n.total();
    shards += dense / dense_group + n.experts / expert_ranks;
  }
  // Cleared once; the shard is read for the norm, then gradient, master and moments are read, and
  // master, moments and the weight that is gathered written; FP8 is made of it on each rank.
  const double update = shards * (4.0 + 4.0 + 8.0 + 2.0 * moment_bytes(p.recipe) + kGatheredBytes) +
                        quantised * (kGatheredBytes + 1.0);
  seconds += p.rates.seconds("optimizer", {std::max<int64_t>(1, std::llround(gradients + update))},
                             0, basis);
  return seconds;
}

void add_throughput(const TrainPlan& p, const ParamCounts& counts, TrainResult& r) {
  const double devices = p.cluster.num_devices();
  r.tokens_per_second = p.tokens_per_step() / r.step_seconds;
  r.tokens_per_second_per_device = r.tokens_per_second / devices;
  r.tokens_per_day = r.tokens_per_second * kSecondsPerDay;
  r.flops_per_token_causal = flops_per_token(p.model, counts, p.sequence_length, true);
  r.flops_per_token_noncausal = flops_per_token(p.model, counts, p.sequence_length, false);
  r.tflops_causal = r.tokens_per_second_per_device * r.flops_per_token_causal / 1e12;
  r.tflops_noncausal = r.tokens_per_second_per_device * r.flops_per_token_noncausal / 1e12;
  r.mfu_causal = r.tflops_causal * 1e12 / p.cluster.device.bf16_flops;
  r.mfu_noncausal = r.tflops_noncausal * 1e12 / p.cluster.device.bf16_flops;
  if (p.tokens == 0.0) return;
  r.total_days = p.tokens / r.tokens_per_day;
  r.device_hours = r.total_days * 24.0 * devices;
  r.dollars = r.device_hours * p.cluster.device.dollars_per_hour;
}

// Micro-batches in flight are at their most before 4 rounds of the pipeline, however many follow.
Schedule short_schedule(const TrainPlan& p) {
  ScheduleShape shape = p.schedule_shape();
  shape.num_microbatches = std::min(shape.num_microbatches, 4 * shape.num_ranks);
  return make_schedule(shape);
}

void add_memory(const TrainPlan& p, const ParamSums& sums, TrainResult& r) {
  r.memory = p.is_runtime() ? runtime_memory(p) : plan_memory(p, r.stages, short_schedule(p), sums);
  double host = 0.0;
  for (const RankMemory& m : r.memory) {
    r.largest_memory = std::max(r.largest_memory, m.device());
    host = std::max(host, m.host);
  }
  r.memory_limit = p.cluster.device.memory_bytes - p.cluster.device.reserved_bytes;
  r.host_bytes_per_node = host * p.cluster.devices_per_node;
  r.fits =
      r.largest_memory <= r.memory_limit && r.host_bytes_per_node <= p.cluster.host_memory_bytes;
}

}  // namespace

double flops_per_token(const Config& c, const ParamCounts& n, int64_t sequence_length,
                       bool is_causal) {
  const int64_t moe_layers = std::max<int64_t>(0, c.num_hidden_layers - c.first_k_dense_replace);
  const int64_t routers = moe_layers * c.n_routed_experts * c.hidden_size;
  const double scores = static_cast<double>(sequence_length) / (is_causal ? 2.0 : 1.0);
  const double attention = 3.0 * 2.0 * static_cast<double>(c.num_attention_heads) *
                           static_cast<double>(c.qk_head_dim() + c.v_head_dim) * scores;
  return 6.0 * static_cast<double>(n.activated_head_only - routers) +
         attention * static_cast<double>(c.num_hidden_layers);
}

namespace {

void add_times(const TrainPlan& p, const ChunkCosts& costs, const Schedule& schedule,
               const ParamSums& sums, TrainResult& r) {
  const Durations durations(p, costs);
  const StepTimes times{.step = [&](int, const ScheduleStep& step) { return durations.of(step); },
                        .message = [&](const ScheduleStep& maker, int from,
                                       int to) { return durations.message(maker, from, to); }};
  r.timeline = play(schedule, times);
  r.pipeline_seconds = r.timeline.makespan;
  r.basis = costs.basis();
  std::vector<StageParams> params;
  for (const StageRange& s : r.stages) params.push_back(sums.of(p.mesh, s));
  for (int rank = 0; rank < p.mesh.pp; ++rank) {
    const StepParts parts = parts_of(schedule, r.timeline, rank);
    r.ranks.push_back(parts);
    const double share = 1.0 / p.mesh.pp;
    r.mean.forward += share * parts.forward;
    r.mean.backward += share * parts.backward;
    r.mean.weight += share * parts.weight;
    r.mean.overlapped += share * parts.overlapped;
    r.mean.bubble += share * parts.bubble;
    std::vector<StageParams> held;
    for (int direction = 0; direction < schedule.num_directions(); ++direction)
      for (int s = 0; s < schedule.num_stages; ++s)
        if (schedule.rank_of(direction, s) == rank) held.push_back(params[static_cast<size_t>(s)]);
    r.optimizer_seconds = std::max(r.optimizer_seconds, optimizer_seconds(p, rank, held, r.basis));
  }
  r.step_seconds = r.pipeline_seconds + r.optimizer_seconds;
  r.bubble_share = r.mean.bubble / r.step_seconds;
  add_throughput(p, sums.counts(), r);
}

}  // namespace

TrainResult plan_step(const TrainPlan& p) {
  check_train_plan(p);
  const ParamSums sums(p.model);
  const ChunkCosts costs(p);
  TrainResult r;
  r.stages = costs.stages();
  r.schedule = make_schedule(p.schedule_shape());
  add_memory(p, sums, r);
  add_times(p, costs, r.schedule, sums, r);
  return r;
}

TrainResult plan_totals(const TrainPlan& p, const Schedule& schedule, const ParamSums& sums) {
  const ChunkCosts costs(p);
  TrainResult r;
  r.stages = costs.stages();
  add_memory(p, sums, r);
  if (r.fits) add_times(p, costs, schedule, sums, r);
  r.timeline = {};
  return r;
}

}  // namespace hadal::plan
