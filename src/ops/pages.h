// Rows grouped by expert in pages of 128: where the experts' tokens live.
//
//   T tokens   K choices of a token   E experts   P pages in the list   W width of a row
//
// An expert's rows fill whole pages; the last one may be partly used. All counts are device data:
// the host knows only capacities. A row number is position * kPageRows + row, where position is the
// index in the layout's list of pages; a PagedRows may put position i anywhere in its slab
// (`page`).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/tensor.h"

namespace hadal::ops {

inline constexpr int64_t kPageRows = 128;

// Most pages that num_rows rows of num_experts experts can need.
constexpr int64_t max_pages(int64_t num_rows, int64_t num_experts) {
  const int64_t nonempty = num_rows < num_experts ? num_rows : num_experts;
  return (num_rows - nonempty) / kPageRows + nonempty;
}

struct ExpertLayout {
  Tensor counts;      // [E] i32    rows of each expert
  Tensor page_begin;  // [E+1] i32  expert e owns positions page_begin[e] .. page_begin[e+1]-1
  int64_t num_experts() const { return counts.dim(0); }
};

struct PagedRows {
  Tensor slab;  // [pages, kPageRows, W]
  Tensor page;  // [P] i32  page of the slab at each position; empty: position i is page i
  // Of e4m3 rows in tiles of 1 x 128 (fp8.h): f32 [ceil(W/128), pages*kPageRows], else empty.
  Tensor scale = {};
};

}  // namespace hadal::ops
