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
  Fp8Weights(Context& ctx, const Config& config);

  // The tree with its matrices replaced by this object's; REQUIRES: outlives what is returned.
  Weights replace_matrices(Weights weights);
  void quantise(Context& ctx, ModelParams<Tensor>& masters);

 private:
  Config config_;
  Block memory_;
  Weights tree_;  // leaves of matrices; others are empty
};

}  // namespace hadal
