// Launches the block-scaled FP8 matrix product.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/check.h"
#include "ops/cuda/detail/programmatic_launch.h"
#include "ops/cuda/detail/shared_bytes.h"
#include "ops/cuda/detail/tensor_map.h"
#include "ops/cuda/fp8_gemm/kernel.cuh"
#include "ops/cuda/fp8_gemm/thin.cuh"

namespace hadal::cuda {

namespace {

// Clusters that the device holds at once. With four blocks it is fewer than SMs / 4: some groups of
// SMs have a number that 4 does not divide.
template <int kCols, int kBlocks>
int resident_clusters() {
  using C = Fp8GemmThin<kCols, kBlocks>;
  static const int resident = [] {
    const auto kernel = fp8_gemm_thin_kernel_sm90<kCols, kBlocks>;
    HADAL_CHECK_CUDA(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes));
    const ProgrammaticLaunch launch(C::kCluster, C::kThreads, C::kSharedBytes, nullptr,
                                    C::kCluster);
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
      make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, args.a, args.slab_rows, args.k,
                      args.a_row_stride, C::kBoxRows, Fp8GemmConfig::kDepth);
  const CUtensorMap map_w =
      make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, args.w, args.n, args.k, args.w_row_stride,
                      kCols, Fp8GemmConfig::kDepth);
  const ProgrammaticLaunch launch(static_cast<unsigned>(std::min(groups, room) * C::kCluster),
                                  C::kThreads, C::kSharedBytes, stream, C::kCluster);
  HADAL_CHECK_CUDA(launch.start(fp8_gemm_thin_kernel_sm90<kCols, kBlocks>, args, map_a, map_w));
  return true;
}

template <bool kShort, bool kOneLeft>
void launch_general(const Fp8GemmArgs& args, const CUtensorMap& map_a, const CUtensorMap& map_w,
                    cudaStream_t stream) {
  using C = Fp8GemmConfig;
  allow_shared_bytes<fp8_gemm_kernel_sm90<kShort, kOneLeft>, C::kSharedBytes>();
  const int blocks = args.num_sms / C::kCluster * C::kCluster;
  const ProgrammaticLaunch launch(static_cast<unsigned>(blocks), C::kThreads, C::kSharedBytes,
                                  stream, C::kCluster);
  HADAL_CHECK_CUDA(launch.start(fp8_gemm_kernel_sm90<kShort, kOneLeft>, args, map_a, map_w));
}

}  // namespace

void fp8_gemm_sm90(const Fp8GemmArgs& args, cudaStream_t stream) {
  using C = Fp8GemmConfig;
  HADAL_CHECK(args.n % 2 == 0 && args.c_row_stride % 2 == 0 && args.c_page_stride % 2 == 0 &&
                  args.scale_stride % 4 == 0 && args.a_row_stride % 16 == 0 &&
                  args.w_row_stride % 16 == 0 && args.w_batch_stride % 16 == 0,
              "fp8_gemm: rows must be aligned to 16 bytes and N even; got N ", args.n, ", strides ",
              args.a_row_stride, ", ", args.w_row_stride, ", ", args.w_batch_stride, " and ",
              args.c_row_stride, ", scales ", args.scale_stride, " apart");
  if (args.slab_rows == 0 || args.num_experts == 0) return;
  const bool thin = args.num_experts == 1 && args.counts != nullptr && args.slab_rows == C::kPage &&
                    args.num_sms >= 4 && args.n % 64 == 0 && args.k % C::kDepth == 0 &&
                    !args.c_is_f32 && !args.accumulate && args.c_row_stride % 8 == 0;
  if (thin) {
    // As narrow as gives all SMs work at once; past that, small clusters share out best.
    launch_thin<32, 4>(args, stream, false) || launch_thin<64, 4>(args, stream, false) ||
        launch_thin<64, 2>(args, stream, true);
    return;
  }
  const CUtensorMap map_a =
      make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, args.a, args.slab_rows, args.k,
                      args.a_row_stride, C::kPage, C::kDepth);
  const CUtensorMap map_w = make_batched_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                                     .elem_bytes = 1,
                                                     .data = args.w,
                                                     .rows = args.n,
                                                     .cols = args.k,
                                                     .row_stride = args.w_row_stride,
                                                     .box_rows = C::kCols,
                                                     .box_cols = C::kDepth,
                                                     .batches = args.num_experts,
                                                     .batch_stride = args.w_batch_stride});
  const bool one_left = (args.n + C::kCols - 1) / C::kCols % C::kCluster != 0;
  const auto launch = args.short_sums
                          ? (one_left ? launch_general<true, true> : launch_general<true, false>)
                          : (one_left ? launch_general<false, true> : launch_general<false, false>);
  launch(args, map_a, map_w, stream);
}

}  // namespace hadal::cuda
