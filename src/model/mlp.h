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
struct Half {  // between the two halves of forward
  Block memory;
  Tensor gate_up;  // [T, 2F]
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
// forward() in two halves: w1 x and w3 x, then what is left.
Saved first_forward(Context& ctx, const Weights& w, In x, const Precision& precision,
                    const ops::TileRows& x_tiles, Half* half);
void second_forward(Context& ctx, const Weights& w, Saved& saved, Half&& half, Out y);
// y [T, D] += ... over the group, of whose hidden width each rank has a part; nothing kept.
void decode(Context& ctx, const Weights& w, const DecodeGroup& group, In x, Acc y);
Deferred backward_input(Context& ctx, const Weights& w, Saved&& saved, In x, In dy, Out dx,
                        const Precision& precision = {});
void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw);  // dw += ...

}  // namespace hadal::mlp
