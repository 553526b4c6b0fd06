// Bytes that each module keeps: forward -> backward (saved) and backward_input -> backward_weight
// (deferred), and per token in the latent cache. What forward allocates with, `hadal info` prints
// and a planner sums.
//
//   T tokens of a micro-batch   act: dtype of activations
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/device.h"
#include "core/memory.h"
#include "model/config.h"

namespace hadal {

// Sums the aligned sizes of tensors that share a Block.
class ByteCount {
 public:
  ByteCount& add(DType dtype, const Shape& shape) {
    total_ += tensor_bytes(dtype, shape);
    return *this;
  }
  // [T, K] as e4m3 in tiles of 1 x 128 with their scales (linear::tile_rows).
  ByteCount& add_tile_rows(int64_t T, int64_t K);
  size_t total() const { return total_; }

 private:
  size_t total_ = 0;
};

// Tokens of a chunk of the loss. Where those of a micro-batch are one chunk its logits are kept for
// the backward pass; else they are computed again, twice. A GPU has room for more of them, and its
// products of few rows are slow: 4 GiB of logits there, 64 MiB on the CPU.
int64_t loss_chunk_tokens(const Config& config, DeviceKind device);

// Tokens of a micro-batch: all of them, and those of this rank (model/tensor_group.h).
struct TokenCount {
  int64_t all, here;
  TokenCount(int64_t T) : all(T), here(T) {}
  TokenCount(int64_t T, int64_t Th) : all(T), here(Th) {}
};

namespace mla {
size_t saved_bytes(const Config& config, TokenCount T, DType act);
// Beyond what Saved hands on, and what a tensor group gathers.
size_t deferred_bytes(const Config& config, TokenCount T, DType act);
}  // namespace mla
namespace mlp {
size_t saved_bytes(int64_t F, int64_t T, DType act, const Precision& precision = {});
size_t deferred_bytes(int64_t F, int64_t T, DType act);
}  // namespace mlp
namespace gate {
size_t saved_bytes(const Config& config, int64_t T, int64_t num_seqs, DType act);
size_t deferred_bytes(const Config& config, int64_t T, DType act);
}  // namespace gate
namespace experts {
size_t page_bytes(const Config& config, DType act);                 // one page of the row pool
int64_t max_pages(int64_t num_rows, int64_t num_experts);           // worst case
int64_t max_pages(const Config& config, int64_t T);                 // the same of T local tokens
size_t saved_bytes(const Config& config, int64_t T, DType act);     // beside the pages
size_t deferred_bytes(const Config& config, int64_t T, DType act);  // worst case
}  // namespace experts
namespace block {
size_t saved_bytes(const Config& config, int64_t T, int64_t num_seqs, bool is_moe, DType act);
size_t deferred_bytes(const Config& config, int64_t T, bool is_moe, DType act);
}  // namespace block
namespace head {
size_t saved_bytes(const Config& config, int64_t T, DType act, DeviceKind device);
}  // namespace head

// Latent cache of one token in one layer, of a decoder that computes in act; and over all layers,
// where MTP modules that speculate add theirs.
int64_t latent_row_bytes(const Config& config, DType act, CacheFormat format);
int64_t cache_bytes_per_token(const Config& config, DType act, CacheFormat format, int64_t num_mtp);

// Number of parameters, router biases not counted (they are not trained).
struct ParamCounts {
  int64_t main = 0;  // without MTP
  int64_t mtp = 0;   // own parameters of all MTP modules
  // Matrix elements of the main model that one token uses; the gains of norms (1.0M of DeepSeek-V3)
  // are not counted, as in the report's figures.
  int64_t activated = 0;            // with embedding and head
  int64_t activated_head_only = 0;  // without the embedding
};
ParamCounts count_params(const Config& config);

}  // namespace hadal
