// ParamPart: the rows and columns of a parameter that one of several ranks loads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/param_layout.h"

namespace hadal::io {

// Columns [col, col + cols) of rows [row, row + rows). A vector is one row.
struct ParamPart {
  int64_t row = 0, rows = 1, col = 0, cols = 1;
  int64_t all_cols = 1;  // of the whole parameter
  bool has_all_columns() const { return cols == all_cols; }
  Shape shape(int rank) const { return rank == 1 ? Shape{cols} : Shape{rows, cols}; }
};
ParamPart part_of(const ParamInfo& info, const RankShare& share);

}  // namespace hadal::io
