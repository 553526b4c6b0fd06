// Multi-head latent attention: forward, a backward in two halves, and decode over the latent cache.
//
//   T  tokens of a micro-batch, packed       D           model width     H  heads on this rank
//   Rq, Rkv  query / key-value latent ranks  Dn, Dr, Dv  nope / rope / value width of one head
//   Th tokens of them on this rank
//
// Per micro-batch: forward -> backward_input -> backward_weight, each once. Saved lives F..B,
// Deferred lives B..W, and each is moved into its one consumer, which frees it. Only
// backward_weight writes gradients, so a schedule may delay it (DeepSeek-V3 report, 3.2.1).
//
// In a tensor group the down-projections see this rank's tokens, the up-projections and attention
// all of them for this rank's heads; so what is gathered is the latents, Rq + Rkv + Dr wide.
// REQUIRES: the x and dy given to backward_input stay unchanged until backward_weight.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "core/packed.h"
#include "model/config.h"
#include "model/latent_cache.h"
#include "model/params.h"
#include "model/tensor_group.h"
#include "ops/fp8.h"
#include "ops/rope.h"

namespace hadal::mla {

struct [[nodiscard]] Saved {  // forward -> backward_input; q, k, v are recomputed (3.2.3)
  Block memory;
  Packed seq;
  TensorGroup group;
  Tensor q_lat, q_rstd;         // [Th, Rq]  [Th]      before the norm; empty where Rq is 0
  Tensor kv_lat, kv_rstd;       // [Th, Rkv+Dr]  [Th]  before norm and rope
  Tensor out, lse;              // [T, H*Dv]  [H, T]
  Tensor out_words, out_scale;  // out in E5M6, where it is kept so: [T, H*Dv*12/32]  [T, .]
};
struct [[nodiscard]] Deferred {  // backward_input -> backward_weight
  Block saved, memory, dy_memory, latents_memory;
  Tensor x, dy;               // [Th, D]  [T, D]     the caller's, dy of all ranks
  Tensor q_in, dq_lat;        // [T, Rq] or, where Rq is 0, x of all ranks   [Th, Rq]
  Tensor dq;                  // [T, H*(Dn+Dr)]
  Tensor kv_n, dkv_lat, dkv;  // [T, Rkv]  [Th, Rkv+Dr]  [T, H*(Dn+Dv)]
  Tensor out;                 // [T, H*Dv]
  Tensor dq_norm, dkv_norm;   // [Rq]  [Rkv]         already summed over T
  bool fp8 = false;
};

using Weights = Params<Operand>;
using Grads = Params<Tensor>;
// config: with the heads of this rank. x, y [Th, D]. x_tiles: x for products in FP8, where who made
// it made them too.
Saved forward(Context& ctx, const Config& config, const Weights& w, const Packed& seq, In x, Out y,
              const TensorGroup& group = {}, const ops::TileRows& x_tiles = {});
Deferred backward_input(Context& ctx, const Config& config, const Weights& w, Saved&& saved, In x,
                        In dy, Out dx);
void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw);  // dw += ...

// Absorbed attention of T new tokens over the cache of one layer: writes their latents, then
// attends. y [T, D] += ...
void decode(Context& ctx, const Config& config, const Weights& w, const Packed& seq,
            const ops::LatentPages& cache, In x, Acc y);

inline ops::RopeLayout rope_layout(const Config& config) {
  return config.rope_interleave ? ops::RopeLayout::kInterleaved : ops::RopeLayout::kHalves;
}

}  // namespace hadal::mla
