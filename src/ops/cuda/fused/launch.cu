// Launches the gate and the fused quantisers.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/check.h"
#include "ops/cuda/detail/tensor_map.h"
#include "ops/cuda/fused/kernel.cuh"

namespace hadal::cuda {

void gate_v3(const GateArgs& args, cudaStream_t stream) {
  if (args.num_tokens == 0) return;
  const int blocks = std::min((args.num_tokens + 7) / 8, args.num_sms * 8);
  gate_v3_kernel<<<static_cast<unsigned>(blocks), 256, 0, stream>>>(args);
  HADAL_CHECK_CUDA(cudaGetLastError());
}

void rmsnorm_quantise(const RmsnormQuantiseArgs& args, cudaStream_t stream) {
  HADAL_CHECK(args.width % 128 == 0 && args.width <= 8192,
              "rmsnorm_quantise needs a width of at most 8192 that 128 divides; got ", args.width);
  if (args.num_rows == 0) return;
  const auto launch = [&](auto kernel, int blocks_per_sm) {
    const int blocks = std::min(args.num_rows, args.num_sms * blocks_per_sm);
    kernel<<<static_cast<unsigned>(blocks), 128, 0, stream>>>(args);
  };
  if (args.width <= 1024) {
    launch(rmsnorm_quantise_kernel<1>, 8);
  } else if (args.width <= 2048) {
    launch(rmsnorm_quantise_kernel<2>, 8);
  } else if (args.width <= 7168) {
    launch(rmsnorm_quantise_kernel<7>, 5);
  } else {
    launch(rmsnorm_quantise_kernel<8>, 5);
  }
  HADAL_CHECK_CUDA(cudaGetLastError());
}

void swiglu_quantise(const SwigluQuantiseArgs& args, cudaStream_t stream) {
  HADAL_CHECK(args.width % 128 == 0 && args.width <= 2048,
              "swiglu_quantise needs a width of at most 2048 that 128 divides; got ", args.width);
  if (args.max_pages == 0) return;
  swiglu_quantise_kernel<<<dim3(static_cast<unsigned>(args.max_pages), 16), 256, 0, stream>>>(args);
  HADAL_CHECK_CUDA(cudaGetLastError());
}

}  // namespace hadal::cuda
