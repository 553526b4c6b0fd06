// Tensor maps: how the bulk copy engine sees a matrix in device memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/check.h"

namespace hadal::cuda {

inline void check_cuda(cudaError_t status, const char* call) {
  HADAL_CHECK(status == cudaSuccess, call, " failed: ", cudaGetErrorString(status));
}
#define HADAL_CHECK_CUDA(call) ::hadal::cuda::check_cuda((call), #call)

// A row-major matrix [rows, cols], read in boxes of box_rows x box_cols whose rows are 128 bytes
// and swizzled by 128 bytes. Elements outside the matrix read as zero.
inline CUtensorMap make_tensor_map(CUtensorMapDataType type, int64_t elem_bytes, const void* data,
                                   int64_t rows, int64_t cols, int64_t row_stride,
                                   uint32_t box_rows, uint32_t box_cols) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* fn = nullptr;
    cudaDriverEntryPointQueryResult found;
    HADAL_CHECK_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000,
                                                      cudaEnableDefault, &found));
    HADAL_CHECK(found == cudaDriverEntryPointSuccess,
                "the driver lacks cuTensorMapEncodeTiled; update it to CUDA 12 or newer");
    return reinterpret_cast<Encode>(fn);
  }();
  CUtensorMap map;
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_stride * elem_bytes)};
  const cuuint32_t box[2] = {box_cols, box_rows};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encode(&map, type, 2, const_cast<void*>(data), dims, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  HADAL_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with ",
              static_cast<int>(status), " for a matrix of ", rows, " x ", cols, ", row stride ",
              row_stride, "; data must be aligned to 16 bytes and rows to 16 bytes");
  return map;
}

}  // namespace hadal::cuda
