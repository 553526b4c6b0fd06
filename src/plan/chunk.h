// Chunk times: a micro-batch in one stage, forward, backward by halves, and overlapped in pairs.
//
// Computation has the multiprocessors that communication does not (DeviceSpec::comm_sms), in every
// chunk: kernels are launched for that number. A chunk alone shows its exchanges; in a pair they
// run beside the other micro-batch, in the order of DeepSeek's trace:
//   combine(B) || attn(F)   dispatch(F) || mlp(B)   dispatch(B) || mlp(W), mlp(F)
//   combine(F) || attn(B), attn(W)
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <map>

#include "parallel/stages.h"
#include "plan/runtime_ops.h"

namespace hadal::plan {

// Seconds of the parts of one layer, by pass: forward, input half, weight half.
struct LayerTimes {
  std::array<double, 3> attention{}, mlp{};
  // Forward: tokens out, results back. Backward: combine_b sends gradients of results out,
  // dispatch_b brings gradients of tokens back.
  double dispatch_f = 0.0, combine_f = 0.0, combine_b = 0.0, dispatch_b = 0.0;

  double forward() const { return attention[0] + mlp[0] + dispatch_f + combine_f; }
  double backward_input() const { return attention[1] + mlp[1] + dispatch_b + combine_b; }
  double backward_weight() const { return attention[2] + mlp[2]; }
};

// Different nodes (or, where a node holds all of `ep` ranks, ranks) that a token's routed experts
// are on, its own included, if it picks experts evenly within topk_group of n_group groups.
double destinations_per_token(const Config& config, int num_destinations);

class ChunkCosts {
 public:
  // REQUIRES: check_train_plan() passed; `plan` outlives this.
  explicit ChunkCosts(const TrainPlan& plan);

  const std::vector<StageRange>& stages() const { return stages_; }
  const LayerTimes& layer(bool is_moe) const { return is_moe ? moe_ : dense_; }
  double forward(int stage) const { return forward_[static_cast<size_t>(stage)]; }
  double backward_input(int stage) const { return input_[static_cast<size_t>(stage)]; }
  double backward_weight(int stage) const { return weight_[static_cast<size_t>(stage)]; }
  double pair(int forward_stage, int backward_stage) const;
  // A pair without overlap: the same work one after the other.
  double pair_serial(int forward_stage, int backward_stage) const {
    return forward(forward_stage) + backward_input(backward_stage) +
           backward_weight(backward_stage);
  }
  double head(Pass pass) const { return head_[static_cast<size_t>(pass)]; }
  // Bytes of a micro-batch's message between stages.
  double message_bytes() const { return message_bytes_; }
  // The time of one as the runtime sends it; 0 for plans that are not its own.
  double message_seconds() const { return message_seconds_; }
  const Basis& basis() const { return basis_; }
  double dispatch_bytes() const { return dispatch_bytes_; }
  int ep_nodes() const { return ep_nodes_; }

 private:
  double time_of(const OpList& ops);
  LayerTimes layer_times(bool is_moe);
  double exchange(const char* op, double bytes_per_token);
  double trip(runtime::Trip trip);
  double tensor_parallel_time() const;
  std::vector<bool> layers_of(int stage) const;  // is_moe, MTP blocks last
  double pair_uncached(int forward_stage, int backward_stage) const;

  const TrainPlan& plan_;
  Basis basis_;
  int ep_nodes_ = 1;
  double dispatch_bytes_ = 0.0, message_bytes_ = 0.0, message_seconds_ = 0.0;
  LayerTimes dense_, moe_;
  std::array<double, 3> head_{}, embed_{}, mtp_{};
  std::vector<StageRange> stages_;
  std::vector<double> forward_, input_, weight_;
  mutable std::map<std::pair<int, int>, double> pairs_;
};

}  // namespace hadal::plan
