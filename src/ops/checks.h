// Checks that several ops share; each throws Error with the name and the type of the tensor.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/pages.h"

namespace hadal::ops {

inline void check_dtype(const Tensor& t, DType want, const char* name) {
  HADAL_CHECK(t.dtype() == want, name, " must be ", dtype_name(want), ", is ", t.str());
}

inline void check_float(const Tensor& t, const char* name) {
  HADAL_CHECK(is_float(t.dtype()), name, " must have a float type, is ", t.str());
}

inline void check_same_shape(const Tensor& a, const char* a_name, const Tensor& b,
                             const char* b_name) {
  HADAL_CHECK(a.shape() == b.shape(), a_name, " is ", a.str(), " but ", b_name, " is ", b.str(),
              "; they must have the same shape");
}

inline void check_dense(const Tensor& t, const char* name) {
  HADAL_CHECK(t.is_dense(), name, " must be dense, is a strided view of ", t.str());
}

// f64 data needs f64 statistics, all other data f32.
inline void check_stat(const Tensor& t, const char* name, const Tensor& x, const char* x_name) {
  HADAL_CHECK(t.dtype() == stat_dtype(x.dtype()), name, " must be ",
              dtype_name(stat_dtype(x.dtype())), " because ", x_name, " is ", dtype_name(x.dtype()),
              ", is ", t.str());
}

// What tokens are drawn from: logits [T, V], positions and tokens [T].
inline void check_draws(const Tensor& logits, const Tensor& positions, const Tensor& tokens) {
  const auto [T, V] = HADAL_SHAPE(logits, 2);
  HADAL_CHECK_SHAPE(positions, T);
  HADAL_CHECK_SHAPE(tokens, T);
  HADAL_CHECK(T == 0 || V > 0, "logits is ", logits.str(), "; there is no token to choose");
  check_float(logits, "logits");
  check_dtype(positions, DType::kI32, "positions");
  check_dtype(tokens, DType::kI32, "tokens");
}

// Checks that `rows` is a slab of pages of rows of width W with a place for every position of the
// list.
inline void check_paged(const PagedRows& rows, int64_t W, const char* name) {
  const auto [num_pages, page_rows, width] = HADAL_SHAPE(rows.slab, 3);
  HADAL_CHECK(page_rows == kPageRows && width == W, name, ".slab must have shape [pages, ",
              kPageRows, ", ", W, "], is ", rows.slab.str());
  check_float(rows.slab, name);
  if (!rows.page.empty()) check_dtype(rows.page, DType::kI32, name);
}

inline void check_layout(const ExpertLayout& layout) {
  const auto [E] = HADAL_SHAPE(layout.counts, 1);
  HADAL_CHECK_SHAPE(layout.page_begin, E + 1);
  check_dtype(layout.counts, DType::kI32, "layout.counts");
  check_dtype(layout.page_begin, DType::kI32, "layout.page_begin");
}

}  // namespace hadal::ops
