// Elements of any type as the arithmetic type R (float or double), and back, on the device.
//
// The type is known at run time: a kernel exists once for each R, not for each mix of types, and
// every branch on a type is the same in a whole warp. Rounding is that of core/dtype.cc, bit for
// bit.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "core/tensor.h"

namespace hadal::ops::cuda {

__device__ inline float widen(bf16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }

__device__ inline bf16 narrow_bf16(float v) {
  const uint32_t bits = __float_as_uint(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Two elements, the first in the low half; a NaN becomes 0x7fff.
__device__ inline uint32_t narrow_bf16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ inline float widen(f16 v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ inline f16 narrow_f16(float v) { return {__half_as_ushort(__float2half_rn(v))}; }

__device__ inline float widen(e4m3 v) {
  const uint32_t magnitude = v.bits & 0x7fu, sign = (v.bits & 0x80u) << 24;
  if (magnitude == 0x7fu) return __uint_as_float(sign | 0x7fc00000u);
  if (magnitude < 8u) {  // subnormal: one unit is 2^-9
    const float value = static_cast<float>(magnitude) * 0x1p-9f;
    return sign != 0 ? -value : value;
  }
  return __uint_as_float(sign | ((magnitude + (120u << 3)) << 20));
}

// Two elements, the first in the low byte.
__device__ inline float2 widen_e4m3_pair(uint32_t pair) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  return __half22float2(*reinterpret_cast<const __half2*>(&halves));
}

__device__ inline e4m3 narrow_e4m3(float v) {
  const uint32_t bits = __float_as_uint(v), sign = (bits >> 24) & 0x80u;
  const float magnitude = fabsf(v);
  if (magnitude != magnitude) return {static_cast<uint8_t>(sign | 0x7fu)};
  if (magnitude >= 448.0f) return {static_cast<uint8_t>(sign | 0x7eu)};
  if (magnitude < 0x1p-6f)
    return {static_cast<uint8_t>(sign | static_cast<uint32_t>(rintf(magnitude * 512.0f)))};
  uint32_t rounded = __float_as_uint(magnitude);
  rounded += 0x7ffffu + ((rounded >> 20) & 1u);
  return {static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)))};
}

// A float that rounds to any narrower type as v itself does ("round to odd").
__device__ inline float round_to_odd(double v) {
  const float toward_zero = __double2float_rz(v);
  if (static_cast<double>(toward_zero) == v || v != v) return static_cast<float>(v);
  return __uint_as_float(__float_as_uint(toward_zero) | 1u);
}
__device__ inline float round_to_odd(float v) { return v; }

template <class R>
__device__ inline R load(const void* p, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF64:
      return static_cast<R>(static_cast<const double*>(p)[i]);
    case DType::kF32:
      return static_cast<const float*>(p)[i];
    case DType::kF16:
      return widen(static_cast<const f16*>(p)[i]);
    case DType::kBF16:
      return widen(static_cast<const bf16*>(p)[i]);
    case DType::kE4M3:
      return widen(static_cast<const e4m3*>(p)[i]);
    case DType::kI32:
      return static_cast<R>(static_cast<const int32_t*>(p)[i]);
    case DType::kI64:
      return static_cast<R>(static_cast<const int64_t*>(p)[i]);
  }
  return R(0);
}

template <class R>
__device__ inline void store(void* p, DType dtype, int64_t i, R value) {
  switch (dtype) {
    case DType::kF64:
      static_cast<double*>(p)[i] = value;
      return;
    case DType::kF32:
      static_cast<float*>(p)[i] = static_cast<float>(value);
      return;
    case DType::kF16:
      static_cast<f16*>(p)[i] = narrow_f16(round_to_odd(value));
      return;
    case DType::kBF16:
      static_cast<bf16*>(p)[i] = narrow_bf16(round_to_odd(value));
      return;
    case DType::kE4M3:
      static_cast<e4m3*>(p)[i] = narrow_e4m3(round_to_odd(value));
      return;
    case DType::kI32:
      static_cast<int32_t*>(p)[i] = static_cast<int32_t>(value);
      return;
    case DType::kI64:
      static_cast<int64_t*>(p)[i] = static_cast<int64_t>(value);
      return;
  }
}

// The memory of a tensor as kernels see it, with the strides of its leading dimensions in elements:
// element (i, j) of a matrix is at i * stride0 + j, (i, h, j) of rank 3 at i * stride0 + h *
// stride1
// + j.
struct View {
  void* data;
  DType dtype;
  int64_t stride0, stride1;

  explicit View(const Tensor& t)
      : data(t.raw()),
        dtype(t.dtype()),
        stride0(t.rank() > 0 ? t.stride(0) : 0),
        stride1(t.rank() > 1 ? t.stride(1) : 0) {}

  template <class R>
  __device__ R get(int64_t offset) const {
    return load<R>(data, dtype, offset);
  }
  template <class R>
  __device__ void put(int64_t offset, R value) const {
    store(data, dtype, offset, value);
  }
};

// A typed array with a stride, for vectors whose type is fixed.
template <class T>
struct Array {
  T* data;
  int64_t stride;
  explicit Array(const Tensor& t)
      : data(t.data<std::remove_const_t<T>>()), stride(t.rank() > 0 ? t.stride(0) : 0) {}
  __device__ T& operator[](int64_t i) const { return data[i * stride]; }
  __device__ T* row(int64_t i) const { return data + i * stride; }
};

}  // namespace hadal::ops::cuda
