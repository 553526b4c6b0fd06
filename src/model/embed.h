// The embedding table: a lookup, and its gradient as a sum over the tokens that used a row.
//
//   T tokens   V vocabulary   D model width
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "ops/copy.h"

namespace hadal::embed {

inline void forward(Context& ctx, const Operand& table, In ids, Out x) {
  ops::embed_forward(ctx, table.data, ids, x);  // [V, D], [T] -> [T, D]
}

// dtable += ...; there is no input to differentiate.
inline void backward_weight(Context& ctx, In dx, In ids, Acc dtable) {
  ops::embed_backward_acc(ctx, dx, ids, dtable);  // [T, D], [T] -> [V, D]
}

}  // namespace hadal::embed
