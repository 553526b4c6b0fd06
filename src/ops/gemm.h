// Matrix products: dense, per head, and grouped over the pages of experts.
//
//   M, T rows   N output width   K inner width   H heads   E experts   P pages of kPageRows rows
//
// Operands are f64, f32, f16, bf16 or (Operand only) e4m3 with block scales; results f64, f32 or
// bf16. Sums run in f64 if any operand or the result is f64, else in f32. Each output element is
// one chain of multiply-adds over k = 0, 1, ...: the same bits at every M, thread count and tiling.
// Views may have any row stride. Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "ops/dispatch.h"
#include "ops/pages.h"

namespace hadal::ops {

HADAL_OP(gemm_nt, Context& ctx, In a, const Operand& b, Out c)      // [M,N]  = [M,K] [N,K]^T
HADAL_OP(gemm_nt_acc, Context& ctx, In a, const Operand& b, Acc c)  // [M,N] += [M,K] [N,K]^T
// Several products of the same rows: on the CPU in one go. c[i] [M,N_i] = a b[i]^T
struct WeightTo {
  const Operand& b;
  Tensor c;
};
void gemm_nt_all(Context& ctx, In a, std::span<const WeightTo> to);
HADAL_OP(gemm_nn, Context& ctx, In a, const Operand& b, Out c)      // [M,K]  = [M,N] [N,K]
HADAL_OP(gemm_nn_acc, Context& ctx, In a, const Operand& b, Acc c)  // [M,K] += [M,N] [N,K]
HADAL_OP(gemm_tn_acc, Context& ctx, In a, In b, Acc c)              // [N,K] += [T,N]^T [T,K]

// Head h multiplies with rows [first + h * stride, + count) of the operand.
struct HeadRows {
  int64_t first, count, stride;
};
HADAL_OP(gemm_nt_heads, Context& ctx, In a, const Operand& b, HeadRows rows,
         Out c)  // [T,H,N] = [T,H,K] [N,K]^T
HADAL_OP(gemm_nn_heads, Context& ctx, In a, const Operand& b, HeadRows rows,
         Out c)  // [T,H,K] = [T,H,N] [N,K]

// Expert e multiplies its own rows with w[e]; rows past an expert's count are not touched.
HADAL_OP(grouped_gemm_nt, Context& ctx, const ExpertLayout& layout, const PagedRows& a,
         std::span<const Operand> w, const PagedRows& c)  // [rows,N]  = [rows,K] [N,K]^T
// Several of these on the same rows: on the CPU in one go.
struct WeightsTo {
  std::span<const Operand> w;  // [E]
  PagedRows c;
};
void grouped_gemm_nt_all(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const WeightsTo> to);
HADAL_OP(grouped_gemm_nn, Context& ctx, const ExpertLayout& layout, const PagedRows& a,
         std::span<const Operand> w, const PagedRows& c)  // [rows,K]  = [rows,N] [N,K]
HADAL_OP(grouped_gemm_nn_acc, Context& ctx, const ExpertLayout& layout, const PagedRows& a,
         std::span<const Operand> w, const PagedRows& c)  // [rows,K] += [rows,N] [N,K]
HADAL_OP(grouped_gemm_tn_acc, Context& ctx, const ExpertLayout& layout, const PagedRows& a,
         const PagedRows& b, std::span<const Tensor> dw)  // [N,K] += [rows,N]^T [rows,K]

namespace cpu {
void gemm_nt_all(Context& ctx, In a, std::span<const WeightTo> to);
void grouped_gemm_nt_all(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const WeightsTo> to);
}  // namespace cpu

}  // namespace hadal::ops
