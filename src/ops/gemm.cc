// Matrix products: shape and type checks, then the backend's body.
//
//   M, T rows   N output width   K inner width   H heads   E experts   P pages
// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm.h"

#include "core/panels.h"

namespace hadal::ops {
namespace {

void check_operand(const Tensor& t, const char* op, const char* name) {
  HADAL_CHECK(is_float(t.dtype()) && t.dtype() != DType::kE4M3, op, ": ", name, " is ", t.str(),
              "; it must be f64, f32, f16 or bf16");
}

void check_result(const Tensor& t, const char* op) {
  HADAL_CHECK(t.dtype() == DType::kF64 || t.dtype() == DType::kF32 || t.dtype() == DType::kBF16, op,
              ": the result is ", t.str(), "; it must be f64, f32 or bf16");
}

// A weight in panels, of rows of K elements (panels.h).
void check_panels(const Operand& w, int64_t K, const char* op) {
  if (w.scale.empty() || w.scale.dtype() == DType::kF32) {
    const int64_t per_word = w.scale.empty() ? 2 : 4;
    HADAL_CHECK(w.data.rank() == 2 && w.data.is_dense() && w.data.dim(1) * per_word == K &&
                    w.data.dim(0) % kPanelRows == 0 && K % kScaleBlock == 0,
                op, ": the weight in panels is ", w.data.str(), " with scales ", w.scale.str(),
                "; rows of ", K, " elements do not fit");
    HADAL_CHECK(w.scale.empty() ||
                    w.scale.shape() ==
                        Shape({(w.data.dim(0) + kScaleBlock - 1) / kScaleBlock, K / kScaleBlock}),
                op, ": scales ", w.scale.str(), " do not cover a weight in panels of ",
                w.data.str());
    return;
  }
  const int64_t groups = int_groups(K), words = w.data.rank() == 2 ? w.data.dim(1) : 0;
  const int64_t of_4 = groups * int_group_words(4), of_8 = groups * int_group_words(8);
  HADAL_CHECK((words == of_4 || words == of_8) && w.data.is_dense(), op, ": the integer weight is ",
              w.data.str(), "; rows of ", K, " elements take ", of_4, " words with 4 bits or ",
              of_8, " with 8");
  HADAL_CHECK(w.scale.rank() == 2 && w.scale.dtype() == DType::kBF16 && w.scale.is_dense() &&
                  w.scale.dim(0) == w.data.dim(0) && w.scale.dim(1) == groups,
              op, ": the integer weight has scales ", w.scale.str(), "; bf16 [", w.data.dim(0),
              ", ", groups, "] are needed");
}

void check_weight(const Operand& w, const char* op) {
  HADAL_CHECK(w.data.rank() == 2 && is_float(w.data.dtype()), op, ": the weight is ", w.data.str(),
              "; it must be a float matrix");
  if (w.scale.empty()) return;
  HADAL_CHECK(
      w.data.dtype() == DType::kE4M3 && w.scale.dtype() == DType::kF32 && w.scale.rank() == 2, op,
      ": only e4m3 weights have scales, which are an f32 matrix; got ", w.data.str(), " with ",
      w.scale.str());
  const int64_t rows = (w.row_begin + w.data.dim(0) + kScaleBlock - 1) / kScaleBlock;
  const int64_t cols = (w.data.dim(1) + kScaleBlock - 1) / kScaleBlock;
  HADAL_CHECK(w.scale.dim(0) >= rows && w.scale.dim(1) == cols, op, ": scales ", w.scale.str(),
              " do not cover a weight of ", w.data.str(), " from row ", w.row_begin);
}

void check_nt(const Tensor& a, const Operand& b, const Tensor& c, const char* op) {
  const auto [M, K] = HADAL_SHAPE(a, 2);
  check_operand(a, op, "a");
  check_result(c, op);
  if (in_panels(b)) {
    check_panels(b, K, op);
    HADAL_CHECK(a.dtype() != DType::kF64 && c.dtype() != DType::kF64, op,
                ": weights in panels take f32, f16 or bf16, got ", a.str(), " to ", c.str());
    HADAL_CHECK_SHAPE(c, M, b.data.dim(0));
    return;
  }
  check_weight(b, op);
  HADAL_CHECK(b.data.dim(1) == K, op, ": a is ", a.str(), ", b is ", b.data.str(),
              "; their last dimensions must be equal");
  HADAL_CHECK_SHAPE(c, M, b.data.dim(0));
}

void check_nn(const Tensor& a, const Operand& b, const Tensor& c, const char* op) {
  const auto [M, N] = HADAL_SHAPE(a, 2);
  check_operand(a, op, "a");
  check_weight(b, op);
  check_result(c, op);
  HADAL_CHECK(b.data.dim(0) == N, op, ": a is ", a.str(), ", b is ", b.data.str(),
              "; the last of a must be the first of b");
  HADAL_CHECK_SHAPE(c, M, b.data.dim(1));
}

void check_heads(const Tensor& a, const Operand& b, HeadRows rows, const Tensor& c,
                 const char* op) {
  const auto [T, H, inner] = HADAL_SHAPE(a, 3);
  static_cast<void>(inner);
  check_operand(a, op, "a");
  check_weight(b, op);
  check_result(c, op);
  HADAL_CHECK(c.rank() == 3 && c.dim(0) == T && c.dim(1) == H, op, ": a is ", a.str(), ", c is ",
              c.str(), "; tokens and heads must be equal");
  HADAL_CHECK(rows.first >= 0 && rows.count >= 0 && rows.stride >= 0 &&
                  rows.first + (H > 0 ? (H - 1) * rows.stride : 0) + rows.count <= b.data.dim(0),
              op, ": rows of ", H, " heads are outside ", b.data.str());
}

void check_rows(const ExpertLayout& layout, const PagedRows& rows, const char* op,
                const char* name) {
  HADAL_CHECK(rows.slab.rank() == 3 && rows.slab.dim(1) == kPageRows, op, ": ", name, " is ",
              rows.slab.str(), "; it must be [pages, ", kPageRows, ", width]");
  HADAL_CHECK(layout.page_begin.num_elements() == layout.num_experts() + 1, op, ": page_begin is ",
              layout.page_begin.str(), " for ", layout.num_experts(), " experts");
}

void check_grouped(const ExpertLayout& layout, const PagedRows& a, std::span<const Operand> w,
                   const PagedRows& c, bool transposed, const char* op) {
  check_rows(layout, a, op, "a");
  check_rows(layout, c, op, "c");
  check_operand(a.slab, op, "a");
  check_result(c.slab, op);
  HADAL_CHECK(static_cast<int64_t>(w.size()) == layout.num_experts(), op, ": ", w.size(),
              " weights for ", layout.num_experts(), " experts");
  for (const Operand& e : w) {
    if (in_panels(e) && !transposed) {
      check_panels(e, a.slab.dim(2), op);
      HADAL_CHECK(e.data.dim(0) == c.slab.dim(2), op, ": an expert's weight is ", e.data.str(),
                  " for rows of ", a.slab.dim(2), " to ", c.slab.dim(2));
      continue;
    }
    check_weight(e, op);
    const int64_t inner = e.data.dim(transposed ? 0 : 1), outer = e.data.dim(transposed ? 1 : 0);
    HADAL_CHECK(inner == a.slab.dim(2) && outer == c.slab.dim(2), op, ": an expert's weight is ",
                e.data.str(), " for rows of ", a.slab.dim(2), " to ", c.slab.dim(2));
  }
}

}  // namespace

void gemm_nt(Context& ctx, In a, const Operand& b, Out c) {
  check_nt(a, b, c, "gemm_nt");
  HADAL_DISPATCH(ctx, gemm_nt, a, b, c);
}
void gemm_nt_all(Context& ctx, In a, std::span<const WeightTo> to) {
  for (const WeightTo& t : to) check_nt(a, t.b, t.c, "gemm_nt_all");
  if (ctx.device.kind == DeviceKind::kCpu) return cpu::gemm_nt_all(ctx, a, to);
  for (const WeightTo& t : to) gemm_nt(ctx, a, t.b, Tensor(t.c));
}
void gemm_nt_acc(Context& ctx, In a, const Operand& b, Acc c) {
  check_nt(a, b, c, "gemm_nt_acc");
  HADAL_DISPATCH(ctx, gemm_nt_acc, a, b, c);
}
void gemm_nn(Context& ctx, In a, const Operand& b, Out c) {
  check_nn(a, b, c, "gemm_nn");
  HADAL_DISPATCH(ctx, gemm_nn, a, b, c);
}
void gemm_nn_acc(Context& ctx, In a, const Operand& b, Acc c) {
  check_nn(a, b, c, "gemm_nn_acc");
  HADAL_DISPATCH(ctx, gemm_nn_acc, a, b, c);
}
void gemm_tn_acc(Context& ctx, In a, In b, Acc c) {
  const auto [T, N] = HADAL_SHAPE(a, 2);
  check_operand(a, "gemm_tn_acc", "a");
  check_operand(b, "gemm_tn_acc", "b");
  check_result(c, "gemm_tn_acc");
  HADAL_CHECK(b.rank() == 2 && b.dim(0) == T, "gemm_tn_acc: a is ", a.str(), ", b is ", b.str(),
              "; their first dimensions must be equal");
  HADAL_CHECK_SHAPE(c, N, b.dim(1));
  HADAL_DISPATCH(ctx, gemm_tn_acc, a, b, c);
}

void gemm_nt_heads(Context& ctx, In a, const Operand& b, HeadRows rows, Out c) {
  check_heads(a, b, rows, c, "gemm_nt_heads");
  HADAL_CHECK(a.dim(2) == b.data.dim(1) && c.dim(2) == rows.count, "gemm_nt_heads: a is ", a.str(),
              ", b is ", b.data.str(), ", c is ", c.str(), " with ", rows.count, " rows a head");
  HADAL_DISPATCH(ctx, gemm_nt_heads, a, b, rows, c);
}
void gemm_nn_heads(Context& ctx, In a, const Operand& b, HeadRows rows, Out c) {
  check_heads(a, b, rows, c, "gemm_nn_heads");
  HADAL_CHECK(a.dim(2) == rows.count && c.dim(2) == b.data.dim(1), "gemm_nn_heads: a is ", a.str(),
              ", b is ", b.data.str(), ", c is ", c.str(), " with ", rows.count, " rows a head");
  HADAL_DISPATCH(ctx, gemm_nn_heads, a, b, rows, c);
}

void grouped_gemm_nt(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                     std::span<const Operand> w, const PagedRows& c) {
  check_grouped(layout, a, w, c, false, "grouped_gemm_nt");
  HADAL_DISPATCH(ctx, grouped_gemm_nt, layout, a, w, c);
}
void grouped_gemm_nt_all(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const WeightsTo> to) {
  for (const WeightsTo& t : to) check_grouped(layout, a, t.w, t.c, false, "grouped_gemm_nt_all");
  if (ctx.device.kind == DeviceKind::kCpu) return cpu::grouped_gemm_nt_all(ctx, layout, a, to);
  for (const WeightsTo& t : to) grouped_gemm_nt(ctx, layout, a, t.w, t.c);
}
void grouped_gemm_nn(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                     std::span<const Operand> w, const PagedRows& c) {
  check_grouped(layout, a, w, c, true, "grouped_gemm_nn");
  HADAL_DISPATCH(ctx, grouped_gemm_nn, layout, a, w, c);
}
void grouped_gemm_nn_acc(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const Operand> w, const PagedRows& c) {
  check_grouped(layout, a, w, c, true, "grouped_gemm_nn_acc");
  HADAL_DISPATCH(ctx, grouped_gemm_nn_acc, layout, a, w, c);
}
void grouped_gemm_tn_acc(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         const PagedRows& b, std::span<const Tensor> dw) {
  check_rows(layout, a, "grouped_gemm_tn_acc", "a");
  check_rows(layout, b, "grouped_gemm_tn_acc", "b");
  check_operand(a.slab, "grouped_gemm_tn_acc", "a");
  check_operand(b.slab, "grouped_gemm_tn_acc", "b");
  HADAL_CHECK(static_cast<int64_t>(dw.size()) == layout.num_experts(),
              "grouped_gemm_tn_acc: ", dw.size(), " gradients for ", layout.num_experts(),
              " experts");
  for (const Tensor& g : dw) {
    check_result(g, "grouped_gemm_tn_acc");
    HADAL_CHECK_SHAPE(g, a.slab.dim(2), b.slab.dim(2));
  }
  HADAL_DISPATCH(ctx, grouped_gemm_tn_acc, layout, a, b, dw);
}

}  // namespace hadal::ops
