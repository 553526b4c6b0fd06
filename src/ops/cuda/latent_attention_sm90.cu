// Latent attention by Hopper's kernel.
//
//   T tokens   S sequences   H heads   W = R + Dr cached width   R latent width
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/latent_attention_sm90.h"
#include "ops/cuda/mla_decode/config.h"
#include "ops/cuda/operands.h"

namespace hadal::ops::cuda::sm90 {
namespace {

using hadal::cuda::CacheRows;
using hadal::cuda::MlaDecodeArgs;
using hadal::cuda::MlaDecodeConfig;
using hadal::cuda::MlaDecodeSplit;

}  // namespace

bool latent_attention(Context& ctx, const Packed& seq, double scale, const Tensor& q,
                      const LatentPages& cache, const Tensor& out) {
  using C = MlaDecodeConfig;
  static_assert(C::kPage == kCachePageTokens);
  const int64_t T = q.dim(0), H = q.dim(1), S = seq.num_seqs;
  const bool takes = has_sm90(ctx) && q.dtype() == DType::kBF16 && q.dim(2) == C::kWidth &&
                     out.dim(2) == C::kLatent && out.dtype() == DType::kBF16 &&
                     (!cache.fp8 || cache.fp8->R == C::kLatent);
  if (!takes || !q.is_dense() || !cache.pages.is_dense() || !out.is_dense() ||
      !cache.table.is_dense() || !is_aligned(q) || !is_aligned(cache.pages) || !is_aligned(out))
    return false;
  const int64_t max_length = cache.table.dim(1) * C::kPage;
  MlaDecodeArgs args{};
  args.rows = cache.fp8 ? CacheRows::kFp8 : CacheRows::kBF16;
  args.q = q.raw();
  args.pages = cache.pages.raw();
  args.table = cache.table.data<int32_t>();
  args.offsets = seq.offsets.data<int32_t>();
  args.positions = seq.positions.data<int32_t>();
  args.out = out.raw();
  args.num_pages = cache.pages.dim(0);
  args.num_seqs = static_cast<int>(S);
  args.num_tokens = static_cast<int>(T);
  // NOTE: no sequence is longer than max_len, so this says that all are as long.
  args.num_queries = seq.max_len * S == T ? static_cast<int>(seq.max_len) : 0;
  args.num_heads = static_cast<int>(H);
  args.table_stride = static_cast<int>(cache.table.stride(0));
  args.num_sms = num_sms(ctx);
  args.scale = static_cast<float>(scale);
  mla_decode_plan(
      args,
      ctx.numerics == Numerics::kFastest ? MlaDecodeSplit::kFastest : MlaDecodeSplit::kInvariant,
      static_cast<int>(max_length));
  if (args.max_splits > C::kMaxSplits) return false;
  const int64_t rows = args.max_splits > 1 ? args.max_splits * T * H : 0;
  Tensor partial_out, partial_lse, first_tile;
  const Block out_memory = ctx.memory.take_tensor(DType::kF16, {rows, C::kLatent}, &partial_out);
  const Block lse_memory = ctx.memory.take_tensor(DType::kF32, {rows}, &partial_lse);
  const Block tile_memory =
      ctx.memory.take_tensor(DType::kI32, {args.num_queries == 0 ? S + 1 : 0}, &first_tile);
  args.first_tile = first_tile.data<int32_t>();
  args.partial_out = partial_out.raw();
  args.partial_lse = partial_lse.data<float>();
  mla_decode_sm90(args, stream_of(ctx));
  check_launch(ctx, "latent_attention", q);
  return true;
}

}  // namespace hadal::ops::cuda::sm90
