// Choice of the softmax kernels.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/softmax.h"

#include "core/check.h"
#include "ops/cpu/isa.h"

namespace hadal::ops::cpu {
namespace {

const SoftmaxKernels& active() {
  switch (active_isa()) {
    case Isa::kPortable:
      return softmax_portable;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return softmax_avx2;
    case Isa::kAvx512:
      return softmax_avx512;
#else
    default:
      break;
#endif
  }
  HADAL_UNREACHABLE("instruction set without kernels");
}

}  // namespace

template <>
const SoftmaxKernel<float>& softmax_kernel<float>() {
  static const SoftmaxKernel<float>& kernel = active().f32;
  return kernel;
}
template <>
const SoftmaxKernel<double>& softmax_kernel<double>() {
  static const SoftmaxKernel<double>& kernel = active().f64;
  return kernel;
}

}  // namespace hadal::ops::cpu
