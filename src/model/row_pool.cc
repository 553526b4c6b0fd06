// RowPool: one slab, one stack of free pages.
// SPDX-License-Identifier: Apache-2.0
#include "model/row_pool.h"

#include <utility>

#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/copy.h"
#include "ops/fp8.h"

namespace hadal {

RowLease::RowLease(RowLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      layout_(std::move(other.layout_)),
      page_(std::move(other.page_)) {}

RowLease& RowLease::operator=(RowLease&& other) noexcept {
  if (this != &other) {
    const RowLease gone(std::move(*this));
    pool_ = std::exchange(other.pool_, nullptr);
    layout_ = std::move(other.layout_);
    page_ = std::move(other.page_);
  }
  return *this;
}

RowLease::~RowLease() {
  if (pool_ == nullptr) return;
  try {
    ops::give_back_pages(pool_->ctx_, layout_, pool_->stack_, page_);
  } catch (const Error&) {
    // A launch that failed: the error of the op that made it fail is on its way, or the next op's.
  }
}

ops::PagedRows RowLease::x() const {
  return {.slab = pool_->x_.slab, .page = page_, .scale = pool_->x_.scale};
}
ops::PagedRows RowLease::gate_up() const {
  return {.slab = pool_->gate_up_.slab, .page = page_, .scale = pool_->gate_up_.scale};
}

RowPool::RowPool(Context& ctx, const Config& c, DType act, int64_t num_pages, TooFew too_few)
    : ctx_(ctx) {
  HADAL_CHECK(num_pages > 0 && num_pages < (int64_t{1} << 24), "a row pool cannot have ", num_pages,
              " pages of ", ops::kPageRows, " rows; use smaller micro-batches");
  const int64_t D = c.hidden_size, F2 = 2 * c.moe_intermediate_size;
  static_assert(ops::kPageRows == 128, "experts::page_bytes counts 128 rows a page");
  const bool counted = too_few == TooFew::kCounted;
  const int64_t in_slab = num_pages + (counted ? 1 : 0);
  ByteCount bytes;
  const auto shapes = [&](int64_t width, bool e4m3, const auto& fn) {
    fn(e4m3 ? DType::kE4M3 : act, Shape{in_slab, ops::kPageRows, width});
    if (e4m3) fn(DType::kF32, Shape{ops::num_tiles(width), in_slab * ops::kPageRows});
  };
  const auto count = [&](DType dtype, const Shape& shape) { bytes.add(dtype, shape); };
  shapes(D, c.precision.fp8, count);
  shapes(F2, c.precision.e4m3_swiglu, count);
  bytes.add(DType::kI32, {num_pages}).add(DType::kI32, {1}).add(DType::kI64, {1});
  memory_ = ctx.memory.take(bytes.total());
  const auto make = [&](ops::PagedRows& rows) {
    return [&](DType dtype, const Shape& shape) {
      (shape.rank == 3 ? rows.slab : rows.scale) = memory_.tensor(dtype, shape);
    };
  };
  shapes(D, c.precision.fp8, make(x_));
  shapes(F2, c.precision.e4m3_swiglu, make(gate_up_));
  stack_.free = memory_.tensor(DType::kI32, {num_pages});
  stack_.count = memory_.tensor(DType::kI32, {1});
  if (counted) {
    stack_.missing = memory_.tensor(DType::kI64, {1});
    ops::fill(ctx, 0.0, stack_.missing);
  }
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
