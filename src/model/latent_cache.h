// LatentCache: the paged key-value cache of MLA, one latent and one rotated key per token and
// layer.
//
//   L layers (MTP modules included)   R = Rkv, Dr latent and rope width   S sequences
//
// Pages hold ops::kCachePageTokens tokens. Page numbers are the same in every layer: page i of
// sequence s is page table[s][i] of each layer's slab. Only the latent after its norm and the key
// after rope are kept (report, 2.1.1): (Rkv + Dr) elements of the compute type a token and layer,
// or an FP8 row (ops/latent_row.h). cache_bytes_per_token() of model/bytes.h is what a token takes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/context.h"
#include "model/config.h"
#include "ops/attention.h"

namespace hadal {

class LatentCache {
 public:
  // REQUIRES: ctx outlives the cache.
  struct Size {
    int64_t num_layers, num_pages;  // pages in each layer
    int64_t max_seqs, max_tokens;   // of each sequence
  };
  // act: the decoder's compute type.
  LatentCache(Context& ctx, const Config& config, DType act, CacheFormat format, Size size);

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
  const std::vector<int64_t>& pages_of(int64_t seq) const {
    return pages_.at(static_cast<size_t>(seq));
  }
  // The first rows of a page into another one, in every layer. REQUIRES: from != to.
  void copy_rows(int64_t from, int64_t to, int64_t num_rows);

  // What a kernel sees of one layer, for the given sequences in their order.
  ops::LatentPages layer(int64_t layer) const;
  // Row s of the table that layer() shows is sequence seqs[s].
  void select(const std::vector<int64_t>& seqs);

 private:
  Context& ctx_;
  int64_t max_pages_per_seq_;
  Block memory_;
  std::optional<ops::Fp8LatentRow> fp8_;
  Tensor slab_;   // [L, num_pages, kCachePageTokens, R+Dr], or of the bytes of FP8 rows
  Tensor table_;  // [max_seqs, max_pages_per_seq] i32
  int64_t num_selected_ = 0;
  std::vector<int64_t> free_;
  std::vector<std::vector<int64_t>> pages_;  // by sequence slot
  std::vector<bool> taken_;
  bool lent_ = false;
};

}  // namespace hadal
