// MasterGather: after an update each rank's shares of the masters go to the ranks that hold them
// too, and what modules read is made of them: bf16 copies of matrices, FP8 copies.
//
// With `overlap` beside other work, on GPUs in a stream of their own: layer by layer beside what
// follows, where who reads a layer awaits it, and who reads anything else finishes; or, where
// micro-batches are recorded one by one and so await nothing, a region beside the update of the
// next one. The bits do not depend on it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/context.h"
#include "model/fp8_weights.h"
#include "model/param_store.h"
#include "parallel/team.h"
#include "train/layer_runs.h"

namespace hadal::train {

class MasterGather {
 public:
  struct Stores {
    ParamStore& masters;
    ParamStore* copies = nullptr;  // null: none
    Fp8Weights* fp8 = nullptr;     // null: none
  };
  // REQUIRES: ctx, team and the stores outlive it.
  MasterGather(Context& ctx, const Config& config, Team& team, const Stores& stores);
  MasterGather(const MasterGather&) = delete;
  MasterGather& operator=(const MasterGather&) = delete;
  ~MasterGather();

  // This rank's share of a region has been updated, in the stream of the context.
  void updated(ParamStore::Region region);
  void start();  // REQUIRES: all regions have been
  // A step begins: the stream of the context goes on when what is of no layer can be read.
  void begin_step();
  // It goes on when a layer can be (MTP module k: num_hidden_layers + k), the first time in a step.
  void await(int64_t layer);
  void finish();  // when everything can
  // Of masters that all ranks have.
  void make_copies();
  bool is_under_way() const { return is_under_way_; }
  // Whether a step's first forwards await the layers.
  bool goes_by_layers() const { return by_layers_; }

 private:
  void gather(Context& ctx, const LayerRun& run);
  void copy(Context& ctx, const LayerRun& run);

  Context& ctx_;
  Team& team_;
  Stores stores_;
  LayerRuns runs_;
  bool by_layers_;
  Event regions_ready_;
  bool is_under_way_ = false;
  // By layers: of each, and of what is of none. They stay the same events, which a recorded step
  // awaits.
  std::vector<Event> ready_;
  Event rest_ready_;
  std::vector<bool> awaited_;  // of each layer, in this step
};

}  // namespace hadal::train
