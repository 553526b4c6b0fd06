// Walking over the pages of a layout on the CPU.
//
//   E experts   P pages in the list
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cpu/rows.h"
#include "ops/pages.h"

namespace hadal::ops::cpu {

// The page of the slab that holds position `position` of the list.
inline int64_t page_of(const PagedRows& rows, int64_t position) {
  const int64_t num_pages = rows.slab.dim(0);
  HADAL_CHECK(rows.page.empty() || position < rows.page.dim(0), "the layout uses position ",
              position, " but the page list has ", rows.page.empty() ? 0 : rows.page.dim(0));
  const int64_t page =
      rows.page.empty() ? position : rows.page.data<int32_t>()[position * rows.page.stride(0)];
  HADAL_CHECK(page >= 0 && page < num_pages, "position ", position, " of the layout is page ", page,
              ", but the slab has ", num_pages, " pages; give the expert rows more pages");
  return page;
}

// Offset in elements of row number `row` (position * kPageRows + row in the page).
inline int64_t row_offset(const PagedRows& rows, int64_t row) {
  HADAL_CHECK(row >= 0, "row number ", row,
              " is negative: row_of_choice does not come from expert_layout");
  return page_of(rows, row / kPageRows) * rows.slab.stride(0) +
         row % kPageRows * rows.slab.stride(1);
}

// Pages in use.
inline int64_t num_positions(const ExpertLayout& layout) {
  return layout.page_begin.data<int32_t>()[layout.num_experts()];
}

// One value for every row number that the layout uses.
inline void check_row_values(const ExpertLayout& layout, const Tensor& values, const char* name) {
  const int64_t needed = num_positions(layout) * kPageRows;
  HADAL_CHECK(values.dim(0) >= needed, name, " has ", values.dim(0),
              " values, but the layout uses ", needed, " rows");
}

// Calls fn(row number of the first row, rows in use, thread) once for every page in use.
template <class Fn>
void for_pages(Context& ctx, const ExpertLayout& layout, const Fn& fn) {
  const int64_t E = layout.num_experts();
  const int32_t* begin = layout.page_begin.data<int32_t>();
  const int32_t* counts = layout.counts.data<int32_t>();
  ctx.threads.parallel_for(num_positions(layout), [&](int64_t position, int thread) {
    const int64_t expert = std::upper_bound(begin, begin + E, position) - begin - 1;
    const int64_t rows_before = (position - begin[expert]) * kPageRows;
    fn(position * kPageRows, std::min<int64_t>(counts[expert] - rows_before, kPageRows), thread);
  });
}

}  // namespace hadal::ops::cpu
