// Checks of FP8 rows in pages, for training's ops and for rows on the wire.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/fp8.h"

namespace hadal::ops {

inline void check_page_rows(const PagedRows& rows, const char* op) {
  HADAL_CHECK(rows.slab.rank() == 3 && rows.slab.dim(1) == kPageRows, op, ": rows are ",
              rows.slab.str(), "; they must be [pages, ", kPageRows, ", width]");
}

inline void check_page_tiles(const PagedRows& q, const char* op) {
  check_page_rows(q, op);
  HADAL_CHECK(q.slab.dtype() == DType::kE4M3, op, ": rows are ", q.slab.str(), "; e4m3 is needed");
  HADAL_CHECK(q.scale.rank() == 2 && q.scale.dtype() == DType::kF32 &&
                  q.scale.dim(0) == num_tiles(q.slab.dim(2)) &&
                  q.scale.dim(1) == q.slab.dim(0) * kPageRows,
              op, ": rows ", q.slab.str(), " have scales ", q.scale.str(), "; f32 [",
              num_tiles(q.slab.dim(2)), ", ", q.slab.dim(0) * kPageRows, "] is needed");
}

}  // namespace hadal::ops
