// Many matrix products at once, on all threads: what the bodies of gemm.h hand their work to.
//
//   M rows   N columns of the result   K inner width
//
// c (+)= a b^T for each product. Rows of a are packed once for all threads; tasks are bands of
// columns, and each packs its own part of b, so a weight is read once, in the order it lies. K is
// cut into blocks for the caches, never between threads: an element is one chain over k (f32) or
// over groups of 128 k (integer weights), whatever M, the cut and the number of threads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "core/context.h"
#include "ops/cpu/matmul.h"

namespace hadal::ops::cpu {

struct Product {
  int64_t M, N, K;
  MatrixView a;  // (m, k); f32, bf16 or f16
  MatrixView b;  // (n, k); f32, bf16, f16, e4m3, or i32: an integer weight (core/panels.h)
  ResultView c;
  bool in_panels = false;           // bf16 or e4m3 of b lie in panels, not in rows
  const bf16* int_scale = nullptr;  // of an integer weight, else null
};

void run_products(Context& ctx, std::span<const Product> products, Start start);

}  // namespace hadal::ops::cpu
