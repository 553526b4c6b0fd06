// Checks of the fused ops for a few tokens, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/few_tokens.h"

#include "ops/checks.h"

namespace hadal::ops {
namespace {

// F of a gate, up and down matrix for rows of width D.
int64_t check_mlp(const Operand& w1, const Operand& w3, const Operand& w2, int64_t D) {
  const int64_t F = w1.data.dim(0);
  HADAL_CHECK(w1.data.rank() == 2 && w1.data.dim(1) == D && w3.data.shape() == w1.data.shape() &&
                  w2.data.shape() == Shape({D, F}),
              "moe_of_few: w1 is ", w1.data.str(), ", w3 ", w3.data.str(), ", w2 ", w2.data.str(),
              " for rows of ", D);
  return F;
}

}  // namespace

void moe_of_few_pays(Context& ctx, const MoeWeights& w, In x, bool* pays) {
  HADAL_DISPATCH(ctx, moe_of_few_pays, w, x, pays);
}

void moe_of_few(Context& ctx, const MoeWeights& w, In x, In topk_idx, In topk_weight, Acc y) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  const auto [rows, K] = HADAL_SHAPE(topk_idx, 2);
  HADAL_CHECK_SHAPE(y, T, D);
  HADAL_CHECK_SHAPE(topk_idx, T, K);
  HADAL_CHECK_SHAPE(topk_weight, T, K);
  check_float(x, "x");
  check_float(y, "y");
  check_dtype(topk_idx, DType::kI32, "topk_idx");
  check_stat(topk_weight, "topk_weight", x, "x");
  HADAL_CHECK(w.w1.size() == w.w3.size() && w.w1.size() == w.w2.size() && (K == 0 || !w.w1.empty()),
              "moe_of_few: ", w.w1.size(), ", ", w.w3.size(), " and ", w.w2.size(),
              " matrices for ", K, " choices of a token");
  for (size_t e = 0; e < w.w1.size(); ++e) {
    const int64_t F = check_mlp(w.w1[e], w.w3[e], w.w2[e], D);
    HADAL_CHECK(F == w.w1[0].data.dim(0), "moe_of_few: experts of width ", F, " and ",
                w.w1[0].data.dim(0));
  }
  if (!w.shared_w1.empty()) check_mlp(w.shared_w1, w.shared_w3, w.shared_w2, D);
  HADAL_CHECK(w.sums == nullptr || T * D <= w.sums->lines, "moe_of_few: sums of ", T * D,
              " terms over ranks that have room for ", w.sums->lines);
  static_cast<void>(rows);
  HADAL_DISPATCH(ctx, moe_of_few, w, x, topk_idx, topk_weight, y);
}

void decode_attention_pays(Context& ctx, const DecodeAttention& layer, const Packed& seq,
                           const LatentPages& cache, In x, bool* pays) {
  HADAL_DISPATCH(ctx, decode_attention_pays, layer, seq, cache, x, pays);
}

void decode_attention(Context& ctx, const DecodeAttention& layer, const Packed& seq,
                      const LatentPages& cache, Acc x, Out normed, Out logits) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  HADAL_CHECK_SHAPE(normed, T, D);
  HADAL_CHECK_SHAPE(logits, T, layer.gate_weight.empty() ? 0 : layer.gate_weight.dim(0));
  HADAL_CHECK(layer.sums == nullptr || T * D <= layer.sums->lines, "decode_attention: sums of ",
              T * D, " terms over ranks that have room for ", layer.sums->lines);
  HADAL_DISPATCH(ctx, decode_attention, layer, seq, cache, x, normed, logits);
}

void latent_inputs(Context& ctx, const Packed& seq, const LatentNorm& norm, In kv_lat, In q_pe,
                   const LatentPages& cache, Out q_out) {
  const auto [T, W] = HADAL_SHAPE(kv_lat, 2);
  const auto [rows, H, Dr] = HADAL_SHAPE(q_pe, 3);
  HADAL_CHECK_SHAPE(q_pe, T, H, Dr);
  HADAL_CHECK_SHAPE(q_out, T, H, Dr);
  HADAL_CHECK_SHAPE(norm.gain, W - Dr);
  HADAL_CHECK_SHAPE(seq.rope, T, Dr);
  const DType stored = cache.fp8 ? DType::kE4M3 : kv_lat.dtype();
  const int64_t row = cache.fp8 ? cache.fp8->bytes() : W;
  HADAL_CHECK(Dr % 2 == 0 && cache.pages.rank() == 3 && cache.pages.dim(2) == row &&
                  cache.pages.dtype() == stored && (!cache.fp8 || cache.fp8->Dr == Dr) &&
                  cache.width() == W,
              "latent_inputs: rows of ", kv_lat.str(), " with a rope width of ", Dr,
              " for a cache of ", cache.pages.str());
  static_cast<void>(rows);
  HADAL_DISPATCH(ctx, latent_inputs, seq, norm, kv_lat, q_pe, cache, q_out);
}

}  // namespace hadal::ops
