// RowPool: one slab, one stack of free pages.
// SPDX-License-Identifier: Apache-2.0
#include "model/row_pool.h"

#include <utility>

#include "core/transfer.h"
#include "model/bytes.h"

namespace hadal {

RowLease::RowLease(RowLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      layout_(std::move(other.layout_)),
      page_(std::move(other.page_)) {}

RowLease& RowLease::operator=(RowLease&& other) noexcept {
  if (this != &other) {
    if (pool_ != nullptr) ops::give_back_pages(pool_->ctx_, layout_, pool_->stack_, page_);
    pool_ = std::exchange(other.pool_, nullptr);
    layout_ = std::move(other.layout_);
    page_ = std::move(other.page_);
  }
  return *this;
}

RowLease::~RowLease() {
  if (pool_ != nullptr) ops::give_back_pages(pool_->ctx_, layout_, pool_->stack_, page_);
}

ops::PagedRows RowLease::x() const { return {.slab = pool_->x_, .page = page_}; }
ops::PagedRows RowLease::gate_up() const { return {.slab = pool_->gate_up_, .page = page_}; }

RowPool::RowPool(Context& ctx, const Config& c, DType act, int64_t num_pages) : ctx_(ctx) {
  HADAL_CHECK(num_pages > 0 && num_pages < (int64_t{1} << 24), "a row pool cannot have ", num_pages,
              " pages of ", ops::kPageRows, " rows; use smaller micro-batches");
  const int64_t D = c.hidden_size, F2 = 2 * c.moe_intermediate_size;
  const int64_t record = ops::kPageRows * (D + F2);
  static_assert(ops::kPageRows == 128, "experts::page_bytes counts 128 rows a page");
  const size_t slab_bytes = tensor_bytes(act, {num_pages, record});
  memory_ = ctx.memory.take(slab_bytes + tensor_bytes(DType::kI32, {num_pages}) +
                            tensor_bytes(DType::kI32, {1}));
  const Tensor slab = memory_.tensor(act, {num_pages, record});
  x_ = Tensor(slab.raw(), act, {num_pages, ops::kPageRows, D}, {record, D, 1, 0});
  const Tensor second = slab.cols(ops::kPageRows * D, ops::kPageRows * F2);
  gate_up_ = Tensor(second.raw(), act, {num_pages, ops::kPageRows, F2}, {record, F2, 1, 0});
  stack_.free = memory_.tensor(DType::kI32, {num_pages});
  stack_.count = memory_.tensor(DType::kI32, {1});
  std::vector<int32_t> free(static_cast<size_t>(num_pages));
  for (size_t p = 0; p < free.size(); ++p) free[p] = static_cast<int32_t>(free.size() - 1 - p);
  upload(ctx, free, stack_.free);
  upload(ctx, std::vector<int32_t>{static_cast<int32_t>(num_pages)}, stack_.count);
}

RowLease RowPool::take(const ops::ExpertLayout& layout, const Tensor& page) {
  ops::take_pages(ctx_, layout, stack_, Out(Tensor(page)));
  RowLease lease;
  lease.pool_ = this;
  lease.layout_ = layout;
  lease.page_ = page;
  return lease;
}

int64_t RowPool::num_free_pages() const { return download<int32_t>(ctx_, stack_.count)[0]; }

}  // namespace hadal
