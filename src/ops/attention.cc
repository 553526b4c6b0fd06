// Latent attention: shape and type checks, then the backend's body.
//
//   T tokens   S sequences   H heads   Dn, Dr, Dv  nope / rope / value width   R latent width
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

namespace hadal::ops {
namespace {

void check_packed(const Packed& seq, int64_t T, const char* op) {
  HADAL_CHECK(seq.num_tokens == T, op, ": the sequences have ", seq.num_tokens,
              " tokens, the tensors ", T);
  HADAL_CHECK(seq.offsets.dtype() == DType::kI32 && seq.offsets.num_elements() == seq.num_seqs + 1,
              op, ": offsets are ", seq.offsets.str(), " for ", seq.num_seqs,
              " sequences; they must be i32");
  HADAL_CHECK(seq.positions.dtype() == DType::kI32 && seq.positions.num_elements() == T, op,
              ": positions are ", seq.positions.str(), " for ", T, " tokens; they must be i32");
}

void check_type(const Tensor& t, DType want, const char* op, const char* name) {
  HADAL_CHECK(t.dtype() == want, op, ": ", name, " is ", t.str(), "; it must be ",
              dtype_name(want));
}

void check_act(DType act, const char* op) {
  HADAL_CHECK(act == DType::kF64 || act == DType::kF32 || act == DType::kBF16, op, ": tensors are ",
              dtype_name(act), "; they must be f64, f32 or bf16");
}

// The widths that q, kv and k_pe agree on.
void check_inputs(const Packed& seq, const Tensor& q, const Tensor& kv, const Tensor& k_pe,
                  const Tensor& out, const Tensor& lse, const char* op) {
  const auto [T, H, Dq] = HADAL_SHAPE(q, 3);
  const auto [Tk, Dr] = HADAL_SHAPE(k_pe, 2);
  static_cast<void>(Tk);
  check_packed(seq, T, op);
  check_act(q.dtype(), op);
  check_type(kv, q.dtype(), op, "kv");
  check_type(k_pe, q.dtype(), op, "k_pe");
  check_type(out, q.dtype(), op, "out");
  check_type(lse, stat_dtype(q.dtype()), op, "lse");
  HADAL_CHECK_SHAPE(k_pe, T, Dr);
  HADAL_CHECK(out.rank() == 3 && out.dim(0) == T && out.dim(1) == H, op, ": out is ", out.str(),
              " for q ", q.str());
  HADAL_CHECK(Dr <= Dq, op, ": k_pe is ", k_pe.str(), ", wider than q ", q.str());
  HADAL_CHECK_SHAPE(kv, T, H, Dq - Dr + out.dim(2));
  HADAL_CHECK_SHAPE(lse, H, T);
}

void check_cache(const Packed& seq, const LatentPages& cache, DType act, int64_t width,
                 const char* op) {
  const int64_t row = cache.fp8 ? cache.fp8->bytes() : width;
  HADAL_CHECK(cache.pages.rank() == 3 && cache.pages.dim(1) == kCachePageTokens &&
                  cache.pages.dim(2) == row,
              op, ": the cache is ", cache.pages.str(), "; it must be [pages, ", kCachePageTokens,
              ", ", row, "]");
  HADAL_CHECK(cache.width() == width, op, ": the cache has FP8 rows of ", cache.fp8->R, " + ",
              cache.fp8->Dr, " columns, the tensors ", width);
  check_type(cache.pages, cache.fp8 ? DType::kE4M3 : act, op, "the cache");
  HADAL_CHECK(cache.table.rank() == 2 && cache.table.dim(0) == seq.num_seqs &&
                  cache.table.dtype() == DType::kI32,
              op, ": the page table is ", cache.table.str(), " for ", seq.num_seqs, " sequences");
}

}  // namespace

void mla_attention_forward(Context& ctx, const Packed& seq, double scale, In q, In kv, In k_pe,
                           Out out, Out lse) {
  check_inputs(seq, q, kv, k_pe, out, lse, "mla_attention_forward");
  HADAL_DISPATCH(ctx, mla_attention_forward, seq, scale, q, kv, k_pe, out, lse);
}

void mla_attention_backward(Context& ctx, const Packed& seq, double scale,
                            const MlaAttentionSaved& saved, In dout,
                            const MlaAttentionGrads& grads) {
  const char* op = "mla_attention_backward";
  check_inputs(seq, saved.q, saved.kv, saved.k_pe, saved.out, saved.lse, op);
  const auto same = [&](const Tensor& t, const Tensor& like, const char* name) {
    HADAL_CHECK(t.shape() == like.shape() && t.dtype() == like.dtype(), op, ": ", name, " is ",
                t.str(), "; it must be ", like.str());
  };
  same(dout, saved.out, "dout");
  same(grads.dq, saved.q, "dq");
  same(grads.dkv, saved.kv, "dkv");
  same(grads.dk_pe, saved.k_pe, "dk_pe");
  HADAL_DISPATCH(ctx, mla_attention_backward, seq, scale, saved, dout, grads);
}

void latent_cache_write(Context& ctx, const Packed& seq, In latent, const LatentPages& cache) {
  const auto [T, W] = HADAL_SHAPE(latent, 2);
  check_packed(seq, T, "latent_cache_write");
  check_cache(seq, cache, latent.dtype(), W, "latent_cache_write");
  HADAL_DISPATCH(ctx, latent_cache_write, seq, latent, cache);
}

void latent_attention(Context& ctx, const Packed& seq, double scale, In q, const LatentPages& cache,
                      Out out) {
  const auto [T, H, W] = HADAL_SHAPE(q, 3);
  check_packed(seq, T, "latent_attention");
  check_act(q.dtype(), "latent_attention");
  check_cache(seq, cache, q.dtype(), W, "latent_attention");
  check_type(out, q.dtype(), "latent_attention", "out");
  HADAL_CHECK(out.rank() == 3 && out.dim(0) == T && out.dim(1) == H && out.dim(2) <= W,
              "latent_attention: out is ", out.str(), " for q ", q.str());
  HADAL_DISPATCH(ctx, latent_attention, seq, scale, q, cache, out);
}

}  // namespace hadal::ops
