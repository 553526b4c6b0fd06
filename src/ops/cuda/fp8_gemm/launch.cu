// Launches the block-scaled FP8 matrix product.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/check.h"
#include "ops/cuda/detail/tensor_map.h"
#include "ops/cuda/fp8_gemm/kernel.cuh"
#include "ops/cuda/fp8_gemm/thin.cuh"

namespace hadal::cuda {

namespace {

// A launch in clusters of a kernel that waits for the one before by itself.
struct Launch {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  Launch(int blocks, int cluster, int threads, int shared_bytes, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = static_cast<unsigned>(cluster);
    attributes[0].val.clusterDim.y = 1;
    attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
};

// Clusters that the device holds at once. With four blocks it is fewer than SMs / 4: some groups of
// SMs have a number that 4 does not divide.
template <int kCols, int kBlocks>
int resident_clusters() {
  using C = Fp8GemmThin<kCols, kBlocks>;
  static const int resident = [] {
    const auto kernel = fp8_gemm_thin_kernel_sm90<kCols, kBlocks>;
    HADAL_CHECK_CUDA(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes));
    const Launch launch(C::kCluster, C::kCluster, C::kThreads, C::kSharedBytes, nullptr);
    int clusters = 0;
    HADAL_CHECK_CUDA(cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config));
    return clusters;
  }();
  return resident;
}

// Launches the kernel if its column tiles fit the SMs at once, or if told to anyway.
template <int kCols, int kBlocks>
bool launch_thin(const Fp8GemmArgs& args, cudaStream_t stream, bool anyway) {
  using C = Fp8GemmThin<kCols, kBlocks>;
  const int groups = (args.n + kCols * C::kCluster - 1) / (kCols * C::kCluster);
  const int room = std::min(args.num_sms / C::kCluster, resident_clusters<kCols, kBlocks>());
  if (groups > room && !anyway) return false;
  const CUtensorMap map_a =
      make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, args.a, args.slab_rows, args.k, args.k,
                      C::kBoxRows, Fp8GemmConfig::kDepth);
  const CUtensorMap map_w = make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, args.w, args.n,
                                            args.k, args.k, kCols, Fp8GemmConfig::kDepth);
  const Launch launch(std::min(groups, room) * C::kCluster, C::kCluster, C::kThreads,
                      C::kSharedBytes, stream);
  HADAL_CHECK_CUDA(cudaLaunchKernelEx(&launch.config, fp8_gemm_thin_kernel_sm90<kCols, kBlocks>,
                                      args, map_a, map_w));
  return true;
}

}  // namespace

void fp8_gemm_sm90(const Fp8GemmArgs& args, cudaStream_t stream) {
  using C = Fp8GemmConfig;
  HADAL_CHECK(args.n % 64 == 0 && args.k % C::kDepth == 0,
              "fp8_gemm needs N a multiple of 64 and K of ", C::kDepth, "; got N ", args.n,
              " and K ", args.k);
  HADAL_CHECK(args.scale_stride % 4 == 0, "fp8_gemm needs scale_stride a multiple of 4; got ",
              args.scale_stride);
  if (args.slab_rows == 0 || args.num_experts == 0) return;
  if (args.num_experts == 1 && args.slab_rows == C::kPage && args.num_sms >= 4) {
    // As narrow as gives all SMs work at once; past that, small clusters share out best.
    launch_thin<32, 4>(args, stream, false) || launch_thin<64, 4>(args, stream, false) ||
        launch_thin<64, 2>(args, stream, true);
    return;
  }
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
  const Launch launch(blocks, C::kCluster, C::kThreads, C::kSharedBytes, stream);
  HADAL_CHECK_CUDA(cudaLaunchKernelEx(&launch.config, fp8_gemm_kernel_sm90, args, map_a, map_w));
}

}  // namespace hadal::cuda
