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

// Row-major matrices [rows, cols], `batches` of them, read in boxes of box_rows x box_cols of one
// matrix whose rows are 128 bytes and swizzled by 128 bytes. Elements outside read as zero.
struct TensorMapArgs {
  CUtensorMapDataType type;
  int64_t elem_bytes;
  const void* data;
  int64_t rows, cols, row_stride;  // elements
  uint32_t box_rows, box_cols;
  int64_t batches = 1, batch_stride = 0;  // more than one: coordinates (column, row, batch)
};

inline CUtensorMap encode_tensor_map(const TensorMapArgs& args, cuuint32_t rank) {
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
  const cuuint64_t dims[3] = {static_cast<cuuint64_t>(args.cols),
                              static_cast<cuuint64_t>(args.rows),
                              static_cast<cuuint64_t>(args.batches)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(args.row_stride * args.elem_bytes),
                                 static_cast<cuuint64_t>(args.batch_stride * args.elem_bytes)};
  const cuuint32_t box[3] = {args.box_cols, args.box_rows, 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult status =
      encode(&map, args.type, rank, const_cast<void*>(args.data), dims, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  HADAL_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with ",
              static_cast<int>(status), " for ", args.batches, " matrices of ", args.rows, " x ",
              args.cols, ", strides ", args.batch_stride, " and ", args.row_stride,
              "; data must be aligned to 16 bytes and rows to 16 bytes");
  return map;
}

inline CUtensorMap make_tensor_map(CUtensorMapDataType type, int64_t elem_bytes, const void* data,
                                   int64_t rows, int64_t cols, int64_t row_stride,
                                   uint32_t box_rows, uint32_t box_cols) {
  return encode_tensor_map({type, elem_bytes, data, rows, cols, row_stride, box_rows, box_cols}, 2);
}

// The third coordinate is the matrix, even where there is one.
inline CUtensorMap make_batched_tensor_map(TensorMapArgs args) {
  if (args.batches == 1) args.batch_stride = args.rows * args.row_stride;
  return encode_tensor_map(args, 3);
}

}  // namespace hadal::cuda
