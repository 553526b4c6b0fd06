// GradientSums: a step's gradients, summed over the ranks that hold the same parameters, each rank
// its shares (ZeRO-1).
//
// Layers that are told of start at once, on GPUs in a stream of their own beside the backward of
// the others; a layer's matrices, or experts, are one run of a region, and each rank gets where the
// run crosses its share. What is left (embedding, head, gates, norms) is summed at the end. Sums
// run in rank order element by element, so they have the same bits however a region is cut.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/context.h"
#include "model/param_store.h"
#include "parallel/team.h"
#include "train/layer_runs.h"

namespace hadal::train {

class GradientSums {
 public:
  // Whether layers start when they are told of: `overlap` of the run's config says so, and there
  // are ranks to sum over.
  // REQUIRES: all of them outlive it.
  GradientSums(Context& ctx, const Config& config, Team& team, ParamStore& grads);

  bool starts_layers() const { return starts_layers_; }
  // SMs of a GPU that the sums of a layer may take.
  int num_sms() const;
  // The gradients of a layer (MTP module k: num_hidden_layers + k) are whole on this rank. Ranks of
  // a group tell of their layers in the same order, of all of them or of none. REQUIRES:
  // starts_layers().
  void start(int64_t layer);
  // All layers were told of: the stream of the context goes on behind their sums, so that work that
  // tells of layers can be recorded, or done again.
  void finish_layers();
  // All the rest, on GPUs beside what follows; groups of one rank have nothing to sum.
  enum class Layers : uint8_t { kDone, kLeft };
  void start_rest(Layers layers);
  // The stream of the context goes on behind them: every rank's shares are whole then, and the next
  // step may begin.
  void finish();

 private:
  void reduce(Context& ctx, const LayerRun& run);

  Context& ctx_;
  Team& team_;
  ParamStore& grads_;
  LayerRuns runs_;
  bool starts_layers_;
  Event ready_;  // all that was started
};

}  // namespace hadal::train
