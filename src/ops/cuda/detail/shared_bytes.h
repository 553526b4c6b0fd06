// Dynamic shared memory beyond what a kernel may have unasked.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/tensor_map.h"

namespace hadal::cuda {

// Lets launches of a kernel have kBytes of dynamic shared memory; asks the driver once.
template <auto kKernel, int kBytes>
void allow_shared_bytes() {
  static const bool allowed = [] {
    HADAL_CHECK_CUDA(
        cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  static_cast<void>(allowed);
}

}  // namespace hadal::cuda
