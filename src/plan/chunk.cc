// Chunk times from operation lists and rates.
// SPDX-License-Identifier: Apache-2.0
#include "plan/chunk.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "plan/runtime_mesh.h"

namespace hadal::plan {
namespace {

constexpr double kFp8RowBytes = 1.0 + 4.0 / 128.0;  // with a f32 scale of each 1x128

// Probability that none of k even picks without repetition out of `pool` falls on `own` of them.
double none_of(int64_t pool, int64_t own, int64_t k) {
  double p = 1.0;
  for (int64_t i = 0; i < k; ++i) {
    if (pool - own - i <= 0) return 0.0;
    p *= static_cast<double>(pool - own - i) / static_cast<double>(pool - i);
  }
  return p;
}

double choose(int64_t n, int64_t k) {
  if (k < 0 || k > n) return 0.0;
  double c = 1.0;
  for (int64_t i = 0; i < k; ++i) c *= static_cast<double>(n - i) / static_cast<double>(i + 1);
  return c;
}

}  // namespace

double destinations_per_token(const Config& c, int num_destinations) {
  const int64_t k = c.num_experts_per_tok, groups = c.n_group, chosen = c.topk_group;
  const int64_t group_experts = c.n_routed_experts / groups, pool = chosen * group_experts;
  if (num_destinations >= groups) {
    // Each destination is a share of one group.
    const int64_t own = std::max<int64_t>(1, c.n_routed_experts / num_destinations);
    const double candidates = static_cast<double>(pool) / static_cast<double>(own);
    return candidates * (1.0 - none_of(pool, own, k));
  }
  // Each destination holds several groups, of which `j` are among the chosen.
  const int64_t held = groups / num_destinations;
  double reached = 0.0;
  for (int64_t j = 1; j <= std::min(held, chosen); ++j)
    reached += choose(held, j) * choose(groups - held, chosen - j) / choose(groups, chosen) *
               (1.0 - none_of(pool, j * group_experts, k));
  return num_destinations * reached;
}

ChunkCosts::ChunkCosts(const TrainPlan& plan) : plan_(plan) {
  const Mesh& m = plan.mesh;
  const Cluster& cluster = plan.cluster;
  ep_nodes_ = (m.ep * m.tp + cluster.devices_per_node - 1) / cluster.devices_per_node;
  message_bytes_ = static_cast<double>(plan.micro_batch_tokens()) *
                   static_cast<double>(plan.model.hidden_size) *
                   static_cast<double>(dtype_size(activation_dtype(plan.recipe))) / m.tp;
  dense_ = layer_times(false);
  moe_ = layer_times(true);
  const LayerShape shape = layer_shape(plan);
  for (const Pass pass : kPasses) {
    const auto i = static_cast<size_t>(pass);
    head_[i] = time_of(part_ops(shape, Part::kHead, pass));
    embed_[i] = time_of(part_ops(shape, Part::kEmbed, pass));
    mtp_[i] = time_of(part_ops(shape, Part::kMtpProjection, pass)) + embed_[i];
  }
  const double layer_total = moe_.forward() + moe_.backward_input() + moe_.backward_weight() -
                             moe_.dispatch_f - moe_.combine_f - moe_.dispatch_b - moe_.combine_b;
  const int num_stages = plan.schedule == ScheduleKind::kDualPipe
                             ? m.pp
                             : m.pp * hadal::stages_per_rank(plan.schedule_shape());
  stages_ = plan.is_runtime()
                ? stage_ranges(parallel_of(plan), plan.model)
                : split_stages(plan.model, num_stages,
                               {.head_cost = (head_[0] + head_[1] + head_[2]) / layer_total});
  if (plan.is_runtime() && m.pp > 1) message_seconds_ = time_of({runtime::message_op(plan)});
  for (int s = 0; s < num_stages; ++s) {
    double f = 0.0, b = 0.0, w = 0.0;
    for (const bool is_moe : layers_of(s)) {
      f += layer(is_moe).forward();
      b += layer(is_moe).backward_input();
      w += layer(is_moe).backward_weight();
    }
    const StageRange& range = stages_[static_cast<size_t>(s)];
    if (plan.is_runtime()) {
      f += time_of(runtime::edge_ops(plan, range, Pass::kForward));
      b += time_of(runtime::edge_ops(plan, range, Pass::kBackwardInput));
    }
    const double heads = range.has_head ? 1.0 + static_cast<double>(range.num_mtp) : 0.0;
    const double mtp = static_cast<double>(range.num_mtp), embed = range.has_embed ? 1.0 : 0.0;
    forward_.push_back(f + heads * head_[0] + mtp * mtp_[0] + embed * embed_[0]);
    input_.push_back(b + heads * head_[1] + mtp * mtp_[1]);
    weight_.push_back(w + heads * head_[2] + mtp * mtp_[2] + embed * embed_[2]);
  }
}

double ChunkCosts::time_of(const OpList& ops) {
  const int sms = plan_.cluster.device.sms - plan_.cluster.device.comm_sms;
  double sum = 0.0;
  for (const OpUse& use : ops)
    sum += static_cast<double>(use.times) * plan_.rates.seconds(use.op, use.shape, sms, basis_);
  return sum;
}

// Gathers and scatters of sequence parallelism around attention or an MLP, of one pass.
double ChunkCosts::tensor_parallel_time() const {
  const int tp = plan_.mesh.tp;
  if (tp == 1) return 0.0;
  const double bytes = 2.0 * static_cast<double>(plan_.micro_batch_tokens()) *
                       static_cast<double>(plan_.model.hidden_size) *
                       static_cast<double>(dtype_size(activation_dtype(plan_.recipe))) * (tp - 1) /
                       tp;
  return bytes / plan_.cluster.scale_up.bandwidth;
}

double ChunkCosts::exchange(const char* op, double bytes_per_element) {
  const int ep = plan_.mesh.ep;
  if (ep == 1) return 0.0;
  const bool inside = ep_nodes_ == 1;
  // Between nodes a token goes to a node once; inside one, to each rank that holds its experts.
  const double copies = destinations_per_token(plan_.model, inside ? ep : ep_nodes_);
  const double bytes = static_cast<double>(plan_.micro_batch_tokens()) *
                       static_cast<double>(plan_.model.hidden_size) * copies * bytes_per_element *
                       plan_.row_imbalance;
  dispatch_bytes_ = std::max(dispatch_bytes_, bytes);
  return plan_.rates.seconds(op, {std::llround(bytes), inside ? std::min(ep, 8) : ep}, 0, basis_);
}

double ChunkCosts::trip(runtime::Trip trip) {
  return plan_.mesh.ep == 1 ? 0.0 : time_of({runtime::exchange_op(layer_shape(plan_), trip)});
}

LayerTimes ChunkCosts::layer_times(bool is_moe) {
  const LayerShape shape = layer_shape(plan_);
  LayerTimes t;
  for (const Pass pass : kPasses) {
    const auto i = static_cast<size_t>(pass);
    const double tp = pass == Pass::kBackwardWeight ? 0.0 : tensor_parallel_time();
    t.attention[i] = time_of(part_ops(shape, Part::kAttention, pass)) + tp;
    t.mlp[i] = time_of(part_ops(shape, is_moe ? Part::kMoe : Part::kDense, pass)) + tp;
  }
  if (is_moe && plan_.is_runtime()) {
    t.dispatch_f = trip(runtime::Trip::kDispatch);
    t.combine_f = trip(runtime::Trip::kCombine);
    t.combine_b = trip(runtime::Trip::kCombineBackward);
    t.dispatch_b = trip(runtime::Trip::kDispatchBackward);
  } else if (is_moe) {
    const double out = plan_.recipe == Recipe::kFp8 ? kFp8RowBytes : 2.0;
    t.dispatch_f = t.combine_b = exchange("dispatch", out);
    t.combine_f = t.dispatch_b = exchange("combine", 2.0);
  }
  if (plan_.recompute == Recompute::kFull) {
    t.attention[1] += t.attention[0];
    t.mlp[1] += t.mlp[0];
    t.combine_b += t.dispatch_f;
  }
  return t;
}

std::vector<bool> ChunkCosts::layers_of(int stage) const {
  const StageRange& range = stages_[static_cast<size_t>(stage)];
  std::vector<bool> layers;
  for (int64_t l = 0; l < range.num_layers; ++l)
    layers.push_back(plan_.model.is_moe_layer(range.first_layer + l));
  layers.insert(layers.end(), static_cast<size_t>(range.num_mtp), true);
  return layers;
}

double ChunkCosts::pair(int forward_stage, int backward_stage) const {
  const auto [it, is_new] = pairs_.try_emplace({forward_stage, backward_stage}, 0.0);
  if (is_new) it->second = pair_uncached(forward_stage, backward_stage);
  return it->second;
}

// Two streams, each in its own order; a part starts when its stream is free and its input is there.
double ChunkCosts::pair_uncached(int forward_stage, int backward_stage) const {
  const std::vector<bool> up = layers_of(forward_stage);
  std::vector<bool> down = layers_of(backward_stage);
  std::reverse(down.begin(), down.end());
  const auto layers_total = [&](int stage, double whole, auto part) {
    double rest = whole;
    for (const bool is_moe : layers_of(stage)) rest -= part(layer(is_moe));
    return rest;
  };
  // Head, embedding and MTP projections of both chunks; the backward's come first.
  const double around_f = layers_total(forward_stage, forward(forward_stage),
                                       [](const LayerTimes& t) { return t.forward(); });
  const double around_b =
      layers_total(backward_stage, backward_input(backward_stage) + backward_weight(backward_stage),
                   [](const LayerTimes& t) { return t.backward_input() + t.backward_weight(); });
  double compute = around_b, comm = 0.0;
  double combined_f = 0.0, attended_b = around_b;
  for (size_t i = 0; i < std::max(up.size(), down.size()); ++i) {
    const LayerTimes none;
    const LayerTimes& f = i < up.size() ? layer(up[i]) : none;
    const LayerTimes& b = i < down.size() ? layer(down[i]) : none;
    const double combined_b = comm = std::max(comm, attended_b) + b.combine_b;
    compute = std::max(compute, combined_f) + f.attention[0];
    const double dispatched_f = comm = std::max(comm, compute) + f.dispatch_f;
    compute = std::max(compute, combined_b) + b.mlp[1];
    const double dispatched_b = comm = std::max(comm, compute) + b.dispatch_b;
    compute += b.mlp[2];
    compute = std::max(compute, dispatched_f) + f.mlp[0];
    combined_f = comm = std::max(comm, compute) + f.combine_f;
    compute = std::max(compute, dispatched_b) + b.attention[1];
    attended_b = compute;
    compute += b.attention[2];
  }
  return std::max(compute, comm) + around_f;
}

}  // namespace hadal::plan
