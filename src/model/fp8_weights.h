// Fp8Weights: the e4m3 copies that FP8 training multiplies with, of every matrix that is quantised
// in block-FP8 checkpoints (ParamKind::kMatrix), each also transposed.
//
// Made once per step from the masters: 128 x 128 blocks, f32 scales (report, 3.3.2). Two bytes a
// parameter: the backward pass reads the transposed copy, so nothing is turned in between.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "model/params.h"

namespace hadal {

class Fp8Weights {
 public:
  // Copies of the matrices that `masters` has; leaves that are not held are empty.
  Fp8Weights(Context& ctx, const Config& config, ModelParams<Tensor>& masters);

  // The tree as modules read it (param_store.h), with these matrices. REQUIRES: this outlives it.
  Weights weights_of(ModelParams<Tensor>& masters, ModelParams<Tensor>* copies) const;
  void quantise(Context& ctx, ModelParams<Tensor>& masters);
  // Of one layer (MTP module k: num_hidden_layers + k); no matrix is of none.
  void quantise_layer(Context& ctx, ModelParams<Tensor>& masters, int64_t layer);

 private:
  Config config_;
  Block memory_;
  Weights tree_;  // leaves of matrices that are held; others are empty
};

}  // namespace hadal
