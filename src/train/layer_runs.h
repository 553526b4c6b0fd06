// LayerRuns: what a rank holds of each layer, as runs of its regions: its experts, its split
// matrices, its other matrices.
//
// Where ranks share a region, a run of it belongs to those whose shares it crosses.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "model/param_store.h"

namespace hadal::train {

struct LayerRun {
  ParamStore::Region region = ParamStore::Region::kDense;
  FlatRange range;
};

class LayerRuns {
 public:
  // REQUIRES: store is whole and outlives it.
  LayerRuns(const Config& config, const ParamStore& store);

  int64_t num_layers() const { return static_cast<int64_t>(of_layer_.size()); }  // MTP modules last
  const std::vector<LayerRun>& of(int64_t layer) const {
    return of_layer_[static_cast<size_t>(layer)];
  }
  // What is left without those of layers: embedding, head, gates, norms, padding.
  const std::vector<LayerRun>& rest() const { return rest_; }
  std::vector<LayerRun> regions() const;  // whole
  // [G]   elements of a run that each of the group's ranks has.
  std::vector<int64_t> counts(const LayerRun& run, int group_size) const;
  FlatRange own(const LayerRun& run) const;  // this rank's part

 private:
  std::vector<LayerRun> find_rest() const;

  const ParamStore& store_;
  std::vector<std::vector<LayerRun>> of_layer_;
  std::vector<LayerRun> rest_;
};

}  // namespace hadal::train
