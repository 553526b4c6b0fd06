// Checks of rows on the wire, then dispatch.
//
//   T tokens   N copies of them   K copies of a token   W width   B bytes of a row on the wire
// SPDX-License-Identifier: Apache-2.0
#include "ops/fp8_wire.h"

#include "ops/checks.h"
#include "ops/fp8_checks.h"

namespace hadal::ops {
namespace {

// Whole rows of a width, one behind the other.
void check_wire(const Tensor& wire, int64_t bytes, const char* op) {
  HADAL_CHECK(wire.rank() == 2 && wire.dim(1) == bytes && wire.dtype() == DType::kE4M3, op,
              ": rows on the wire are ", wire.str(), "; e4m3 [N, ", bytes, "] is needed");
  check_dense(wire, "wire");
}

void check_places(const Tensor& places, int64_t T, const char* op) {
  HADAL_CHECK(places.rank() == 2 && places.dim(0) == T && places.dtype() == DType::kI32, op,
              ": places of ", T, " tokens are ", places.str(), "; i32 [", T, ", K] is needed");
  check_dense(places, "places");
}

}  // namespace

void pack_wire_rows(Context& ctx, In x, In copy, Out wire) {
  const auto [T, W] = HADAL_SHAPE(x, 2);
  HADAL_CHECK(x.dtype() == DType::kF32 || x.dtype() == DType::kBF16,
              "pack_wire_rows quantises f32 and bf16, not ", x.str());
  check_wire(wire, wire_bytes(W), "pack_wire_rows");
  check_places(copy, T, "pack_wire_rows");
  HADAL_DISPATCH(ctx, pack_wire_rows, x, copy, wire);
}

void copy_wire_rows(Context& ctx, In from, In copy, Out wire) {
  const auto [T, B] = HADAL_SHAPE(from, 2);
  check_wire(from, B, "copy_wire_rows");
  check_wire(wire, B, "copy_wire_rows");
  check_places(copy, T, "copy_wire_rows");
  HADAL_DISPATCH(ctx, copy_wire_rows, from, copy, wire);
}

void place_wire_rows(Context& ctx, In from, In row_of_choice, const PagedRows& rows) {
  const auto [T, B] = HADAL_SHAPE(from, 2);
  check_page_tiles(rows, "place_wire_rows");
  check_wire(from, wire_bytes(rows.slab.dim(2)), "place_wire_rows");
  check_places(row_of_choice, T, "place_wire_rows");
  HADAL_DISPATCH(ctx, place_wire_rows, from, row_of_choice, rows);
}

}  // namespace hadal::ops
