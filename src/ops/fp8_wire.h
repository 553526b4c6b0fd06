// Rows of FP8 as they travel between ranks (report, 3.3.3): half of the bytes of bf16.
//
//   T tokens   N copies of them   K copies of a token   W width   B bytes of a row on the wire
//
// A row is W elements in e4m3, a byte for each 1 x 128 of them (the exponent of its scale, which is
// a power of two), and zeros to the next multiple of 16 bytes; its tensors have the type e4m3. What
// is not finite cannot be quantised: an Error. Exact but for the one quantisation, so the rows of a
// rank that receives are those of one that quantises its own (scatter_quantised_rows).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/fp8.h"

namespace hadal::ops {

constexpr int64_t wire_bytes(int64_t width) { return (width + num_tiles(width) + 15) / 16 * 16; }

HADAL_BOTH inline uint8_t to_wire_scale(float power_of_two) {
  return static_cast<uint8_t>(__builtin_bit_cast(uint32_t, power_of_two) >> 23);
}
HADAL_BOTH inline float from_wire_scale(uint8_t exponent) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(exponent) << 23);
}

// wire[copy[t,k]] = x[t], quantised once; a copy of -1 is left out.     x [T,W], copy [T,K] i32
HADAL_OP(pack_wire_rows, Context& ctx, In x, In copy, Out wire)  // [N,B]
// wire[copy[t,k]] = from[t]                                            from [T,B]
HADAL_OP(copy_wire_rows, Context& ctx, In from, In copy, Out wire)  // [N,B]
// rows[row_of_choice[t,k]] = from[t]                                   from [T,B]
HADAL_OP(place_wire_rows, Context& ctx, In from, In row_of_choice, const PagedRows& rows)

}  // namespace hadal::ops
