// Element type tables and host conversions.
// SPDX-License-Identifier: Apache-2.0
#include "core/dtype.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/check.h"

namespace hadal {

size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kE4M3:
      return 1;
  }
  HADAL_UNREACHABLE("unknown dtype");
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return "f64";
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kE4M3:
      return "e4m3";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
  }
  HADAL_UNREACHABLE("unknown dtype");
}

bool is_float(DType dtype) { return dtype != DType::kI32 && dtype != DType::kI64; }

float to_f32(f16 v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t exponent = (v.bits >> 10) & 0x1fu;
  const uint32_t mantissa = v.bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  return sign != 0 ? -magnitude : magnitude;
}

f16 to_f16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (std::isnan(v)) return {static_cast<uint16_t>(sign | 0x7e00u)};
  const float magnitude = std::fabs(v);
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x1p-14f) {  // subnormal: one unit is 2^-24
    return {
        static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)))};
  }
  uint32_t rounded = bits & 0x7fffffffu;
  rounded += 0xfffu + ((rounded >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)))};
}

namespace {

// e4m3fn: bias 7, no infinities, 0x7f and 0xff are NaN, largest finite 448.
std::array<float, 256> make_e4m3_table() {
  std::array<float, 256> table{};
  for (int i = 0; i < 256; ++i) {
    const int exponent = (i >> 3) & 15, mantissa = i & 7;
    float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if ((i & 0x7f) == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
    table[static_cast<size_t>(i)] = (i & 0x80) != 0 ? -value : value;
  }
  return table;
}

const std::array<float, 256>& e4m3_table() {
  static const std::array<float, 256> table = make_e4m3_table();
  return table;
}

// A float that rounds to any narrower type as v itself does: where v is between two floats, the one
// with an odd last bit ("round to odd"). Rounding to nearest twice would break some ties wrongly.
float to_f32_odd(double v) {
  const float nearest = static_cast<float>(v);
  if (static_cast<double>(nearest) == v || std::isnan(v)) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(v)) --bits;
  return std::bit_cast<float>(bits | 1u);
}

}  // namespace

float to_f32(e4m3 v) { return e4m3_table()[v.bits]; }

e4m3 to_e4m3(float v) {
  const uint8_t sign = std::signbit(v) ? 0x80 : 0;
  if (std::isnan(v)) return {static_cast<uint8_t>(sign | 0x7f)};
  const float magnitude = std::fabs(v);
  if (magnitude >= 448.0f) return {static_cast<uint8_t>(sign | 0x7e)};
  if (magnitude < 0x1p-6f) {  // subnormal: one unit is 2^-9
    return {static_cast<uint8_t>(sign | static_cast<uint8_t>(std::nearbyint(magnitude * 512.0f)))};
  }
  uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  bits += 0x7ffffu + ((bits >> 20) & 1u);
  return {static_cast<uint8_t>(sign | ((bits >> 20) - (120u << 3)))};
}

double load_element(const void* p, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF64:
      return static_cast<const double*>(p)[i];
    case DType::kF32:
      return static_cast<const float*>(p)[i];
    case DType::kF16:
      return to_f32(static_cast<const f16*>(p)[i]);
    case DType::kBF16:
      return to_f32(static_cast<const bf16*>(p)[i]);
    case DType::kE4M3:
      return to_f32(static_cast<const e4m3*>(p)[i]);
    case DType::kI32:
      return static_cast<const int32_t*>(p)[i];
    case DType::kI64:
      return static_cast<double>(static_cast<const int64_t*>(p)[i]);
  }
  HADAL_UNREACHABLE("unknown dtype");
}

void store_element(void* p, DType dtype, int64_t i, double value) {
  switch (dtype) {
    case DType::kF64:
      static_cast<double*>(p)[i] = value;
      return;
    case DType::kF32:
      static_cast<float*>(p)[i] = static_cast<float>(value);
      return;
    case DType::kF16:
      static_cast<f16*>(p)[i] = to_f16(to_f32_odd(value));
      return;
    case DType::kBF16:
      static_cast<bf16*>(p)[i] = to_bf16(to_f32_odd(value));
      return;
    case DType::kE4M3:
      static_cast<e4m3*>(p)[i] = to_e4m3(to_f32_odd(value));
      return;
    case DType::kI32:
      static_cast<int32_t*>(p)[i] = static_cast<int32_t>(value);
      return;
    case DType::kI64:
      static_cast<int64_t*>(p)[i] = static_cast<int64_t>(value);
      return;
  }
  HADAL_UNREACHABLE("unknown dtype");
}

void convert(const void* src, DType src_dtype, void* dst, DType dst_dtype, int64_t count) {
  if (src_dtype == dst_dtype) {
    std::memcpy(dst, src, static_cast<size_t>(count) * dtype_size(src_dtype));
    return;
  }
  if (src_dtype == DType::kF32 && dst_dtype == DType::kBF16) {
    const auto* from = static_cast<const float*>(src);
    auto* to = static_cast<bf16*>(dst);
    for (int64_t i = 0; i < count; ++i) to[i] = to_bf16(from[i]);
    return;
  }
  if (src_dtype == DType::kBF16 && dst_dtype == DType::kF32) {
    const auto* from = static_cast<const bf16*>(src);
    auto* to = static_cast<float*>(dst);
    for (int64_t i = 0; i < count; ++i) to[i] = to_f32(from[i]);
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    store_element(dst, dst_dtype, i, load_element(src, src_dtype, i));
}

}  // namespace hadal
