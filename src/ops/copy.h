// Element-wise movement: conversion, addition, fill, and the embedding table.
//
//   T rows   D width   V vocabulary
//
// Views of rank up to 3 with any row strides. Arithmetic in f32 (f64 for f64). Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/dispatch.h"

namespace hadal::ops {

HADAL_OP(cast, Context& ctx, In x, Out y)          // y = x in y's type; same shape
HADAL_OP(add, Context& ctx, In a, In b, Out c)     // c = a + b; c may be a or b
HADAL_OP(add_acc, Context& ctx, In x, Acc y)       // y += x
HADAL_OP(fill, Context& ctx, double value, Out x)  // x = value
HADAL_OP(embed_forward, Context& ctx, In table, In ids,
         Out x)  // x[t] = table[ids[t]]   [V,D] [T] -> [T,D]
HADAL_OP(embed_backward_acc, Context& ctx, In dx, In ids,
         Acc dtable)  // dtable[ids[t]] += dx[t], in token order

}  // namespace hadal::ops
