// Rows of experts on scattered pages, for the tests of grouped ops.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/pages.h"
#include "tests/unit/ops.h"

namespace hadal::test {

// Experts with the given numbers of rows; the list of pages runs backwards through a slab that has
// one page more than is needed.
struct ExpertRows {
  std::vector<int32_t> counts, begin = {0}, page;
  ops::ExpertLayout layout;
  Tensor page_list;

  ExpertRows(Machine& machine, std::vector<int32_t> rows) : counts(std::move(rows)) {
    for (int32_t count : counts)
      begin.push_back(begin.back() +
                      static_cast<int32_t>((count + ops::kPageRows - 1) / ops::kPageRows));
    for (int32_t i = begin.back(); i > 0; --i) page.push_back(i);
    layout = {machine.put(counts, {num_experts()}), machine.put(begin, {num_experts() + 1})};
    page_list = machine.put(page, {num_positions()});
  }
  int64_t num_experts() const { return static_cast<int64_t>(counts.size()); }
  int64_t num_positions() const { return begin.back(); }

  // Random rows of width W, those that are not in use included.
  ops::PagedRows rows(Machine& machine, const std::string& name, DType dtype, int64_t W) const {
    return {machine.put(random_in(name, {num_positions() + 1, ops::kPageRows, W}, dtype), dtype),
            page_list};
  }
  // Calls fn(row number) for every row in use.
  template <class Fn>
  void for_each_row(const Fn& fn) const {
    for (size_t e = 0; e < counts.size(); ++e)
      for (int64_t i = 0; i < counts[e]; ++i) fn(begin[e] * ops::kPageRows + i);
  }
  bool in_use(int64_t row) const {
    bool found = false;
    for_each_row([&](int64_t r) { found = found || r == row; });
    return found;
  }
  // The slab's row at a row number.
  Tensor at(const ops::PagedRows& rows, int64_t row) const {
    return rows.slab.row(page[static_cast<size_t>(row / ops::kPageRows)]).row(row % ops::kPageRows);
  }
};

}  // namespace hadal::test
