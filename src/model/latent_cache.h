// LatentCache: the paged key-value cache of MLA, one latent and one rotated key per token and
// layer.
//
//   L layers (MTP modules included)   R = Rkv, Dr latent and rope width   S sequences
//
// Pages hold ops::kCachePageTokens tokens. Page numbers are the same in every layer: page i of
// sequence s is page table[s][i] of each layer's slab. Only the latent after its norm and the key
// after rope are kept (report, 2.1.1): (Rkv + Dr) elements a token and layer.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "model/config.h"
#include "ops/attention.h"

namespace hadal {

class LatentCache {
 public:
  // REQUIRES: ctx outlives the cache.
  // Room for num_pages pages in each of num_layers layers; max_seqs sequences of max_tokens each.
  LatentCache(Context& ctx, const Config& config, DType dtype, int64_t num_layers,
              int64_t num_pages, int64_t max_seqs, int64_t max_tokens);

  // A free sequence slot, or an Error when all are taken.
  int64_t open();
  // Returns the pages of a sequence.
  void close(int64_t seq);
  // Makes room for positions [0, num_tokens) of a sequence; an Error when no page is free.
  void reserve(int64_t seq, int64_t num_tokens);
  int64_t num_free_pages() const { return static_cast<int64_t>(free_.size()); }

  // Someone else hands out pages from now on, all of them (serve/page_pool.h): reserve() then only
  // checks, and close() gives nothing back. REQUIRES: no sequence has a page.
  void lend_pages();
  // The pages of a sequence in order; others may read them too. REQUIRES: lend_pages().
  void assign(int64_t seq, const std::vector<int64_t>& pages);

  // What a kernel sees of one layer, for the given sequences in their order.
  ops::LatentPages layer(int64_t layer) const;
  // Row s of the table that layer() shows is sequence seqs[s].
  void select(const std::vector<int64_t>& seqs);

 private:
  Context& ctx_;
  int64_t max_pages_per_seq_;
  Block memory_;
  Tensor slab_;   // [L, num_pages, kCachePageTokens, R+Dr]
  Tensor table_;  // [max_seqs, max_pages_per_seq] i32
  int64_t num_selected_ = 0;
  std::vector<int64_t> free_;
  std::vector<std::vector<int64_t>> pages_;  // by sequence slot
  std::vector<bool> taken_;
  bool lent_ = false;
};

}  // namespace hadal
