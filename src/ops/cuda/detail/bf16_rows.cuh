// Rows of bf16 read 16 bytes at a time, by a group of threads: a warp, or a thread block.
//
// The order of a row's sum is fixed by its group, and that by its width: a thread's eight elements
// in turn, every eight times the group's threads, then a warp's threads in a tree, then the warps
// in order.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/element.cuh"
#include "ops/pages.h"

namespace hadal::ops::cuda {

inline constexpr int kRowThreads = 128;

// Eight bf16 elements as they lie in memory.
struct PackedEight {
  uint32_t words[4];
  __device__ static PackedEight load(const void* p) {
    const uint4 raw = *static_cast<const uint4*>(p);
    return {{raw.x, raw.y, raw.z, raw.w}};
  }
  __device__ void store(void* p) const {
    *static_cast<uint4*>(p) = uint4{words[0], words[1], words[2], words[3]};
  }
  __device__ float element(int i) const {
    return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
  }
};

// The same as f32.
struct Eight {
  float of[8];
  __device__ static Eight widen(const PackedEight& packed) {
    Eight e;
#pragma unroll
    for (int i = 0; i < 8; ++i) e.of[i] = packed.element(i);
    return e;
  }
  __device__ PackedEight narrow() const {
    PackedEight packed;
#pragma unroll
    for (int i = 0; i < 4; ++i) packed.words[i] = narrow_bf16_pair(of[2 * i], of[2 * i + 1]);
    return packed;
  }
  __device__ static Eight load(const void* p) { return widen(PackedEight::load(p)); }
  __device__ void store(void* p) const { narrow().store(p); }
};

// Eight elements of a vector of bf16 or f32.
__device__ inline Eight load_eight(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::kBF16) return Eight::load(static_cast<const bf16*>(p) + i);
  const auto* f = reinterpret_cast<const float4*>(static_cast<const float*>(p) + i);
  const float4 a = f[0], b = f[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

// A row of up to `narrow` elements takes a warp, a longer one a whole block: calls fn(group,
// blocks) with the threads of a row as a constant, and the blocks for `rows` rows. A block is done
// sooner with one row, but its last warps have nothing of the rest of a row and wait for the
// others.
inline constexpr int64_t kNarrow = 1024, kNarrowOfMany = 4096;
template <class Fn>
void with_group(int64_t rows, int64_t width, int64_t narrow, const Fn& fn) {
  constexpr int64_t kWarps = kRowThreads / 32;
  if (width <= narrow)
    fn(std::integral_constant<int, 32>{}, static_cast<unsigned>((rows + kWarps - 1) / kWarps));
  else
    fn(std::integral_constant<int, kRowThreads>{}, static_cast<unsigned>(rows));
}
// The row of this thread's group of kGroup threads, of which a block holds several.
template <int kGroup>
__device__ int64_t row_of_group() {
  return static_cast<int64_t>(blockIdx.x) * (kRowThreads / kGroup) + threadIdx.x / kGroup;
}

// Sum over the threads of a warp.
__device__ inline float sum_of_warp(float value) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(0xffffffffu, value, d);
  return value;
}
// Sum over the kRowThreads threads of the block. `shared` may be used again after the next barrier.
__device__ inline float sum_of_row(float value, float (&shared)[kRowThreads / 32]) {
  value = sum_of_warp(value);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kRowThreads / 32; ++i) total += shared[i];
  return total;
}

// Whether a matrix can be read this way.
inline bool has_bf16_rows(const Tensor& t) {
  return t.dtype() == DType::kBF16 && t.rank() == 2 && t.dim(1) % 8 == 0 && t.stride(0) % 8 == 0 &&
         t.stride(1) == 1 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}
inline bool has_bf16_pages(const PagedRows& rows) {
  const Tensor& t = rows.slab;
  return t.dtype() == DType::kBF16 && t.dim(2) % 16 == 0 && t.stride(0) % 8 == 0 &&
         t.stride(1) % 8 == 0 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}
inline bool is_gain_of_bf16_rows(const Tensor& t) {
  return (t.dtype() == DType::kBF16 || t.dtype() == DType::kF32) && t.stride(0) == 1 &&
         reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}

}  // namespace hadal::ops::cuda
