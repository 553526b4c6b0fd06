// Rotary position embedding of the decoupled key and query parts (report, 2.1.1; YaRN: 4.3).
//
//   T tokens   H heads   Dr rope width
//
// Pair j of a head turns by position * inv_freq[j]. Angles are computed in f64 and stored rounded
// to the table's type. Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"

namespace hadal::ops {

enum class RopeLayout : uint8_t {
  kInterleaved,  // pair j is (x[2j], x[2j+1])
  kHalves,       // pair j is (x[j], x[j+Dr/2])
};
enum class RopeDirection : uint8_t { kForward, kBackward };  // backward multiplies by the transpose

// positions [T] i32, inv_freq [Dr/2] f64 -> table [T, Dr]: magnitude * cos, then magnitude * sin.
HADAL_OP(rope_table, Context& ctx, In positions, In inv_freq, double magnitude, Out table)
// Turns x [T, H, Dr] (a view with any strides of T and H) in place.
HADAL_OP(rope_apply, Context& ctx, RopeLayout layout, RopeDirection direction, In table, Acc x)

}  // namespace hadal::ops
