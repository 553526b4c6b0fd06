// LatentCache: page allocation on the host, page table as device data.
// SPDX-License-Identifier: Apache-2.0
#include "model/latent_cache.h"

#include "core/pinned.h"
#include "core/transfer.h"
#include "model/bytes.h"

namespace hadal {

LatentCache::LatentCache(Context& ctx, const Config& c, DType act, CacheFormat format, Size size)
    : ctx_(ctx),
      max_pages_per_seq_((size.max_tokens + ops::kCachePageTokens - 1) / ops::kCachePageTokens),
      pages_(static_cast<size_t>(size.max_seqs)),
      taken_(static_cast<size_t>(size.max_seqs), false) {
  HADAL_CHECK(size.num_pages > 0 && size.max_seqs > 0 && size.max_tokens > 0,
              "a cache needs pages, sequences and ", "tokens, got ", size.num_pages, ", ",
              size.max_seqs, ", ", size.max_tokens);
  if (format == CacheFormat::kFp8) fp8_ = ops::Fp8LatentRow{c.kv_lora_rank, c.qk_rope_head_dim};
  const DType dtype = fp8_ ? DType::kE4M3 : act;
  const int64_t row = fp8_ ? fp8_->bytes() : c.latent_dim();
  HADAL_CHECK(row * static_cast<int64_t>(dtype_size(dtype)) == latent_row_bytes(c, act, format),
              "a row of the cache is ", row, " elements of ", dtype_name(dtype), ", planned were ",
              latent_row_bytes(c, act, format), " bytes");
  const Shape slab_shape{size.num_layers, size.num_pages, ops::kCachePageTokens, row};
  const Shape table_shape{size.max_seqs, max_pages_per_seq_};
  memory_ =
      ctx.memory.take(ByteCount().add(dtype, slab_shape).add(DType::kI32, table_shape).total());
  slab_ = memory_.tensor(dtype, slab_shape);
  table_ = memory_.tensor(DType::kI32, table_shape);
  for (int64_t page = size.num_pages - 1; page >= 0; --page) free_.push_back(page);
}

int64_t LatentCache::open() {
  for (size_t seq = 0; seq < taken_.size(); ++seq) {
    if (taken_[seq]) continue;
    taken_[seq] = true;
    return static_cast<int64_t>(seq);
  }
  HADAL_FAIL("the cache already holds ", taken_.size(), " sequences, its limit");
}

void LatentCache::close(int64_t seq) {
  auto& pages = pages_.at(static_cast<size_t>(seq));
  if (!lent_) free_.insert(free_.end(), pages.rbegin(), pages.rend());
  pages.clear();
  taken_.at(static_cast<size_t>(seq)) = false;
}

void LatentCache::reserve(int64_t seq, int64_t num_tokens) {
  auto& pages = pages_.at(static_cast<size_t>(seq));
  const int64_t needed = (num_tokens + ops::kCachePageTokens - 1) / ops::kCachePageTokens;
  HADAL_CHECK(needed <= max_pages_per_seq_, "a sequence of ", num_tokens,
              " tokens is longer than the cache's limit of ",
              max_pages_per_seq_ * ops::kCachePageTokens);
  while (static_cast<int64_t>(pages.size()) < needed) {
    HADAL_CHECK(!free_.empty(), "the cache has no free page for token ", num_tokens - 1,
                "; give it more pages or fewer sequences");
    pages.push_back(free_.back());
    free_.pop_back();
  }
}

void LatentCache::lend_pages() {
  for (const auto& pages : pages_)
    HADAL_CHECK(pages.empty(), "pages can be lent only while no sequence has one");
  lent_ = true;
  free_.clear();
}

void LatentCache::assign(int64_t seq, const std::vector<int64_t>& pages) {
  HADAL_CHECK(lent_, "pages are assigned by the cache itself; lend them first");
  HADAL_CHECK(static_cast<int64_t>(pages.size()) <= max_pages_per_seq_, "a sequence of ",
              pages.size(), " pages is longer than the cache's limit of ", max_pages_per_seq_);
  pages_.at(static_cast<size_t>(seq)) = pages;
}

void LatentCache::copy_rows(int64_t from, int64_t to, int64_t num_rows) {
  for (int64_t l = 0; l < slab_.dim(0); ++l) {
    const Tensor pages = slab_.row(l);  // [num_pages, kCachePageTokens, R+Dr]
    const Tensor rows = pages.row(from).rows(0, num_rows);
    device::copy_on_device(ctx_.device, ctx_.stream, rows.raw(), pages.row(to).raw(),
                           static_cast<size_t>(rows.num_bytes()));
  }
}

ops::LatentPages LatentCache::layer(int64_t layer) const {
  return {.pages = slab_.row(layer), .table = table_.rows(0, num_selected_), .fp8 = fp8_};
}

void LatentCache::select(const std::vector<int64_t>& seqs) {
  HADAL_CHECK(static_cast<int64_t>(seqs.size()) <= table_.dim(0), seqs.size(),
              " sequences do not fit a cache of ", table_.dim(0));
  num_selected_ = static_cast<int64_t>(seqs.size());
  std::vector<int32_t> rows;
  for (int64_t seq : seqs) {
    const auto& pages = pages_.at(static_cast<size_t>(seq));
    for (int64_t page : pages) rows.push_back(static_cast<int32_t>(page));
    rows.resize(rows.size() + static_cast<size_t>(max_pages_per_seq_) - pages.size(), -1);
  }
  upload(ctx_, rows, table_.rows(0, num_selected_));
}

}  // namespace hadal
