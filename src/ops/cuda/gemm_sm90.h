// Matrix products on Hopper's own units: which calls they take, and the calls.
//
// Each function returns false, having done nothing, where types or alignment are not its own; the
// plain bodies of gemm.cu then do the work. The choice depends on types, shapes of weights and
// strides, and in Numerics::kFastest on the number of rows as well.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "ops/cuda/bf16_gemm/config.h"
#include "ops/cuda/detail/matmul.cuh"
#include "ops/gemm.h"

namespace hadal::ops::cuda::sm90 {

using hadal::cuda::Bf16Layout;

// c = (or +=) a b^T, a b, a^T b.
bool gemm(Context& ctx, const char* op, Bf16Layout layout, const Tensor& a, const Operand& b,
          const Tensor& c, Start start);
// The same for each head: a, c [T,H,.], b the head's rows.
bool gemm_heads(Context& ctx, const char* op, Bf16Layout layout, const Tensor& a, const Operand& b,
                HeadRows rows, const Tensor& c);
bool grouped_gemm(Context& ctx, const char* op, Bf16Layout layout, const ExpertLayout& experts,
                  const PagedRows& a, std::span<const Operand> w, const PagedRows& c, Start start);
bool grouped_gemm_tn_acc(Context& ctx, const ExpertLayout& experts, const PagedRows& a,
                         const PagedRows& b, std::span<const Tensor> dw);

}  // namespace hadal::ops::cuda::sm90
