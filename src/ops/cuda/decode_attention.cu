// The attention half of a layer for a few tokens on CUDA: one launch of decode_attention/config.h.
//
//   T tokens   D model width   H heads   E experts
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/decode_attention/config.h"
#include "ops/cuda/detail/cache.cuh"
#include "ops/cuda/gemv_matrices.h"
#include "ops/few_tokens.h"

namespace hadal::ops::cuda {
namespace {

using hadal::cuda::CacheRows;
using hadal::cuda::DecodeAttentionArgs;
using hadal::cuda::DecodeAttentionConfig;
using hadal::cuda::ExpertMatrices;

const float* gain_of(const Tensor& t) { return t.empty() ? nullptr : t.data<float>(); }
bool is_gain(const Tensor& t, int64_t width) {
  return t.dtype() == DType::kF32 && t.shape() == Shape({width}) && t.is_dense() && is_aligned(t);
}
bool find_one(const Operand& w, DType dtype, int64_t rows, int64_t cols, ExpertMatrices* to) {
  return w.data.shape() == Shape({rows, cols}) && find_matrices({&w, 1}, dtype, to);
}

// The arguments that follow from the weights; false where the kernel does not take them.
bool find_layer(const DecodeAttention& l, int64_t D, DecodeAttentionArgs* args) {
  using C = DecodeAttentionConfig;
  const int64_t H = l.num_heads, Dq = H * (l.nope_dim + l.rope_dim), Do = H * l.v_dim;
  const DType dtype = l.wo.data.dtype();
  const int64_t Rq = l.wq_a.empty() ? 0 : l.wq_a.data.dim(0);
  if ((dtype != DType::kBF16 && dtype != DType::kE4M3) || l.rope_dim != C::kRope ||
      l.nope_dim % 16 != 0 || l.v_dim % 16 != 0 || Rq % 16 != 0)
    return false;
  if (Rq > 0 ? !find_one(l.wq_a, dtype, Rq, D, &args->wq_a) ||
                   !find_one(l.wq_b, dtype, Dq, Rq, &args->wq_b) || !is_gain(l.q_norm, Rq)
             : !find_one(l.wq, dtype, Dq, D, &args->wq))
    return false;
  if (!find_one(l.wkv_a, dtype, C::kWidth, D, &args->wkv_a) ||
      !find_one(l.wkv_b, dtype, H * (l.nope_dim + l.v_dim), C::kLatent, &args->wkv_b) ||
      !find_one(l.wo, dtype, D, Do, &args->wo) || !is_gain(l.attn_norm, D) ||
      !is_gain(l.kv_norm, C::kLatent) || !is_gain(l.ffn_norm, D))
    return false;
  if (!l.gate_weight.empty() && (l.gate_weight.dtype() != DType::kF32 ||
                                 !l.gate_weight.is_dense() || !is_aligned(l.gate_weight)))
    return false;
  args->type =
      dtype == DType::kBF16 ? hadal::cuda::GemvWeight::kBF16 : hadal::cuda::GemvWeight::kE4M3;
  args->attn_norm = gain_of(l.attn_norm);
  args->q_norm = gain_of(l.q_norm);
  args->kv_norm = gain_of(l.kv_norm);
  args->ffn_norm = gain_of(l.ffn_norm);
  args->eps = static_cast<float>(l.eps);
  args->scale = static_cast<float>(l.scale);
  args->layout = l.layout;
  args->d = static_cast<int>(D);
  args->heads = static_cast<int>(H);
  args->nope = static_cast<int>(l.nope_dim);
  args->v = static_cast<int>(l.v_dim);
  args->q_rank = static_cast<int>(Rq);
  args->gate_weight = gain_of(l.gate_weight);
  args->experts = l.gate_weight.empty() ? 0 : static_cast<int>(l.gate_weight.dim(0));
  return true;
}

CacheRows rows_of(const LatentPages& cache) {
  return cache.fp8 ? CacheRows::kFp8 : CacheRows::kBF16;
}
bool is_v3_cache(const LatentPages& cache) {
  using C = DecodeAttentionConfig;
  return cache.width() == C::kWidth &&
         (cache.fp8 ? cache.fp8->R == C::kLatent : cache.pages.dtype() == DType::kBF16);
}

int64_t most_shared_bytes(const Context& ctx) {
  return attribute_of(ctx, cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

}  // namespace

void decode_attention_pays(Context& ctx, const DecodeAttention& layer, const Packed& seq,
                           const LatentPages& cache, In x, bool* pays) {
  using C = DecodeAttentionConfig;
  constexpr int64_t kStaticBytes = 4 << 10;  // more than the kernel has beside
  const int64_t T = x.dim(0), D = x.dim(1);
  DecodeAttentionArgs args{};
  *pays = ctx.numerics == Numerics::kFastest && has_sm90(ctx) && T >= 1 && T <= C::kMaxTokens &&
          x.dtype() == DType::kBF16 && is_aligned(x) && x.stride(0) % 8 == 0 && D % 16 == 0 &&
          is_v3_cache(cache) && cache.pages.is_dense() && is_aligned(cache.pages) &&
          cache.table.stride(1) == 1 && seq.rope.dtype() == DType::kF32 &&
          seq.offsets.stride(0) == 1 && seq.positions.stride(0) == 1 &&
          (layer.sums == nullptr || T * D <= layer.sums->lines) && find_layer(layer, D, &args);
  if (!*pays) return;
  args.tokens = static_cast<int>(T);
  args.rows = rows_of(cache);
  *pays = decode_attention_shared_bytes(args) + kStaticBytes <= most_shared_bytes(ctx);
}

void decode_attention(Context& ctx, const DecodeAttention& layer, const Packed& seq,
                      const LatentPages& cache, Acc x, Out normed, Out logits) {
  using C = DecodeAttentionConfig;
  const int64_t T = x.dim(0), D = x.dim(1), H = layer.num_heads;
  DecodeAttentionArgs args{};
  args.tokens = static_cast<int>(T);
  HADAL_CHECK(find_layer(layer, D, &args), "decode_attention on ", x.str(),
              ": weights that it does not take; ask decode_attention_pays first");
  HADAL_CHECK(normed.dtype() == DType::kBF16 && normed.is_dense() && is_aligned(normed) &&
                  logits.dtype() == DType::kF32 && logits.is_dense(),
              "decode_attention writes dense bf16 rows and f32 logits; got ", normed.str(), " and ",
              logits.str());
  const int sms = num_sms(ctx);
  args.x = static_cast<__nv_bfloat16*>(x.raw());
  args.x_row_stride = x.stride(0);
  args.normed = static_cast<__nv_bfloat16*>(normed.raw());
  args.logits = logits.data<float>();
  args.seqs = static_cast<int>(seq.num_seqs);
  args.rope = seq.rope.data<float>();
  args.rope_stride = seq.rope.stride(0);
  args.offsets = seq.offsets.data<int32_t>();
  args.positions = seq.positions.data<int32_t>();
  args.rows = rows_of(cache);
  args.pages = cache.pages.raw();
  args.table = cache.table.data<int32_t>();
  args.num_pages = cache.pages.dim(0);
  args.table_stride = static_cast<int>(cache.table.stride(0));
  args.table_places = static_cast<int>(cache.table.dim(1));
  const int groups = args.tokens * args.head_groups();
  args.max_splits =
      std::clamp(sms / groups, 1, std::min(C::kMaxSplits, std::max(1, args.table_places)));

  std::vector<Block> memory;
  const auto scratch = [&](DType dtype, const Shape& shape) {
    Tensor t;
    memory.push_back(ctx.memory.take_tensor(dtype, shape, &t));
    return t.raw();
  };
  const auto bf16_rows = [&](const Shape& shape) {
    return static_cast<__nv_bfloat16*>(scratch(DType::kBF16, shape));
  };
  const int64_t tasks = int64_t{groups} * args.max_splits;
  args.q_lat = bf16_rows({T, args.q_rank});
  args.q = bf16_rows({T, H * (layer.nope_dim + layer.rope_dim)});
  args.kv_lat = bf16_rows({T, C::kWidth});
  args.q_abs = bf16_rows({T, H * C::kWidth});
  args.out = bf16_rows({T, H * layer.v_dim});
  args.partial = static_cast<float*>(scratch(DType::kF32, {tasks, C::kHeads * C::kLatent}));
  args.sums = hadal::cuda::peer_sum_args(layer.sums);
  args.partial_stat = static_cast<float2*>(scratch(DType::kF32, {tasks, C::kHeads * 2}));
  decode_attention_sm90(args, FaultSite(ctx, kNoPage), sms, stream_of(ctx));
  check_launch(ctx, "decode_attention", x);
}

}  // namespace hadal::ops::cuda
