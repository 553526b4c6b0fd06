// The paged latent cache as kernels see it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/attention.h"
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/matmul.cuh"

namespace hadal::ops::cuda {

inline constexpr const char* kNoPage = "position {0} of sequence {1} has no page in the cache";

// The cached rows of all sequences, page by page.
struct Cache {
  View pages;
  Array<const int32_t> table;
  int64_t num_pages, places;  // pages of the cache, places of a row of the table

  explicit Cache(const LatentPages& cache)
      : pages(cache.pages),
        table(cache.table),
        num_pages(cache.pages.dim(0)),
        places(cache.table.dim(1)) {}

  // Offset of the row of a position in elements, or -1.
  __device__ int64_t offset(int64_t seq, int64_t position) const {
    const int64_t place = position / kCachePageTokens;
    const int64_t page = position >= 0 && place < places ? table.row(seq)[place] : -1;
    if (page < 0 || page >= num_pages) return -1;
    return page * pages.stride0 + position % kCachePageTokens * pages.stride1;
  }
  __device__ const void* at(int64_t offset) const {
    return advance(pages.data, pages.dtype, offset);
  }
};

__device__ inline int64_t sequence_of(Array<const int32_t> offsets, int64_t S, int64_t token) {
  int64_t low = 0, high = S;  // offsets[low] <= token < offsets[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] <= token ? low : high) = middle;
  }
  return low;
}

}  // namespace hadal::ops::cuda
