// The cached rows of one sequence on the CPU, page by page: stored, and read as matrices.
//
//   R latent width   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/attention.h"
#include "ops/cpu/matmul.h"

namespace hadal::ops::cpu {

class LatentRows {
 public:
  // REQUIRES: the cache outlives this.
  LatentRows(const LatentPages& cache, int64_t seq);

  // A row [R+Dr] of `dtype`, at a position.
  void store(int64_t position, const void* row, DType dtype) const;
  // Columns [begin, begin + count) of n rows from `position`, which lie in one page: rows of keys.
  // FP8 rows are widened to bf16, exactly, in a buffer of the calling thread, good until its next
  // call.
  MatrixView keys(int64_t position, int64_t n, int64_t begin, int64_t count) const;
  // The same, columns as rows.
  MatrixView values(int64_t position, int64_t n, int64_t begin, int64_t count) const;
  // Where a row lies that will be read soon, from a column on; null for FP8 rows.
  const std::byte* ahead(int64_t position, int64_t begin) const;

 private:
  char* row(int64_t position) const;

  const LatentPages& cache_;
  const int32_t* table_;
};

}  // namespace hadal::ops::cpu
