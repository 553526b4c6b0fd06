// FP8 training: shape and type checks, then the backend's body.
//
//   T tokens   N output width   K inner width   W width   E experts   P pages
// SPDX-License-Identifier: Apache-2.0
#include "ops/fp8.h"

#include "ops/fp8_checks.h"
#include "ops/quant.h"

namespace hadal::ops {
namespace {

int64_t whole_pages(int64_t rows) { return (rows + kPageRows - 1) / kPageRows; }

void check_source(const Tensor& x, const char* op) {
  HADAL_CHECK(is_float(x.dtype()) && x.dtype() != DType::kE4M3, op, ": x is ", x.str(),
              "; it must be f64, f32, f16 or bf16");
}

void check_result(const Tensor& c, const char* op) {
  HADAL_CHECK(c.dtype() == DType::kF32 || c.dtype() == DType::kBF16, op, ": the result is ",
              c.str(), "; it must be f32 or bf16");
}

void check_tiles(const TileRows& q, int64_t T, int64_t K, const char* op) {
  HADAL_CHECK(q.data.rank() == 2 && q.data.dtype() == DType::kE4M3 && q.data.dim(0) == T &&
                  q.data.dim(1) == K,
              op, ": the elements are ", q.data.str(), "; e4m3 [", T, ", ", K, "] is needed");
  HADAL_CHECK(q.scale.rank() == 2 && q.scale.dtype() == DType::kF32 &&
                  q.scale.dim(0) == num_tiles(K) && q.scale.dim(1) >= whole_pages(T) * kPageRows,
              op, ": the scales are ", q.scale.str(), "; f32 [", num_tiles(K), ", ",
              whole_pages(T) * kPageRows, "] is needed");
}

void check_columns(const TileColumns& q, const char* op) {
  HADAL_CHECK(q.data.rank() == 3 && q.data.dtype() == DType::kE4M3 && q.data.dim(2) == kTileSize &&
                  q.data.is_dense(),
              op, ": the columns are ", q.data.str(), "; dense e4m3 [pages, width, ", kTileSize,
              "] is needed");
  HADAL_CHECK(q.scale.rank() == 2 && q.scale.dtype() == DType::kF32 && q.scale.is_dense() &&
                  q.scale.dim(0) == q.data.dim(0) && q.scale.dim(1) == q.data.dim(1),
              op, ": columns ", q.data.str(), " have scales ", q.scale.str(), "; dense f32 [",
              q.data.dim(0), ", ", q.data.dim(1), "] is needed");
}

// A weight with 128 x 128 scales both ways; N x K.
void check_weight(const Operand& w, const char* op) {
  const Tensor& d = w.data;
  HADAL_CHECK(d.rank() == 2 && d.dtype() == DType::kE4M3 && w.row_begin == 0 &&
                  w.transposed.rank() == 2 && w.transposed.dtype() == DType::kE4M3 &&
                  w.transposed.dim(0) == d.dim(1) && w.transposed.dim(1) == d.dim(0),
              op, ": the weight is ", d.str(), " and ", w.transposed.str(),
              "; an e4m3 matrix and its transpose are needed");
  const int64_t rows = num_tiles(d.dim(0)), cols = num_tiles(d.dim(1));
  const auto fits = [](const Tensor& s, int64_t m, int64_t n) {
    return s.rank() == 2 && s.dtype() == DType::kF32 && s.dim(0) == m && s.dim(1) == n;
  };
  HADAL_CHECK(fits(w.scale, rows, cols) && fits(w.transposed_scale, cols, rows), op,
              ": the weight ", d.str(), " has scales ", w.scale.str(), " and ",
              w.transposed_scale.str(), "; f32 [", rows, ", ", cols,
              "] and its transpose are needed");
}

void check_product(const TileRows& a, const Operand& w, const Tensor& c, bool transposed,
                   const char* op) {
  check_weight(w, op);
  check_result(c, op);
  const Tensor& side = transposed ? w.transposed : w.data;
  HADAL_CHECK(c.rank() == 2 && c.dim(1) == side.dim(0), op, ": the result is ", c.str(),
              " for a weight of ", w.data.str());
  check_tiles(a, c.dim(0), side.dim(1), op);
}

void check_grouped(const ExpertLayout& layout, const PagedRows& a, std::span<const Operand> w,
                   const PagedRows& c, bool transposed, const char* op) {
  check_page_tiles(a, op);
  check_page_rows(c, op);
  check_result(c.slab, op);
  HADAL_CHECK(static_cast<int64_t>(w.size()) == layout.num_experts(), op, ": ", w.size(),
              " weights for ", layout.num_experts(), " experts");
  for (const Operand& e : w) {
    check_weight(e, op);
    const Tensor& side = transposed ? e.transposed : e.data;
    HADAL_CHECK(side.dim(1) == a.slab.dim(2) && side.dim(0) == c.slab.dim(2), op,
                ": an expert's weight is ", e.data.str(), " for rows of ", a.slab.dim(2), " to ",
                c.slab.dim(2));
  }
}

void check_e5m6(const Tensor& x, const Tensor& words, const Tensor& scale, const char* op) {
  const auto [T, W] = HADAL_SHAPE(x, 2);
  check_source(x, op);
  HADAL_CHECK(words.dtype() == DType::kI32 && scale.dtype() == DType::kF32, op, ": words are ",
              words.str(), " and scales ", scale.str(), "; i32 and f32 are needed");
  HADAL_CHECK_SHAPE(words, T, e5m6_words(W));
  HADAL_CHECK_SHAPE(scale, T, num_tiles(W));
}

}  // namespace

void quantise_rows(Context& ctx, In x, TileRule rule, const TileRows& q) {
  const auto [T, K] = HADAL_SHAPE(x, 2);
  check_source(x, "quantise_rows");
  check_tiles(q, T, K, "quantise_rows");
  HADAL_DISPATCH(ctx, quantise_rows, x, rule, q);
}
void dequantise_rows(Context& ctx, const TileRows& q, Out y) {
  const auto [T, K] = HADAL_SHAPE(y, 2);
  check_source(y, "dequantise_rows");
  check_tiles(q, T, K, "dequantise_rows");
  HADAL_DISPATCH(ctx, dequantise_rows, q, y);
}
void quantise_columns(Context& ctx, In x, const TileColumns& q) {
  const auto [T, W] = HADAL_SHAPE(x, 2);
  check_source(x, "quantise_columns");
  check_columns(q, "quantise_columns");
  HADAL_CHECK(q.data.dim(0) == num_tiles(T) && q.data.dim(1) == W, "quantise_columns: x is ",
              x.str(), ", the columns are ", q.data.str());
  HADAL_DISPATCH(ctx, quantise_columns, x, q);
}

void grouped_quantise_rows(Context& ctx, const ExpertLayout& layout, const PagedRows& x,
                           TileRule rule, const PagedRows& q) {
  check_source(x.slab, "grouped_quantise_rows");
  check_page_rows(x, "grouped_quantise_rows");
  check_page_tiles(q, "grouped_quantise_rows");
  HADAL_CHECK(x.slab.dim(2) == q.slab.dim(2), "grouped_quantise_rows: x is ", x.slab.str(),
              ", the elements are ", q.slab.str());
  HADAL_DISPATCH(ctx, grouped_quantise_rows, layout, x, rule, q);
}
void grouped_dequantise_rows(Context& ctx, const ExpertLayout& layout, const PagedRows& q,
                             const PagedRows& y) {
  check_page_tiles(q, "grouped_dequantise_rows");
  check_page_rows(y, "grouped_dequantise_rows");
  check_source(y.slab, "grouped_dequantise_rows");
  HADAL_CHECK(y.slab.dim(2) == q.slab.dim(2), "grouped_dequantise_rows: y is ", y.slab.str(),
              ", the elements are ", q.slab.str());
  HADAL_DISPATCH(ctx, grouped_dequantise_rows, layout, q, y);
}
void grouped_quantise_columns(Context& ctx, const ExpertLayout& layout, const PagedRows& x,
                              const TileColumns& q) {
  if (x.slab.dtype() == DType::kE4M3)
    check_page_tiles(x, "grouped_quantise_columns");
  else
    check_source(x.slab, "grouped_quantise_columns");
  check_page_rows(x, "grouped_quantise_columns");
  check_columns(q, "grouped_quantise_columns");
  HADAL_CHECK(x.slab.dim(2) == q.data.dim(1), "grouped_quantise_columns: x is ", x.slab.str(),
              ", the columns are ", q.data.str());
  HADAL_DISPATCH(ctx, grouped_quantise_columns, layout, x, q);
}

void scatter_quantised_rows(Context& ctx, In x, In row_of_choice, const PagedRows& rows) {
  const auto [T, W] = HADAL_SHAPE(x, 2);
  const auto [T_choice, K] = HADAL_SHAPE(row_of_choice, 2);
  check_source(x, "scatter_quantised_rows");
  check_page_tiles(rows, "scatter_quantised_rows");
  HADAL_CHECK(T == T_choice && rows.slab.dim(2) == W && row_of_choice.dtype() == DType::kI32,
              "scatter_quantised_rows: x is ", x.str(), ", row_of_choice ", row_of_choice.str(),
              ", the rows ", rows.slab.str());
  HADAL_DISPATCH(ctx, scatter_quantised_rows, x, row_of_choice, rows);
}

void quantise_weights(Context& ctx, std::span<const Tensor> w, std::span<const Operand> q) {
  HADAL_CHECK(w.size() == q.size(), "quantise_weights: ", w.size(), " weights, but room for ",
              q.size());
  for (size_t i = 0; i < w.size(); ++i) {
    check_source(w[i], "quantise_weights");
    check_weight(q[i], "quantise_weights");
    HADAL_CHECK(w[i].shape() == q[i].data.shape() && w[i].shape() == w[0].shape(),
                "quantise_weights: weight ", i, " is ", w[i].str(), ", its elements ",
                q[i].data.str(), ", the first weight ", w[0].str());
  }
  if (w.empty()) return;
  HADAL_DISPATCH(ctx, quantise_weights, w, q);
}

void fp8_gemm_nt(Context& ctx, const TileRows& a, const Operand& w, Out c) {
  check_product(a, w, c, false, "fp8_gemm_nt");
  HADAL_DISPATCH(ctx, fp8_gemm_nt, a, w, c);
}
void fp8_gemm_nn(Context& ctx, const TileRows& a, const Operand& w, Out c) {
  check_product(a, w, c, true, "fp8_gemm_nn");
  HADAL_DISPATCH(ctx, fp8_gemm_nn, a, w, c);
}
void fp8_gemm_nn_acc(Context& ctx, const TileRows& a, const Operand& w, Acc c) {
  check_product(a, w, c, true, "fp8_gemm_nn_acc");
  HADAL_DISPATCH(ctx, fp8_gemm_nn_acc, a, w, c);
}
void fp8_gemm_tn_acc(Context& ctx, const TileColumns& a, const TileColumns& b, Acc c) {
  check_columns(a, "fp8_gemm_tn_acc");
  check_columns(b, "fp8_gemm_tn_acc");
  HADAL_CHECK(c.dtype() == DType::kF32, "fp8_gemm_tn_acc: the gradient is ", c.str(),
              "; it must be f32");
  HADAL_CHECK(a.data.dim(0) == b.data.dim(0), "fp8_gemm_tn_acc: a is ", a.data.str(), ", b is ",
              b.data.str(), "; their pages must be equal");
  HADAL_CHECK_SHAPE(c, a.data.dim(1), b.data.dim(1));
  HADAL_DISPATCH(ctx, fp8_gemm_tn_acc, a, b, c);
}

void grouped_fp8_gemm_nt(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const Operand> w, const PagedRows& c) {
  check_grouped(layout, a, w, c, false, "grouped_fp8_gemm_nt");
  HADAL_DISPATCH(ctx, grouped_fp8_gemm_nt, layout, a, w, c);
}
void grouped_fp8_gemm_nn(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const Operand> w, const PagedRows& c) {
  check_grouped(layout, a, w, c, true, "grouped_fp8_gemm_nn");
  HADAL_DISPATCH(ctx, grouped_fp8_gemm_nn, layout, a, w, c);
}
void grouped_fp8_gemm_nn_acc(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                             std::span<const Operand> w, const PagedRows& c) {
  check_grouped(layout, a, w, c, true, "grouped_fp8_gemm_nn_acc");
  HADAL_DISPATCH(ctx, grouped_fp8_gemm_nn_acc, layout, a, w, c);
}
void grouped_fp8_gemm_tn_acc(Context& ctx, const ExpertLayout& layout, const TileColumns& a,
                             const TileColumns& b, std::span<const Tensor> dw) {
  check_columns(a, "grouped_fp8_gemm_tn_acc");
  check_columns(b, "grouped_fp8_gemm_tn_acc");
  HADAL_CHECK(static_cast<int64_t>(dw.size()) == layout.num_experts(),
              "grouped_fp8_gemm_tn_acc: ", dw.size(), " gradients for ", layout.num_experts(),
              " experts");
  for (const Tensor& g : dw) {
    HADAL_CHECK(g.dtype() == DType::kF32, "grouped_fp8_gemm_tn_acc: a gradient is ", g.str(),
                "; it must be f32");
    HADAL_CHECK_SHAPE(g, a.data.dim(1), b.data.dim(1));
  }
  HADAL_DISPATCH(ctx, grouped_fp8_gemm_tn_acc, layout, a, b, dw);
}

void pack_e5m6(Context& ctx, In x, Out words, Out scale) {
  check_e5m6(x, words, scale, "pack_e5m6");
  HADAL_DISPATCH(ctx, pack_e5m6, x, words, scale);
}
void unpack_e5m6(Context& ctx, In words, In scale, Out x) {
  check_e5m6(x, words, scale, "unpack_e5m6");
  HADAL_DISPATCH(ctx, unpack_e5m6, words, scale, x);
}

}  // namespace hadal::ops
