// Latent attention cores: training form over keys and values, absorbed form over the latent cache.
//
//   T tokens   S sequences   H heads   Dn, Dr, Dv  nope / rope / value width   R latent width
//
// Causal inside each sequence, softmax in f32 (f64 for f64). Deterministic; a token's result does
// not depend on which other tokens are in the call.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "core/packed.h"
#include "ops/dispatch.h"
#include "ops/latent_row.h"

namespace hadal::ops {

// q [T,H,Dn+Dr] rotated; kv [T,H,Dn+Dv] = k_nope | v; k_pe [T,Dr] rotated, shared by all heads.
// out [T,H,Dv]; lse [H,T] f32 (f64 for f64): log of the softmax denominator, scale included.
HADAL_OP(mla_attention_forward, Context& ctx, const Packed& seq, double scale, In q, In kv, In k_pe,
         Out out, Out lse)

struct MlaAttentionGrads {
  Tensor dq;     // [T,H,Dn+Dr]
  Tensor dkv;    // [T,H,Dn+Dv]
  Tensor dk_pe;  // [T,Dr]   summed over heads in head order
};
struct MlaAttentionSaved {
  Tensor q, kv, k_pe, out, lse;  // as above
};
HADAL_OP(mla_attention_backward, Context& ctx, const Packed& seq, double scale,
         const MlaAttentionSaved& saved, In dout, const MlaAttentionGrads& grads)

// The paged latent cache as a kernel sees it: page i of sequence s is pages[table[s][i]]. A row is
// the latent after its norm and the rotated k_pe: R+Dr elements of the compute type, or an FP8 row
// (ops/latent_row.h), which is written from those elements and read as what it holds.
inline constexpr int64_t kCachePageTokens = 64;
struct LatentPages {
  Tensor pages;  // [num_pages, kCachePageTokens, R+Dr], or as e4m3 [.., .., fp8->bytes()]
  Tensor table;  // [S, max_pages_per_seq] i32
  std::optional<Fp8LatentRow> fp8 = {};  // set: rows are FP8, of these widths

  int64_t width() const { return fp8 ? fp8->R + fp8->Dr : pages.dim(2); }  // R+Dr
};
// Stores row t of latent [T, R+Dr] at position positions[t] of its sequence.
HADAL_OP(latent_cache_write, Context& ctx, const Packed& seq, In latent, const LatentPages& cache)
// q [T,H,R+Dr] absorbed query | rotated q_pe; token t sees positions 0 .. positions[t] of its
// sequence, its own included (write first). out [T,H,R]. One softmax order whatever the chunking.
HADAL_OP(latent_attention, Context& ctx, const Packed& seq, double scale, In q,
         const LatentPages& cache, Out out)

}  // namespace hadal::ops
