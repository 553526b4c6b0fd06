// Checks that several ops share; each throws Error with the name and the type of the tensor.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/tensor.h"

namespace hadal::ops {

inline void check_dtype(const Tensor& t, DType want, const char* name) {
  HADAL_CHECK(t.dtype() == want, name, " must be ", dtype_name(want), ", is ", t.str());
}

inline void check_float(const Tensor& t, const char* name) {
  HADAL_CHECK(is_float(t.dtype()), name, " must have a float type, is ", t.str());
}

inline void check_same_shape(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  HADAL_CHECK(a.shape() == b.shape(), a_name, " is ", a.str(), " but ", b_name, " is ", b.str(),
              "; they must have the same shape");
}

inline void check_dense(const Tensor& t, const char* name) {
  HADAL_CHECK(t.is_dense(), name, " must be dense, is a strided view of ", t.str());
}

// f64 data needs f64 statistics, all other data f32.
inline void check_stat(const Tensor& t, const char* name, const Tensor& x, const char* x_name) {
  HADAL_CHECK(t.dtype() == stat_dtype(x.dtype()), name, " must be ", dtype_name(stat_dtype(x.dtype())),
              " because ", x_name, " is ", dtype_name(x.dtype()), ", is ", t.str());
}

}  // namespace hadal::ops
