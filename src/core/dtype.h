// Element types: sizes, names, and exact conversions on the host.
//
// f64 exists for CPU reference bodies only. bf16, f16 and e4m3 are storage types: arithmetic
// happens in f32. Rounding is to nearest even; e4m3 saturates at 448 (report, 3.3.2) and keeps NaN.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hadal {

enum class DType : uint8_t { kF64, kF32, kF16, kBF16, kE4M3, kI32, kI64 };

size_t dtype_size(DType dtype);            // bytes of one element
std::string_view dtype_name(DType dtype);  // "f32"
bool is_float(DType dtype);                // f64, f32, f16, bf16 or e4m3
// What sums, norms, scores and losses of activations in `act` are kept in: f64 for f64, else f32.
inline DType stat_dtype(DType act) { return act == DType::kF64 ? DType::kF64 : DType::kF32; }

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct e4m3 {
  uint8_t bits;
};

inline float to_f32(bf16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

inline bf16 to_bf16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

float to_f32(f16 v);
f16 to_f16(float v);
float to_f32(e4m3 v);
e4m3 to_e4m3(float v);

// One element at p of the given type as f64 (exact), and back (rounded once).
double load_element(const void* p, DType dtype, int64_t index);
void store_element(void* p, DType dtype, int64_t index, double value);

// Converts count elements; f64 -> f32 -> narrow types are rounded once from the source value.
void convert(const void* src, DType src_dtype, void* dst, DType dst_dtype, int64_t count);

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<f16> {
  static constexpr DType value = DType::kF16;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeOf<e4m3> {
  static constexpr DType value = DType::kE4M3;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kI64;
};

}  // namespace hadal
