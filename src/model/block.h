// One transformer layer: h = x + MLA(norm(x)); y = h + FFN(norm(h)), in stages attn / dispatch /
// mlp / combine, so that two micro-batches can overlap (report, 3.2.1, figure 4).
//
//   T tokens of this rank   D model width
//
// forward(), backward_input() and backward_weight() call the stages in order; a dense layer has the
// same stages, its dispatch and combine without a transfer. Norms are recomputed (3.2.3).
// REQUIRES: x stays unchanged until attn_backward.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>

#include "model/mla.h"
#include "model/mlp.h"
#include "model/moe.h"

namespace hadal::block {

using Weights = Params<Operand>;
using Grads = Params<Tensor>;

// What one layer computes with.
struct Layer {
  const Config& config;
  const Weights& w;
  Exchange& exchange;
  bool is_moe;
  TensorGroup tensor = {};  // shares heads and dense MLPs, and the tokens, but for decode()
  std::span<const int64_t> tokens = {};  // [G] of decode(): DecodeGroup
};

struct [[nodiscard]] Saved {
  Packed seq;
  Tensor x;  // [T, D]   the caller's
  Block memory;
  Tensor h, attn_rstd, ffn_rstd;  // [T, D]  [T]  [T]
  mla::Saved attn;
  mlp::Saved mlp;           // dense layers
  moe::Saved moe;           // the others
  Block scratch;            // between dispatch_forward and combine_forward
  Tensor h_n, y_mlp;        // [T, D]  [T, D]
  ops::TileRows h_n_tiles;  // [T, D]   in FP8
};
struct [[nodiscard]] Deferred {
  Block memory;
  Tensor x_n, h_n, dh, dy;       // [T, D] each
  Tensor dattn_norm, dffn_norm;  // [D]  [D]
  mla::Deferred attn;
  mlp::Deferred mlp;
  moe::Deferred moe;
  Block mlp_memory;  // what a dense MLP's weight gradients read of other ranks
  bool is_moe = false;
};

Saved attn_forward(Context& ctx, const Layer& layer, const Packed& seq, In x);
void dispatch_forward(Context& ctx, const Layer& layer, Saved& s);
void mlp_forward(Context& ctx, const Layer& layer, Saved& s);
void combine_forward(Context& ctx, const Layer& layer, Saved& s, Out y);

Deferred combine_backward(Context& ctx, const Layer& layer, Saved& s, In dy);
void mlp_backward(Context& ctx, const Layer& layer, Saved& s, Deferred& d);
void dispatch_backward(Context& ctx, const Layer& layer, Saved& s, double balance_scale,
                       Deferred& d);
void attn_backward(Context& ctx, const Layer& layer, Saved&& s, Deferred& d, Out dx);
// dw += ..., each after the stage whose name it has
void mlp_backward_weight(Context& ctx, Deferred& d, Grads& dw);
void dispatch_backward_weight(Context& ctx, Deferred& d, Grads& dw);
void attn_backward_weight(Context& ctx, Deferred& d, Grads& dw);

Saved forward(Context& ctx, const Layer& layer, const Packed& seq, In x, Out y);
Deferred backward_input(Context& ctx, const Layer& layer, Saved&& saved, double balance_scale,
                        In dy, Out dx);
void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw);
// Both, with the same bits, in an order that hides a transfer: the experts' weight gradients run
// while gradients of their rows travel back.
void backward(Context& ctx, const Layer& layer, Saved&& saved, double balance_scale, In dy, Out dx,
              Grads& dw);

// A layer of one micro-batch forward and a layer of another backward, both halves, so that each
// transfer runs beside work of the other (figure 4): the bits of forward() and of backward_input()
// with backward_weight().
struct ForwardArgs {
  const Layer& layer;
  const Packed& seq;
  In x;   // [T, D]
  Out y;  // [T, D]
};
struct BackwardArgs {
  const Layer& layer;
  Saved&& saved;
  Deferred&& deferred;  // of combine_backward
  double balance_scale;
  Out dx;  // [T, D]
  Grads& dw;
  // Called once dx is there: combine_backward of the layer that reads it, which is hidden by what
  // is left of this one.
  const std::function<void()>& next;
};
Saved overlap(Context& ctx, const ForwardArgs& f, BackwardArgs&& b);

// T new tokens through the layer with the latent cache: x [T, D] becomes the layer's output. In a
// tensor group each rank has a part of the widths and experts; and either all have all of x and
// each a part of the heads, or each has the rows of its own sequences, maybe none, and all heads.
void decode(Context& ctx, const Layer& layer, const Packed& seq, const ops::LatentPages& cache,
            Acc x);

}  // namespace hadal::block
