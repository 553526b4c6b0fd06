// Products with few rows: a warp for two rows of the weight (nt), a thread for eight columns (nn).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/gemv/load.cuh"

namespace hadal::cuda {

// kCount elements of a row of a from k.
template <int kCount>
__device__ __forceinline__ void load_row(const __nv_bfloat16* a, float (&x)[kCount]) {
  if constexpr (kCount == 4) {
    const int2 raw = __ldg(reinterpret_cast<const int2*>(a));
    const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&raw);
    const float2 lo = __bfloat1622float2(pairs[0]), hi = __bfloat1622float2(pairs[1]);
    x[0] = lo.x, x[1] = lo.y, x[2] = hi.x, x[3] = hi.y;
  } else {
#pragma unroll
    for (int part = 0; part < kCount / 8; ++part) {
      float eight[8];
      unpack_bf16(__ldg(reinterpret_cast<const int4*>(a) + part), eight);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[part * 8 + i] = eight[i];
    }
  }
}

__device__ __forceinline__ void gemv_put(const GemvArgs& args, int64_t at, float value) {
  if (args.c_is_f32) {
    float* const to = static_cast<float*>(args.c) + at;
    *to = args.accumulate ? *to + value : value;
  } else {
    auto* const to = static_cast<__nv_bfloat16*>(args.c) + at;
    *to = __float2bfloat16(args.accumulate ? __bfloat162float(*to) + value : value);
  }
}

// What a block works on: some rows of a batch.
struct GemvBatch {
  const __nv_bfloat16* a;
  const void* w;
  const float* scale;
  int64_t c_at;
  int scale_row, rows;
};

template <int kBytes>
__device__ GemvBatch gemv_batch(const GemvArgs& args, int batch) {
  GemvBatch b{};
  int weight = batch, a_batch = batch, c_batch = batch;
  b.rows = args.m;
  if (args.counts != nullptr) {
    if (batch >= __ldg(args.page_begin + args.num_experts)) return b;
    int low = 0, high = args.num_experts;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (__ldg(args.page_begin + middle) <= batch ? low : high) = middle;
    }
    weight = low;
    b.rows = min(128, __ldg(args.counts + low) - (batch - __ldg(args.page_begin + low)) * 128);
    if (args.a_page != nullptr) a_batch = __ldg(args.a_page + batch);
    if (args.c_page != nullptr) c_batch = __ldg(args.c_page + batch);
    if (a_batch < 0 || a_batch >= args.a_pages || c_batch < 0 || c_batch >= args.c_pages)
      b.rows = 0;
  }
  b.a = static_cast<const __nv_bfloat16*>(args.a) + a_batch * args.a_batch_stride;
  b.w = static_cast<const char*>(args.w) + weight * args.w_batch_stride * kBytes;
  b.scale = args.scale + weight * args.scale_batch_stride;
  b.scale_row = args.scale_row + weight * args.scale_batch_rows;
  b.c_at = c_batch * args.c_batch_stride;
  return b;
}

// kRows rows of a with the kOutputs rows of w of this warp from n.
template <GemvWeight kType, int kRows>
__device__ void gemv_rows(const GemvArgs& args, const GemvBatch& b, int row, int n) {
  using Load = GemvLoad<kType>;
  constexpr int kOutputs = GemvConfig::kOutputs, kElements = Load::kElements;
  constexpr int kUnroll = GemvConfig::kUnroll, kStep = 32 * kElements;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int rows = min(kRows, b.rows - row), outputs = min(kOutputs, args.n - n);
  const char* w[kOutputs];
  const float* scale[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const int at = n + min(o, outputs - 1);
    w[o] = static_cast<const char*>(b.w) + at * args.w_row_stride * Load::kBytes;
    scale[o] = b.scale + (b.scale_row + at) / 128 * args.scale_row_stride;
  }
  const __nv_bfloat16* a = b.a + row * args.a_row_stride;
  float sum[kRows][kOutputs] = {};
  for (int first = lane * kElements; first < args.k; first += kUnroll * kStep) {
    int4 raw[kUnroll][kOutputs];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const int k = first + u * kStep;
        if (k < args.k) raw[u][o] = __ldg(reinterpret_cast<const int4*>(w[o] + k * Load::kBytes));
      }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int k = first + u * kStep;
      if (k >= args.k) break;
      float y[kOutputs][kElements];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        Load::unpack(raw[u][o], y[o]);
        if constexpr (kType == GemvWeight::kE4M3) {
          const float s = __ldg(scale[o] + k / 128);
#pragma unroll
          for (int i = 0; i < kElements; ++i) y[o][i] *= s;
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float x[kElements];
        load_row(a + min(r, rows - 1) * args.a_row_stride + k, x);
#pragma unroll
        for (int o = 0; o < kOutputs; ++o)
#pragma unroll
          for (int i = 0; i < kElements; ++i) sum[r][o] = fmaf(x[i], y[o][i], sum[r][o]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
      for (int d = 16; d > 0; d /= 2) sum[r][o] += __shfl_xor_sync(0xffffffff, sum[r][o], d);
      if (lane == 0 && r < rows && o < outputs)
        gemv_put(args, b.c_at + (row + r) * args.c_row_stride + n + o, sum[r][o]);
    }
}

template <GemvWeight kType>
__global__ void __launch_bounds__(GemvConfig::kWarps * 32)
    gemv_nt_kernel(const __grid_constant__ GemvArgs args) {
  let_next_kernel_start();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int n = (static_cast<int>(blockIdx.x) * GemvConfig::kWarps + warp) * GemvConfig::kOutputs;
  if (args.counts == nullptr && n < args.n) {
    const int outputs = min(GemvConfig::kOutputs, args.n - n);
    for (int o = 0; o < outputs; ++o)
      prefetch_l2(static_cast<const char*>(args.w) +
                      (blockIdx.y * args.w_batch_stride + (n + o) * args.w_row_stride) *
                          GemvLoad<kType>::kBytes,
                  args.k * GemvLoad<kType>::kBytes);
  }
  wait_for_previous_kernel();
  if (n >= args.n) return;
  const GemvBatch b = gemv_batch<GemvLoad<kType>::kBytes>(args, static_cast<int>(blockIdx.y));
  for (int row = 0; row < b.rows; row += GemvConfig::kMaxRows) {
    const int rows = b.rows - row;
    if (rows == 1)
      gemv_rows<kType, 1>(args, b, row, n);
    else if (rows == 2)
      gemv_rows<kType, 2>(args, b, row, n);
    else if (rows <= 4)
      gemv_rows<kType, 4>(args, b, row, n);
    else
      gemv_rows<kType, 8>(args, b, row, n);
  }
}

// Eight columns a thread; the warps take K in turns and add up in order.
inline constexpr int kGemvColumns = 8 * 32;

__global__ void __launch_bounds__(GemvConfig::kColumnWarps * 32)
    gemv_nn_kernel(const __grid_constant__ GemvArgs args) {
  constexpr int kWarps = GemvConfig::kColumnWarps;
  __shared__ float shared[kWarps][kGemvColumns];
  let_next_kernel_start();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first_column = static_cast<int>(blockIdx.x) * kGemvColumns, n = first_column + lane * 8;
  for (int k = warp; k < args.k; k += kWarps)
    prefetch_l2(static_cast<const __nv_bfloat16*>(args.w) + blockIdx.y * args.w_batch_stride +
                    k * args.w_row_stride + first_column,
                min(kGemvColumns, args.n - first_column) * 2);
  wait_for_previous_kernel();
  const GemvBatch b = gemv_batch<2>(args, static_cast<int>(blockIdx.y));
  const auto* w = static_cast<const __nv_bfloat16*>(b.w);
  for (int row = static_cast<int>(blockIdx.z); row < b.rows; row += static_cast<int>(gridDim.z)) {
    float sum[8] = {};
    if (n < args.n) {
#pragma unroll 8
      for (int k = warp; k < args.k; k += kWarps) {
        const float x = __bfloat162float(b.a[row * args.a_row_stride + k]);
        float y[8];
        unpack_bf16(__ldg(reinterpret_cast<const int4*>(w + k * args.w_row_stride + n)), y);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] = fmaf(x, y[i], sum[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) shared[warp][lane * 8 + i] = sum[i];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kGemvColumns; i += kWarps * 32) {
      const int column = static_cast<int>(blockIdx.x) * kGemvColumns + i;
      float total = 0.0f;
#pragma unroll
      for (int part = 0; part < kWarps; ++part) total += shared[part][i];
      if (column < args.n) gemv_put(args, b.c_at + row * args.c_row_stride + column, total);
    }
    __syncthreads();
  }
}

}  // namespace hadal::cuda
