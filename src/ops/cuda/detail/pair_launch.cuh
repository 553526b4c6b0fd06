// Launches of blocks that stay on their SMs while others work.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include "ops/cuda/detail/launch.cuh"

namespace hadal::ops::cuda {

// In clusters of two: one block alone keeps a pair of SMs from kernels that work in such clusters,
// and a cluster that finds no pair waits for all others to end. Errors are left to check_launch().
template <class... Params>
void launch_in_pairs(const Context& ctx, void (*kernel)(Params...), int blocks, int threads,
                     size_t shared_bytes, const std::type_identity_t<Params>&... args) {
  cudaLaunchAttribute pairs;
  pairs.id = cudaLaunchAttributeClusterDimension;
  pairs.val.clusterDim = {.x = 2, .y = 1, .z = 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream_of(ctx);
  config.attrs = &pairs;
  config.numAttrs = blocks % 2 == 0 && has_sm90(ctx) ? 1 : 0;
  static_cast<void>(cudaLaunchKernelEx(&config, kernel, args...));
}

}  // namespace hadal::ops::cuda
