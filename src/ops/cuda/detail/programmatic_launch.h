// Launches that may overlap the end of the kernel before ("programmatic dependent launch").
//
// A chain of such kernels has the next one's blocks in place, their weights on the way to the L2,
// while the one before still runs. REQUIRES: every thread block of the kernel calls
// wait_for_previous_kernel() (ptx.cuh) before it reads what earlier kernels write, before it
// writes, and before it ends.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hadal::cuda {

// REQUIRES: lives until the launch, since `config` points to `attributes`.
struct ProgrammaticLaunch {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};

  // `cluster` blocks of the grid's x side by side.
  ProgrammaticLaunch(dim3 grid, int threads, int64_t shared_bytes, cudaStream_t stream,
                     int cluster = 1) {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
    attributes[1].val.clusterDim.y = 1;
    attributes[1].val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = cluster > 1 ? 2 : 1;
  }
  ProgrammaticLaunch(const ProgrammaticLaunch&) = delete;
  ProgrammaticLaunch& operator=(const ProgrammaticLaunch&) = delete;

  template <class... Params>
  [[nodiscard]] cudaError_t start(void (*kernel)(Params...), const Params&... args) const {
    return cudaLaunchKernelEx(&config, kernel, args...);
  }
};

}  // namespace hadal::cuda
