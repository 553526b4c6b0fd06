// Dense SwiGLU MLP: y = w2 (silu(w1 x) * w3 x). Dense layers and the shared expert.
//
//   T tokens   D model width   F hidden width
//
// Per micro-batch: forward -> backward_input -> backward_weight, each once. The output of SwiGLU is
// recomputed from its input (report, 3.2.3).
// REQUIRES: the x and dy given to backward_input stay unchanged until backward_weight.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "model/params.h"
#include "model/precision.h"
#include "model/tensor_group.h"
#include "ops/fp8.h"

namespace hadal::mlp {

struct [[nodiscard]] Saved {
  Block memory;
  Tensor gate_up;              // [T, 2F]
  ops::TileRows gate_up_e4m3;  // the same, where it is kept so
};
struct [[nodiscard]] Hidden {  // between the two halves of forward
  Block memory;
  Tensor plain;          // [T, F]
  ops::TileRows in_fp8;  // [T, F]   in its place, for products in FP8
};
struct [[nodiscard]] Deferred {
  Block memory;
  Tensor x, dy;     // [T, D]  [T, D]   the caller's
  Tensor hidden;    // [T, F]
  Tensor dgate_up;  // [T, 2F]
  bool fp8 = false;
};

using Weights = Params<Operand>;
using Grads = Params<Tensor>;
// x_tiles: x for products in FP8, where who made it made them too.
Saved forward(Context& ctx, const Weights& w, In x, Out y, const Precision& precision = {},
              const ops::TileRows& x_tiles = {});
// forward() in two halves: hidden = silu(w1 x) * w3 x, and y = w2 hidden.
Saved up_forward(Context& ctx, const Weights& w, In x, const Precision& precision,
                 const ops::TileRows& x_tiles, Hidden* hidden);
void down_forward(Context& ctx, const Weights& w, const Hidden& hidden, Out y);
// y [T, D] += ... over the group, of whose hidden width each rank has a part; nothing kept.
void decode(Context& ctx, const Weights& w, const DecodeGroup& group, In x, Acc y);
Deferred backward_input(Context& ctx, const Weights& w, Saved&& saved, In x, In dy, Out dx,
                        const Precision& precision = {});
void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw);  // dw += ...

}  // namespace hadal::mlp
