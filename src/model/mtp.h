// One multi-token-prediction module: state of the depth before and the next token's embedding in,
// the normed state of this depth out (report, 2.2; notes, section 9).
//
//   Tk tokens of this depth on this rank   T tokens of the depth before on it   D model width
//
// z = eh_proj [enorm(e) ; hnorm(h)], the embedding half first as in the released weights; h is the
// main model's state after its final norm, or the depth before's after shared_head.norm. The
// embedding table and the head are the main model's.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/batch.h"
#include "model/block.h"

namespace hadal::mtp {

using Weights = Params<Operand>;
using Grads = Params<Tensor>;

// What one module computes with.
struct Module {
  const Config& config;
  const Weights& w;
  const Operand& embed;  // [V, D]
  Exchange& exchange;
  TensorGroup tensor = {};
  std::span<const int64_t> tokens = {};  // of decode(): as block::Layer's
};

struct [[nodiscard]] Saved {
  Block memory;
  Tensor h, z_rstd_e, z_rstd_h;  // [Tk, D]  [Tk]  [Tk]   h: rows of the depth before
  Tensor x, y, rstd;             // [Tk, D]  [Tk, D]  [Tk]   block input and output
  Tensor out;                    // [Tk, D]  after the norm
  block::Saved block;
};
struct [[nodiscard]] Deferred {
  Block saved, memory;  // saved: keeps `out` alive for the head's weight gradient
  block::Deferred block;
  Tensor z, dx;                  // [Tk, 2D]  [Tk, D]   input and output gradient of eh_proj
  Tensor ids, de;                // [Tk]  [Tk, D]       embedding rows and their gradient
  Tensor denorm, dhnorm, dnorm;  // [D]  [D]  [D]
};

// h_prev [T, D]: all rows of the depth before; the module picks depth.rows.
Saved forward(Context& ctx, const Module& module, const Batch::Depth& depth, In h_prev);
struct BackwardArgs {
  In dout;  // [Tk, D]
  double balance_scale;
};
// dh_prev [T, D] += ...
Deferred backward_input(Context& ctx, const Module& module, const Batch::Depth& depth,
                        Saved&& saved, const BackwardArgs& args, Acc dh_prev);
// dw += ..., dembed [V, D] += ...
void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw, Acc dembed);

// New tokens through the module with its own layer of the latent cache: ids are the tokens after
// those that h [T, D] belongs to; out [T, D] after the norm. T may be 0 in a tensor group.
void decode(Context& ctx, const Module& module, const Step& step, const ops::LatentPages& cache,
            In h, Out out);

}  // namespace hadal::mtp
