// Element types: every code of the narrow types, rounding against a search, and conversions.
// SPDX-License-Identifier: Apache-2.0
#include "core/dtype.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/rng.h"

namespace hadal {
namespace {

constexpr DType kAll[] = {DType::kF64,  DType::kF32, DType::kF16, DType::kBF16,
                          DType::kE4M3, DType::kI32, DType::kI64};

// Codes of the non-negative finite values of a narrow type are 0, 1, ... in order of value.
struct Narrow {
  DType dtype;
  uint32_t last_finite, sign, nan;
  double overflow;  // from here on: infinity, or the largest value if there is no infinity
};
const Narrow kNarrow[] = {
    {DType::kF16, 0x7bff, 0x8000, 0x7e00, 65520.0},
    {DType::kBF16, 0x7f7f, 0x8000, 0x7fc0, 0x1.ffp127},
    {DType::kE4M3, 0x7e, 0x80, 0x7f, 448.0},
};

double value_of(const Narrow& type, uint32_t code) { return load_element(&code, type.dtype, 0); }
uint32_t code_of(const Narrow& type, double value) {
  uint32_t code = 0;
  store_element(&code, type.dtype, 0, value);
  return code;
}

// Nearest, ties to the even code, by searching.
uint32_t nearest_code(const Narrow& type, double magnitude) {
  uint32_t low = 0, high = type.last_finite;
  if (magnitude >= value_of(type, high)) return high;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (value_of(type, middle) <= magnitude ? low : high) = middle;
  }
  const double down = magnitude - value_of(type, low), up = value_of(type, high) - magnitude;
  if (down == up) return low % 2 == 0 ? low : high;
  return down < up ? low : high;
}

TEST(DType, SizesAndNames) {
  const size_t sizes[] = {8, 4, 2, 2, 1, 4, 8};
  const char* names[] = {"f64", "f32", "f16", "bf16", "e4m3", "i32", "i64"};
  for (size_t i = 0; i < std::size(kAll); ++i) {
    EXPECT_EQ(dtype_size(kAll[i]), sizes[i]);
    EXPECT_EQ(dtype_name(kAll[i]), names[i]);
    EXPECT_EQ(is_float(kAll[i]), i < 5);
  }
  EXPECT_EQ(stat_dtype(DType::kF64), DType::kF64);
  for (DType d : {DType::kF32, DType::kF16, DType::kBF16}) EXPECT_EQ(stat_dtype(d), DType::kF32);
}

TEST(DType, KnownCodes) {
  EXPECT_EQ(value_of(kNarrow[0], 0x3c00), 1.0);
  EXPECT_EQ(value_of(kNarrow[0], 0x0001), 0x1p-24);
  EXPECT_EQ(value_of(kNarrow[0], 0x7bff), 65504.0);
  EXPECT_EQ(value_of(kNarrow[1], 0x3f80), 1.0);
  EXPECT_EQ(value_of(kNarrow[1], 0xc000), -2.0);
  EXPECT_EQ(value_of(kNarrow[2], 0x38), 1.0);
  EXPECT_EQ(value_of(kNarrow[2], 0x01), 0x1p-9);
  EXPECT_EQ(value_of(kNarrow[2], 0x7e), 448.0);
}

TEST(DType, EveryCodeReadsBack) {
  for (const Narrow& type : kNarrow)
    for (uint32_t code = 0; code <= (type.sign | (type.sign - 1)); ++code) {
      const double value = value_of(type, code);
      if (std::isnan(value)) {
        EXPECT_TRUE(std::isnan(value_of(type, code_of(type, value))));
      } else {
        ASSERT_EQ(code_of(type, value), code) << dtype_name(type.dtype);
      }
    }
}

TEST(DType, ValuesGrowWithTheCode) {
  for (const Narrow& type : kNarrow)
    for (uint32_t code = 0; code < type.last_finite; ++code)
      ASSERT_LT(value_of(type, code), value_of(type, code + 1));
}

TEST(DType, RoundsToNearestEven) {
  for (const Narrow& type : kNarrow) {
    const Rng rng(1, stream_id(dtype_name(type.dtype)));
    const double smallest = value_of(type, 1), largest = value_of(type, type.last_finite);
    for (uint64_t i = 0; i < 20000; ++i) {
      // Between two neighbours: at a random place, at the middle, or next to the middle.
      const auto low = static_cast<uint32_t>(rng.u64(2 * i) % type.last_finite);
      const double a = value_of(type, low), b = value_of(type, low + 1);
      const double middle = a + (b - a) / 2;
      const double x = i % 4 == 0   ? a + (b - a) * rng.uniform(2 * i + 1)
                       : i % 4 == 1 ? middle
                       : i % 4 == 2 ? std::nextafter(middle, b)
                                    : std::nextafter(middle, a);
      ASSERT_EQ(code_of(type, x), nearest_code(type, x)) << dtype_name(type.dtype) << " " << x;
      ASSERT_EQ(code_of(type, -x), type.sign | nearest_code(type, x));
    }
    EXPECT_EQ(code_of(type, smallest / 2), 0u);  // a tie, to even
    EXPECT_EQ(code_of(type, smallest / 2 * 1.01), 1u);
    EXPECT_EQ(code_of(type, -smallest / 4), type.sign);
    EXPECT_EQ(code_of(type, largest), type.last_finite);
  }
}

TEST(DType, OverflowAndNan) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const Narrow& type : kNarrow) {
    const bool saturates = type.dtype == DType::kE4M3;
    for (const double x : {type.overflow, 1e300, inf}) {
      const uint32_t code = saturates ? type.last_finite : type.last_finite + 1;
      EXPECT_EQ(code_of(type, x), code) << dtype_name(type.dtype) << " " << x;
      EXPECT_EQ(code_of(type, -x), code | type.sign);
    }
    EXPECT_EQ(code_of(type, std::nextafter(type.overflow, 0.0)), type.last_finite);
    EXPECT_EQ(code_of(type, std::nan("")) & ~type.sign, type.nan);
    EXPECT_TRUE(std::isnan(value_of(type, type.nan)));
  }
  // A NaN whose payload has only low bits must not become an infinity.
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x7f800001u)).bits, 0x7fc0);
}

TEST(DType, ConvertEqualsElementByElement) {
  const Rng rng(2, 3);
  constexpr int64_t kCount = 37;  // odd, so that no vector width divides it
  for (DType from : kAll)
    for (DType to : kAll) {
      std::vector<double> source(kCount), got(kCount), want(kCount);
      for (int64_t i = 0; i < kCount; ++i)
        store_element(source.data(), from, i, 40.0 * rng.normal(static_cast<uint64_t>(i)));
      convert(source.data(), from, got.data(), to, kCount);
      for (int64_t i = 0; i < kCount; ++i)
        store_element(want.data(), to, i, load_element(source.data(), from, i));
      EXPECT_EQ(0, std::memcmp(got.data(), want.data(), kCount * dtype_size(to)))
          << dtype_name(from) << " to " << dtype_name(to);
      convert(source.data(), from, got.data(), to, 0);  // nothing to do
    }
}

TEST(DType, IntegersAreExact) {
  const int64_t large = (int64_t{1} << 62) + 1;
  int64_t copy = 0;
  convert(&large, DType::kI64, &copy, DType::kI64, 1);
  EXPECT_EQ(copy, large);
  int32_t least = std::numeric_limits<int32_t>::min();
  EXPECT_EQ(load_element(&least, DType::kI32, 0), -0x1p31);
}

}  // namespace
}  // namespace hadal
