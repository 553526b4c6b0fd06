// e4m3 elements as operands of the matrix unit in a wider type.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp16.h>

#include "ops/cuda/detail/ptx.cuh"

namespace hadal::cuda {

// Four e4m3 elements as two pairs of f16, exactly.
__device__ __forceinline__ void e4m3_to_f16(uint32_t four, uint32_t& low, uint32_t& high) {
  asm("{\n.reg .b16 lo, hi;\n"
      "mov.b32 {lo, hi}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, lo;\n"
      "cvt.rn.f16x2.e4m3x2 %1, hi;\n}"
      : "=r"(low), "=r"(high)
      : "r"(four));
}

// Sixteen e4m3 elements times their scale as bf16, rounded once: exact where the scale is a power
// of two.
__device__ __forceinline__ void widen_e4m3(const uint4& raw, float scale, uint4 (&out)[2]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  uint32_t pairs[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t halves[2];
    e4m3_to_f16(words[i], halves[0], halves[1]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&halves[j]));
      pairs[2 * i + j] = pack_bf16(two.x * scale, two.y * scale);
    }
  }
  out[0] = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
  out[1] = uint4{pairs[4], pairs[5], pairs[6], pairs[7]};
}

}  // namespace hadal::cuda
