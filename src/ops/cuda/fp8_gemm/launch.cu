// Launches the block-scaled FP8 matrix product.
// SPDX-License-Identifier: Apache-2.0
#include "core/check.h"
#include "ops/cuda/detail/tensor_map.h"
#include "ops/cuda/fp8_gemm/kernel.cuh"

namespace hadal::cuda {

void fp8_gemm_sm90(const Fp8GemmArgs& args, cudaStream_t stream) {
  using C = Fp8GemmConfig;
  HADAL_CHECK(args.n % 64 == 0 && args.k % C::kDepth == 0,
              "fp8_gemm needs N a multiple of 64 and K of ", C::kDepth, "; got N ", args.n,
              " and K ", args.k);
  HADAL_CHECK(args.scale_stride % 4 == 0, "fp8_gemm needs scale_stride a multiple of 4; got ",
              args.scale_stride);
  if (args.slab_rows == 0 || args.num_experts == 0) return;
  const CUtensorMap map_a = make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, args.a,
                                            args.slab_rows, args.k, args.k, C::kPage, C::kDepth);
  const CUtensorMap map_w = make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, args.w,
                                            static_cast<int64_t>(args.num_experts) * args.n, args.k,
                                            args.k, C::kCols, C::kDepth);
  static const bool ready = [] {
    HADAL_CHECK_CUDA(cudaFuncSetAttribute(
        fp8_gemm_kernel_sm90, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes));
    return true;
  }();
  static_cast<void>(ready);
  const int blocks = args.num_sms / C::kCluster * C::kCluster;
  fp8_gemm_kernel_sm90<<<static_cast<unsigned>(blocks), C::kThreads, C::kSharedBytes, stream>>>(
      args, map_a, map_w);
  HADAL_CHECK_CUDA(cudaGetLastError());
}

}  // namespace hadal::cuda
