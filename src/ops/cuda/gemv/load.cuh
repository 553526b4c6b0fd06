// Weights of any type as f32, rows of experts' matrices, sums of a warp.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/gemv/moe.h"

namespace hadal::cuda {

// Elements of a 16-byte load as f32.
__device__ __forceinline__ void unpack_bf16(const int4& raw, float (&x)[8]) {
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&raw);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

template <GemvWeight kType>
struct GemvLoad;  // kElements of the weight from one load
template <>
struct GemvLoad<GemvWeight::kBF16> {
  static constexpr int kElements = 8, kBytes = 2;
  __device__ static void unpack(const int4& raw, float (&x)[8]) { unpack_bf16(raw, x); }
};
template <>
struct GemvLoad<GemvWeight::kF32> {
  static constexpr int kElements = 4, kBytes = 4;
  __device__ static void unpack(const int4& raw, float (&x)[4]) {
    const auto* f = reinterpret_cast<const float*>(&raw);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = f[i];
  }
};
template <>
struct GemvLoad<GemvWeight::kE4M3> {
  static constexpr int kElements = 16, kBytes = 1;
  __device__ static void unpack(const int4& raw, float (&x)[16]) {
    const auto* pairs = reinterpret_cast<const __nv_fp8x2_storage_t*>(&raw);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 pair = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pairs[i], __NV_E4M3)));
      x[2 * i] = pair.x;
      x[2 * i + 1] = pair.y;
    }
  }
};

// A row of an expert's matrix and its scales.
struct ExpertRow {
  const char* data;
  const float* scale;
};
template <int kBytes>
__device__ ExpertRow expert_row(const ExpertMatrices& w, int expert, int row) {
  return {
      static_cast<const char*>(w.data) + (expert * w.expert_stride + row * w.row_stride) * kBytes,
      w.scale + expert * w.scale_expert_stride + (w.scale_row + row) / 128 * w.scale_row_stride};
}

__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(0xffffffff, value, d);
  return value;
}

}  // namespace hadal::cuda
