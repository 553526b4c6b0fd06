// Rows of experts in pages, as kernels see them.
//
//   E experts   P pages in the list
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/element.cuh"
#include "ops/pages.h"

namespace hadal::ops::cuda {

// Places in the list of pages: what the host knows of how many there can be.
inline int64_t num_places(const PagedRows& rows) {
  return rows.page.empty() ? rows.slab.dim(0) : rows.page.dim(0);
}

// NOTE: a page that a pool could not give is -1 (take_pages): such rows are left out, and the fault
// that take_pages raised is what the host reports.
struct PagedView {
  void* data = nullptr;
  DType dtype = DType::kBF16;
  int64_t page_stride = 0, row_stride = 0, num_pages = 0, num_places = 0;
  const int32_t* page = nullptr;  // null: position i is page i
  int64_t page_step = 0;

  PagedView() = default;  // no rows
  explicit PagedView(const PagedRows& rows)
      : data(rows.slab.raw()),
        dtype(rows.slab.dtype()),
        page_stride(rows.slab.stride(0)),
        row_stride(rows.slab.stride(1)),
        num_pages(rows.slab.dim(0)),
        num_places(cuda::num_places(rows)),
        page(rows.page.empty() ? nullptr : rows.page.data<int32_t>()),
        page_step(rows.page.empty() ? 0 : rows.page.stride(0)) {}

  // A matrix: its rows, one after the other, as pages in their own order.
  explicit PagedView(const Tensor& rows)
      : data(rows.raw()),
        dtype(rows.dtype()),
        page_stride(kPageRows * rows.stride(0)),
        row_stride(rows.stride(0)),
        num_pages((rows.dim(0) + kPageRows - 1) / kPageRows),
        num_places(num_pages) {}

  // The page at a position, or -1.
  __device__ int64_t page_at(int64_t position) const {
    if (position < 0 || position >= num_places) return -1;
    const int64_t at = page == nullptr ? position : page[position * page_step];
    return at >= 0 && at < num_pages ? at : -1;
  }
  // Offset of the first row of a position in elements, or -1.
  __device__ int64_t page_offset(int64_t position) const {
    const int64_t at = page_at(position);
    return at < 0 ? -1 : at * page_stride;
  }
  // Offset of row number `row`, or -1.
  __device__ int64_t row_offset(int64_t row) const {
    if (row < 0) return -1;
    const int64_t at = page_offset(row / kPageRows);
    return at < 0 ? -1 : at + row % kPageRows * row_stride;
  }
  // Its column in the scales of tiles, or -1.
  __device__ int64_t column_of(int64_t row) const {
    const int64_t at = row < 0 ? -1 : page_at(row / kPageRows);
    return at < 0 ? -1 : at * kPageRows + row % kPageRows;
  }
};

struct LayoutView {
  const int32_t *counts, *page_begin;
  int64_t num_experts;

  explicit LayoutView(const ExpertLayout& layout)
      : counts(layout.counts.data<int32_t>()),
        page_begin(layout.page_begin.data<int32_t>()),
        num_experts(layout.num_experts()) {}

  __device__ int64_t num_positions() const { return page_begin[num_experts]; }
  // The expert that owns a position in use.
  __device__ int64_t expert_of(int64_t position) const {
    int64_t low = 0, high = num_experts;  // page_begin[low] <= position < page_begin[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (page_begin[middle] <= position ? low : high) = middle;
    }
    return low;
  }
  // Rows in use at a position of `expert`.
  __device__ int64_t rows_at(int64_t expert, int64_t position) const {
    const int64_t rows = counts[expert] - (position - page_begin[expert]) * kPageRows;
    return rows < kPageRows ? rows : kPageRows;
  }
};

}  // namespace hadal::ops::cuda
