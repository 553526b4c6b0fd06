// What kernels ask of weights and rows: alignment, experts at even distances, lists of pages.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "ops/cuda/detail/matmul.cuh"
#include "ops/pages.h"

namespace hadal::ops::cuda {

inline bool is_aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0; }

// Elements from one matrix of the list to the next if all have one type and one row stride and lie
// at even distances; else -1.
template <class T, class Get>
int64_t distance_between(std::span<const T> list, const Get& get) {
  if (list.size() <= 1) return 0;
  const Tensor& first = get(list[0]);
  const auto at = [&](size_t i) { return static_cast<const char*>(get(list[i]).raw()); };
  const int64_t bytes = at(1) - at(0), size = element_bytes(first.dtype());
  for (size_t i = 1; i < list.size(); ++i) {
    const Tensor& t = get(list[i]);
    if (at(i) - at(i - 1) != bytes || t.dtype() != first.dtype() || t.stride(0) != first.stride(0))
      return -1;
  }
  return bytes > 0 && bytes % size == 0 ? bytes / size : -1;
}

// The list of pages as Hopper's kernels take it, null where position i is page i; they read it
// densely.
inline const int32_t* page_list(const PagedRows& rows) {
  return rows.page.empty() ? nullptr : rows.page.data<int32_t>();
}
inline bool has_dense_list(const PagedRows& rows) {
  return rows.page.empty() || rows.page.stride(0) == 1;
}

}  // namespace hadal::ops::cuda
