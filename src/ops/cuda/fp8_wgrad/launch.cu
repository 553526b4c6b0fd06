// Launches FP8 weight gradients.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/check.h"
#include "ops/cuda/detail/programmatic_launch.h"
#include "ops/cuda/detail/shared_bytes.h"
#include "ops/cuda/detail/tensor_map.h"
#include "ops/cuda/fp8_wgrad/kernel.cuh"

namespace hadal::cuda {
namespace {

CUtensorMap map_of(const void* data, int width, int pages) {
  return make_batched_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                  .elem_bytes = 1,
                                  .data = data,
                                  .rows = width,
                                  .cols = Fp8WgradConfig::kDepth,
                                  .row_stride = Fp8WgradConfig::kDepth,
                                  .box_rows = 128,
                                  .box_cols = Fp8WgradConfig::kDepth,
                                  .batches = pages,
                                  .batch_stride = int64_t{width} * Fp8WgradConfig::kDepth});
}

CUtensorMap map_of_sums(const Fp8WgradArgs& args) {
  using C = Fp8WgradConfig;
  return make_batched_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                  .elem_bytes = 4,
                                  .data = args.c,
                                  .rows = args.n,
                                  .cols = args.k,
                                  .row_stride = args.c_row_stride,
                                  .box_rows = C::kBoxRows,
                                  .box_cols = C::kBoxCols,
                                  .batches = args.batches,
                                  .batch_stride = args.c_batch_stride});
}

template <bool kShort>
void launch_wgrad(const Fp8WgradArgs& args, cudaStream_t stream) {
  using C = Fp8WgradConfig;
  allow_shared_bytes<fp8_wgrad_kernel_sm90<kShort>, C::kSharedBytes>();
  constexpr int kClusterCols = C::kCols * C::kCluster;
  const int64_t tiles = static_cast<int64_t>(args.batches) * ((args.n + C::kRows - 1) / C::kRows) *
                        ((args.k + kClusterCols - 1) / kClusterCols);
  HADAL_CHECK(tiles < (int64_t{1} << 31), "fp8_wgrad: ", tiles, " tiles are more than 2^31");
  const int64_t clusters = std::min<int64_t>(tiles, args.num_sms / C::kCluster);
  const ProgrammaticLaunch launch(static_cast<unsigned>(clusters * C::kCluster), C::kThreads,
                                  C::kSharedBytes, stream, C::kCluster);
  HADAL_CHECK_CUDA(launch.start(fp8_wgrad_kernel_sm90<kShort>, args,
                                map_of(args.a, args.n, args.pages),
                                map_of(args.b, args.k, args.pages), map_of_sums(args)));
}

}  // namespace

void fp8_wgrad_sm90(const Fp8WgradArgs& args, cudaStream_t stream) {
  HADAL_CHECK(args.n % 4 == 0 && args.k % 4 == 0 && args.c_row_stride % 4 == 0 &&
                  args.c_batch_stride % 4 == 0,
              "fp8_wgrad needs N, K and strides that are multiples of 4; got N ", args.n, ", K ",
              args.k, ", strides ", args.c_row_stride, " and ", args.c_batch_stride);
  if (args.n == 0 || args.k == 0 || args.pages == 0 || args.batches == 0) return;
  if (args.short_sums)
    launch_wgrad<true>(args, stream);
  else
    launch_wgrad<false>(args, stream);
}

}  // namespace hadal::cuda
