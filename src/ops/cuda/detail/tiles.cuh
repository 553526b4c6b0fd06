// Tiles of 1 x 128: 16 threads hold a tile of a row, eight elements each.
//
// The bits are the CPU's (ops/cpu/fp8.cc).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/bf16_rows.cuh"
#include "ops/cuda/detail/rows.cuh"
#include "ops/fp8.h"

namespace hadal::ops::cuda {

inline constexpr int kTileThreads = kTileSize / 8;  // of a tile of a row
inline constexpr const char* kNotFinite =
    "an element to quantise is {0}; FP8 holds finite values only";

// Eight elements of a row at a time. kFast: bf16, a whole number of eights, each at a multiple of
// 16 bytes.
template <bool kFast>
struct Source {
  const void* data;
  DType dtype;

  __device__ auto load(int64_t at, int64_t count) const {
    if constexpr (kFast) {
      if (count > 0) return PackedEight::load(static_cast<const bf16*>(data) + at);
      return PackedEight{};
    } else {
      Eight e{};
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < count) e.of[i] = cuda::load<float>(data, dtype, at + i);
      return e;
    }
  }
};
template <bool kFast>
using Loaded = std::conditional_t<kFast, PackedEight, Eight>;
template <bool kFast>
Source<kFast> source_of(const Tensor& x) {
  return {x.raw(), x.dtype()};
}

// Eight e4m3 elements of a row at a time. kFast: a whole number of eights, each at a multiple of 8
// bytes.
template <bool kFast>
struct Elements {
  uint8_t* data;

  __device__ void store(int64_t at, const uint32_t (&two)[2], int64_t count) const {
    if constexpr (kFast) {
      if (count > 0) *reinterpret_cast<uint2*>(data + at) = uint2{two[0], two[1]};
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < count) data[at + i] = static_cast<uint8_t>(two[i / 4] >> (i % 4 * 8));
    }
  }
  __device__ Eight load(int64_t at, int64_t count) const {
    uint32_t two[2] = {0, 0};
    if constexpr (kFast) {
      if (count > 0) {
        const uint2 raw = *reinterpret_cast<const uint2*>(data + at);
        two[0] = raw.x, two[1] = raw.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < count) two[i / 4] |= uint32_t{data[at + i]} << (i % 4 * 8);
    }
    Eight e;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = widen_e4m3_pair(two[i / 2] >> (i % 2 * 16));
      e.of[2 * i] = pair.x;
      e.of[2 * i + 1] = pair.y;
    }
    return e;
  }
};

template <bool kFast>
Elements<kFast> elements_of(const Tensor& q) {
  return {reinterpret_cast<uint8_t*>(q.data<e4m3>())};
}

// Whether rows of e4m3, of a matrix or of pages, can be read this way; so can none.
inline bool has_eights(const Tensor& t) {
  return t.empty() || (reinterpret_cast<uintptr_t>(t.raw()) % 8 == 0 && t.stride(0) % 8 == 0 &&
                       t.stride(t.rank() - 2) % 8 == 0);
}

// Two elements as e4m3, rounded to nearest even, saturating.
__device__ inline uint32_t e4m3_pair(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ inline uint32_t e4m3_four(float a, float b, float c, float d) {
  return e4m3_pair(a, b) | e4m3_pair(c, d) << 16;
}

// Magnitudes of f32 are ordered as their bits are, and those of bf16 as the upper halves of these;
// what is not finite is larger than all others.
__device__ inline uint32_t magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }
__device__ inline bool is_finite(uint32_t magnitude) { return magnitude < 0x7f800000u; }

__device__ inline uint32_t largest_of(const Eight& e) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = max(largest, magnitude(e.of[i]));
  return largest;
}
__device__ inline uint32_t largest_of(const PackedEight& e) {
  uint32_t pair = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) pair = __vmaxu2(pair, e.words[i] & 0x7fff7fffu);
  return max(pair << 16, pair & 0xffff0000u);
}

// v / scale for all elements of a tile, rounded as a division is, without one for each. From within
// 1.5 units in the last place a step with the remainder gives one within 1, and a second one the
// rounded quotient, because `reciprocal` is rounded to nearest (Markstein).
struct Divisor {
  float scale, reciprocal;

  __device__ explicit Divisor(float s) : scale(s), reciprocal(1.0f / s) {}
  __device__ Divisor(float s, float r) : scale(s), reciprocal(r) {}
  __device__ float divide(float v) const { return step(divide_bf16(v), v); }
  // For v of 8 bits one step is enough: with each of the 2^23 x 2^7 pairs of mantissas.
  __device__ float divide_bf16(float v) const { return step(v * reciprocal, v); }

 private:
  // NOTE: the remainder's sign is such that -0 / scale stays -0.
  __device__ float step(float q, float v) const {
    return __fmaf_rn(-__fmaf_rn(scale, q, -v), reciprocal, q);
  }
};
__device__ inline void quantise_eight(const Eight& e, const Divisor& by, uint32_t (&two)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    two[i] = e4m3_four(by.divide(e.of[4 * i]), by.divide(e.of[4 * i + 1]),
                       by.divide(e.of[4 * i + 2]), by.divide(e.of[4 * i + 3]));
}
__device__ inline void quantise_eight(const PackedEight& packed, const Divisor& by,
                                      uint32_t (&two)[2]) {
  const Eight e = Eight::widen(packed);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    two[i] = e4m3_four(by.divide_bf16(e.of[4 * i]), by.divide_bf16(e.of[4 * i + 1]),
                       by.divide_bf16(e.of[4 * i + 2]), by.divide_bf16(e.of[4 * i + 3]));
}

// Over the threads of a tile.
__device__ inline float largest_of_tile(uint32_t largest, const FaultSite& fault) {
#pragma unroll
  for (int d = kTileThreads / 2; d > 0; d /= 2)
    largest = max(largest, __shfl_xor_sync(kWholeWarp, largest, d));
  const float amax = __uint_as_float(largest);
  if (!is_finite(largest)) fault.raise(static_cast<double>(amax));
  return amax;
}

}  // namespace hadal::ops::cuda
