// Rows of FP8 on the wire: over one hop or two, the rows of a rank that quantises its own tokens.
// SPDX-License-Identifier: Apache-2.0
#include "ops/fp8_wire.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/unit/pages.h"

namespace hadal::test {
namespace {

using ops::kPageRows;
using ops::num_tiles;

ops::PagedRows poisoned_rows(Machine& m, int64_t D) {
  ops::PagedRows rows{m.tensor(DType::kE4M3, {2, kPageRows, D}), Tensor()};
  rows.scale = m.tensor(DType::kF32, {num_tiles(D), 2 * kPageRows});
  std::memset(rows.slab.raw(), 0xff, rows.slab.num_bytes());
  std::memset(rows.scale.raw(), 0xff, rows.scale.num_bytes());
  return rows;
}

Tensor poisoned_wire(Machine& m, int64_t N, int64_t D) {
  Tensor wire = m.tensor(DType::kE4M3, {N, ops::wire_bytes(D)});
  std::memset(wire.raw(), 0xff, wire.num_bytes());
  return wire;
}

void expect_same_bytes(const Tensor& got, const Tensor& want) {
  ASSERT_EQ(got.num_bytes(), want.num_bytes());
  EXPECT_EQ(std::memcmp(got.raw(), want.raw(), got.num_bytes()), 0);
}

TEST(Fp8Wire, RowsAreThoseOfOneRank) {
  Machine m(2);
  for (const int64_t D : {16, 130, 200, 512}) {
    EXPECT_EQ(ops::wire_bytes(D) % 16, 0);
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      const Tensor x = put_strided(m, random_in("x", {3, D}, dtype, 0, 3.0), dtype);
      // Token 0 to copies 1 and 3, token 1 to copy 0, token 2 to copies 2 and 4.
      const Tensor copy = m.put(std::vector<int32_t>{1, 3, 0, -1, 2, 4}, {3, 2});
      Tensor first = poisoned_wire(m, 5, D), second = poisoned_wire(m, 5, D);
      ops::pack_wire_rows(m.ctx, x, copy, first);
      // On to copies in another order.
      ops::copy_wire_rows(m.ctx, first, m.put(std::vector<int32_t>{3, 4, 0, 1, 2}, {5, 1}), second);
      const ops::PagedRows got = poisoned_rows(m, D), want = poisoned_rows(m, D);
      const Tensor places =  // of tokens 2, 0, 2, 1, 0
          m.put(std::vector<int32_t>{0, -1, 129, 5, 7, -1, 130, 6, -1, 1}, {5, 2});
      ops::place_wire_rows(m.ctx, second, places, got);
      const Tensor direct =
          m.put(std::vector<int32_t>{129, 5, 1, -1, 130, 6, -1, -1, 0, -1, 7, -1}, {3, 4});
      ops::scatter_quantised_rows(m.ctx, x, direct, want);
      expect_same_bytes(got.slab, want.slab);
      expect_same_bytes(got.scale, want.scale);
      const auto* bytes = static_cast<const uint8_t*>(second.raw());
      for (int64_t r = 0; r < 5; ++r)
        for (int64_t b = D + num_tiles(D); b < second.dim(1); ++b)
          ASSERT_EQ(bytes[r * second.dim(1) + b], 0);
    }
  }
}

TEST(Fp8Wire, EveryScaleHasAByte) {
  for (const float amax : {0.0f, 1e-30f, 1e-4f, 1.0f, 448.0f, 65504.0f, 3e38f}) {
    const float scale = ops::tile_scale(amax, ops::ScaleFormat::kPowerOfTwo);
    EXPECT_EQ(ops::from_wire_scale(ops::to_wire_scale(scale)), scale) << amax;
  }
}

TEST(Fp8Wire, WrongCallsAreErrors) {
  Machine m(1);
  const Tensor copy = m.put(std::vector<int32_t>{0}, {1, 1});
  const Tensor x = m.tensor(DType::kBF16, {1, 64});
  store_element(x.raw(), DType::kBF16, 3, std::numeric_limits<double>::infinity());
  EXPECT_ERROR(ops::pack_wire_rows(m.ctx, x, copy, poisoned_wire(m, 1, 64)),
               "an element to quantise is inf; FP8 holds finite values only");
  EXPECT_ERROR(ops::pack_wire_rows(m.ctx, x, copy, poisoned_wire(m, 1, 128)),
               "pack_wire_rows: rows on the wire are e4m3 [1, 144]; e4m3 [N, 80] is needed");
  EXPECT_ERROR(ops::copy_wire_rows(m.ctx, poisoned_wire(m, 1, 64),
                                   m.put(std::vector<int32_t>{1}, {1, 1}), poisoned_wire(m, 1, 64)),
               "a copy is number 1 of 1");
}

}  // namespace
}  // namespace hadal::test
