// The _bytes functions: one line per tensor that a Saved or Deferred holds.
// SPDX-License-Identifier: Apache-2.0
#include "model/bytes.h"

#include <algorithm>

#include "model/params.h"

namespace hadal {
namespace {
constexpr int64_t kRows = 128;  // rows of a page; ops::kPageRows, checked in model/row_pool.cc
constexpr int64_t kTile = 128;  // elements of a tile; ops::kTileSize, checked in model/linear.cc
int64_t num_tiles(int64_t width) { return (width + kTile - 1) / kTile; }
// 32-bit words of a row in E5M6: ops::e5m6_words.
int64_t e5m6_words(int64_t width) { return (width + 7) / 8 * 3; }
// Bytes of an FP8 row of the cache: ops::Fp8LatentRow, checked in model/latent_cache.cc.
int64_t fp8_latent_row_bytes(int64_t R, int64_t Dr) {
  const int64_t elements = (R + 3) / 4 * 4, scales = 4 * num_tiles(R), key = 2 * Dr;
  return (elements + scales + key + 15) / 16 * 16;
}
}  // namespace

ByteCount& ByteCount::add_tile_rows(int64_t T, int64_t K) {
  constexpr int64_t kRowUnit = 16;  // rows start at multiples of it
  return add(DType::kE4M3, {T, (K + kRowUnit - 1) / kRowUnit * kRowUnit})
      .add(DType::kF32, {num_tiles(K), num_tiles(T) * kRows});
}

int64_t loss_chunk_tokens(const Config& c, DeviceKind device) {
  const int64_t elements = int64_t{1} << (device == DeviceKind::kCpu ? 24 : 30);
  return std::max<int64_t>(1, elements / c.vocab_size);
}

namespace mla {

size_t saved_bytes(const Config& c, TokenCount T, DType act) {
  const int64_t H = c.num_attention_heads;
  ByteCount n;
  n.add(act, {T.here, c.latent_dim()})    // kv_lat
      .add(stat_dtype(act), {T.here})     // kv_rstd
      .add(stat_dtype(act), {H, T.all});  // lse
  if (c.precision.e5m6_attention)
    n.add(DType::kI32, {T.all, e5m6_words(H * c.v_head_dim)})
        .add(DType::kF32, {T.all, num_tiles(H * c.v_head_dim)});  // out in 12 bits
  else
    n.add(act, {T.all, H * c.v_head_dim});  // out
  if (c.q_lora_rank > 0)
    n.add(act, {T.here, c.q_lora_rank}).add(stat_dtype(act), {T.here});  // q_lat, q_rstd
  return n.total();
}

size_t deferred_bytes(const Config& c, TokenCount T, DType act) {
  const int64_t H = c.num_attention_heads;
  ByteCount n;
  n.add(act, {T.all, H * c.qk_head_dim()})                                // dq
      .add(act, {T.all, H * (c.qk_nope_head_dim + c.v_head_dim)})         // dkv
      .add(act, {T.here, c.latent_dim()})                                 // dkv_lat
      .add(act, {T.here, c.kv_lora_rank})                                 // kv_n
      .add(stat_dtype(act), {c.kv_lora_rank});                            // dkv_norm
  if (c.precision.e5m6_attention) n.add(act, {T.all, H * c.v_head_dim});  // out again
  if (c.q_lora_rank > 0)
    n.add(act, {T.here, c.q_lora_rank})
        .add(act, {T.here, c.q_lora_rank})
        .add(stat_dtype(act), {c.q_lora_rank});
  return n.total();
}

}  // namespace mla

namespace mlp {

size_t saved_bytes(int64_t F, int64_t T, DType act, const Precision& precision) {
  ByteCount n;
  if (precision.e4m3_swiglu) return n.add_tile_rows(T, 2 * F).total();
  return n.add(act, {T, 2 * F}).total();  // gate_up
}

size_t deferred_bytes(int64_t F, int64_t T, DType act) {
  return ByteCount().add(act, {T, 2 * F}).add(act, {T, F}).total();  // dgate_up, hidden
}

}  // namespace mlp

namespace gate {

size_t saved_bytes(const Config& c, int64_t T, int64_t num_seqs, DType act) {
  return ByteCount()
      .add(stat_dtype(act), {T, c.n_routed_experts})         // scores
      .add(DType::kI32, {T, c.num_experts_per_tok})          // topk_idx
      .add(stat_dtype(act), {T, c.num_experts_per_tok})      // topk_weight
      .add(stat_dtype(act), {num_seqs, c.n_routed_experts})  // fraction
      .add(stat_dtype(act), {num_seqs})                      // balance
      .total();
}

size_t deferred_bytes(const Config& c, int64_t T, DType act) {
  return tensor_bytes(stat_dtype(act), {T, c.n_routed_experts});  // dlogits
}

}  // namespace gate

namespace experts {

size_t page_bytes(const Config& c, DType act) {
  const int64_t D = c.hidden_size, F2 = 2 * c.moe_intermediate_size;
  const auto plain = [&](int64_t width) {
    return static_cast<size_t>(kRows * width) * dtype_size(act);
  };
  const auto e4m3 = [](int64_t width) {  // elements, and a scale for every tile of a row
    return static_cast<size_t>(kRows * (width + 4 * num_tiles(width)));
  };
  return (c.precision.fp8 ? e4m3(D) : plain(D)) + (c.precision.e4m3_swiglu ? e4m3(F2) : plain(F2));
}

int64_t max_pages(int64_t num_rows, int64_t num_experts) {
  const int64_t nonempty = std::min(num_rows, num_experts);
  return (num_rows - nonempty) / kRows + nonempty;
}

int64_t max_pages(const Config& c, int64_t T) {
  return max_pages(T * c.num_experts_per_tok, c.n_routed_experts);
}

size_t saved_bytes(const Config& c, int64_t T, DType act) {
  const int64_t P = max_pages(c, T);
  return ByteCount()
      .add(DType::kI32, {c.n_routed_experts})        // counts
      .add(DType::kI32, {c.n_routed_experts + 1})    // page_begin
      .add(DType::kI32, {P})                         // page
      .add(DType::kI32, {T, c.num_experts_per_tok})  // row_of_choice
      .add(stat_dtype(act), {P * kRows})             // row_weight
      .total();
}

size_t deferred_bytes(const Config& c, int64_t T, DType act) {
  const int64_t P = max_pages(c, T), D = c.hidden_size, F = c.moe_intermediate_size;
  return ByteCount()
      .add(c.precision.fp8 ? DType::kE4M3 : act, {P, kRows, D})  // dy
      .add(DType::kF32, {c.precision.fp8 ? num_tiles(D) : 0, P * kRows})
      .add(act, {P, kRows, F})      // hidden
      .add(act, {P, kRows, 2 * F})  // dgate_up
      .total();
}

}  // namespace experts

namespace block {

size_t saved_bytes(const Config& c, int64_t T, int64_t num_seqs, bool is_moe, DType act) {
  size_t total = ByteCount()
                     .add(act, {T, c.hidden_size})  // h
                     .add(stat_dtype(act), {T})     // attn_rstd
                     .add(stat_dtype(act), {T})     // ffn_rstd
                     .total() +
                 mla::saved_bytes(c, T, act);
  if (!is_moe) return total + mlp::saved_bytes(c.intermediate_size, T, act, c.precision);
  total += gate::saved_bytes(c, T, num_seqs, act) + experts::saved_bytes(c, T, act) +
           static_cast<size_t>(experts::max_pages(c, T)) * experts::page_bytes(c, act);
  if (c.n_shared_experts > 0)
    total += mlp::saved_bytes(c.shared_intermediate_size(), T, act, c.precision);
  return total;
}

size_t deferred_bytes(const Config& c, int64_t T, bool is_moe, DType act) {
  size_t total = ByteCount()
                     .add(act, {T, c.hidden_size})           // x_n
                     .add(act, {T, c.hidden_size})           // h_n
                     .add(act, {T, c.hidden_size})           // dh
                     .add(act, {T, c.hidden_size})           // dy
                     .add(stat_dtype(act), {c.hidden_size})  // dattn_norm
                     .add(stat_dtype(act), {c.hidden_size})  // dffn_norm
                     .total() +
                 mla::deferred_bytes(c, T, act);
  if (!is_moe) return total + mlp::deferred_bytes(c.intermediate_size, T, act);
  total += gate::deferred_bytes(c, T, act) + experts::deferred_bytes(c, T, act);
  if (c.n_shared_experts > 0) total += mlp::deferred_bytes(c.shared_intermediate_size(), T, act);
  return total;
}

}  // namespace block

namespace head {

size_t saved_bytes(const Config& c, int64_t T, DType act, DeviceKind device) {
  ByteCount n;
  n.add(stat_dtype(act), {T}).add(stat_dtype(act), {T});  // lse, loss
  if (T <= loss_chunk_tokens(c, device)) n.add(stat_dtype(act), {T, c.vocab_size});
  return n.total();
}

}  // namespace head

int64_t latent_row_bytes(const Config& c, DType act, CacheFormat format) {
  return format == CacheFormat::kFp8 ? fp8_latent_row_bytes(c.kv_lora_rank, c.qk_rope_head_dim)
                                     : c.latent_dim() * static_cast<int64_t>(dtype_size(act));
}

int64_t cache_bytes_per_token(const Config& c, DType act, CacheFormat format, int64_t num_mtp) {
  return (c.num_hidden_layers + num_mtp) * latent_row_bytes(c, act, format);
}

ParamCounts count_params(const Config& c) {
  ParamCounts counts;
  ModelParams<char> tree;
  resize(c, tree);
  const int64_t idle_experts = c.n_routed_experts - c.num_experts_per_tok;
  for_each_param(
      c,
      [&](const ParamInfo& info, char&) {
        if (!info.trained()) return;
        const int64_t n = info.shape.num_elements();
        const bool is_mtp = info.name.rfind("mtp.", 0) == 0;
        (is_mtp ? counts.mtp : counts.main) += n;
        if (!is_mtp && info.shape.rank >= 2) counts.activated += n;
      },
      tree);
  const int64_t moe_layers = std::max<int64_t>(0, c.num_hidden_layers - c.first_k_dense_replace);
  counts.activated -= moe_layers * idle_experts * 3 * c.hidden_size * c.moe_intermediate_size;
  // NOTE: a tied table is read for the head as well, so it stays.
  counts.activated_head_only =
      counts.activated - (c.tie_word_embeddings ? 0 : c.vocab_size * c.hidden_size);
  return counts;
}

}  // namespace hadal
