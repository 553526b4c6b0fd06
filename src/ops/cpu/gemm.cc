// Matrix product bodies: each op as a list of products (ops/cpu/product.h).
//
//   M, T rows   N output width   K inner width   H heads   E experts   P pages
//
// K is never split between tasks, so results do not depend on the cut (ops/cpu/matmul.h).
// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm.h"

#include <algorithm>
#include <vector>

#include "core/panels.h"
#include "ops/cpu/product.h"

namespace hadal::ops::cpu {
namespace {

// a's rows are the rows of the product: element (m, k).
MatrixView by_rows(const Tensor& t) { return {t.raw(), t.dtype(), t.stride(0), 1}; }
// a's columns are the rows of the product.
MatrixView by_cols(const Tensor& t) { return {t.raw(), t.dtype(), 1, t.stride(0)}; }

void add_scales(const Operand& o, MatrixView& v, bool rows_are_stored_rows) {
  if (o.scale.empty()) return;
  v.scale = o.scale.data<float>();
  v.scale_stride = o.scale.stride(0);
  v.stored_row = o.row_begin;
  v.rows_are_stored_rows = rows_are_stored_rows;
}
MatrixView by_rows(const Operand& o) {
  MatrixView v = by_rows(o.data);
  add_scales(o, v, true);
  return v;
}
MatrixView by_cols(const Operand& o) {
  MatrixView v = by_cols(o.data);
  add_scales(o, v, false);
  return v;
}

ResultView result(const Tensor& t) { return {t.raw(), t.dtype(), t.stride(0)}; }

bool is_f64(const Product& p) {
  return p.a.dtype == DType::kF64 || p.b.dtype == DType::kF64 || p.c.dtype == DType::kF64;
}

// In f64, where any operand is: for tests and verification, so one task a product or row band.
void run_f64(Context& ctx, std::span<const Product> products, Start start) {
  constexpr int64_t kRows = 96;
  std::vector<std::pair<size_t, int64_t>> tasks;
  for (size_t i = 0; i < products.size(); ++i)
    for (int64_t m = 0; m < products[i].M; m += kRows) tasks.emplace_back(i, m);
  ctx.threads.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t task, int) {
    const auto& [i, m] = tasks[static_cast<size_t>(task)];
    const Product& p = products[i];
    const auto element = static_cast<int64_t>(dtype_size(p.c.dtype));
    matmul<double>(
        std::min(kRows, p.M - m), p.N, p.K, p.a.block(m, 0), p.b,
        {static_cast<char*>(p.c.data) + m * p.c.row_stride * element, p.c.dtype, p.c.row_stride},
        start);
  });
}

void run(Context& ctx, std::span<const Product> products, Start start) {
  if (!products.empty() && is_f64(products.front()))
    run_f64(ctx, products, start);
  else
    run_products(ctx, products, start);
}

// a times a weight's rows.
Product by_weight_rows(int64_t M, const MatrixView& a, int64_t K, const Operand& w,
                       const ResultView& c) {
  Product p{.M = M, .N = w.data.dim(0), .K = K, .a = a, .b = by_rows(w.data), .c = c};
  if (!in_panels(w)) {
    p.b = by_rows(w);
  } else if (!w.scale.empty() && w.scale.dtype() == DType::kBF16) {
    p.int_scale = w.scale.data<bf16>();
  } else {
    p.in_panels = true;
    p.b.dtype = w.scale.empty() ? DType::kBF16 : DType::kE4M3;
    p.b.row_stride = K;
    add_scales(w, p.b, true);
  }
  return p;
}
// a times a weight's columns.
Product by_weight_cols(int64_t M, const MatrixView& a, const Operand& w, const ResultView& c) {
  return {.M = M, .N = w.data.dim(1), .K = w.data.dim(0), .a = a, .b = by_cols(w), .c = c};
}

void dense(Context& ctx, const Product& p, Start start) { run(ctx, {&p, 1}, start); }

// One product a head, with the operand's rows that the head uses.
void for_heads(Context& ctx, const Tensor& a, const Operand& b, HeadRows rows, const Tensor& c,
               bool transposed) {
  std::vector<Product> products;
  for (int64_t h = 0; h < a.dim(1); ++h) {
    const Operand w = b.rows(rows.first + h * rows.stride, rows.count);
    const MatrixView av{static_cast<const char*>(a.raw()) +
                            h * a.stride(1) * static_cast<int64_t>(dtype_size(a.dtype())),
                        a.dtype(), a.stride(0), 1};
    const ResultView cv{
        static_cast<char*>(c.raw()) + h * c.stride(1) * static_cast<int64_t>(dtype_size(c.dtype())),
        c.dtype(), c.stride(0)};
    products.push_back(transposed ? by_weight_cols(a.dim(0), av, w, cv)
                                  : by_weight_rows(a.dim(0), av, a.dim(2), w, cv));
  }
  run(ctx, products, Start::kZero);
}

// Rows in use at position p of the layout, and whose they are.
struct PageUse {
  int64_t expert, rows;
};
std::vector<PageUse> pages_in_use(const ExpertLayout& layout) {
  const auto* begin = layout.page_begin.data<int32_t>();
  const auto* counts = layout.counts.data<int32_t>();
  std::vector<PageUse> uses;
  for (int64_t e = 0; e < layout.num_experts(); ++e)
    for (int32_t p = begin[e]; p < begin[e + 1]; ++p)
      uses.push_back({e, std::min<int64_t>(kPageRows, counts[e] - (p - begin[e]) * kPageRows)});
  return uses;
}

Tensor page_at(const PagedRows& rows, int64_t position) {
  return rows.slab.row(rows.page.empty() ? position : rows.page.data<int32_t>()[position]);
}

// Each page's rows times its expert's weights.
void grouped(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
             std::span<const Operand> w, const PagedRows& c, bool transposed, Start start) {
  const std::vector<PageUse> uses = pages_in_use(layout);
  std::vector<Product> products;
  for (size_t p = 0; p < uses.size(); ++p) {
    const auto position = static_cast<int64_t>(p);
    const Operand& we = w[static_cast<size_t>(uses[p].expert)];
    const MatrixView rows = by_rows(page_at(a, position));
    const ResultView out = result(page_at(c, position));
    products.push_back(transposed ? by_weight_cols(uses[p].rows, rows, we, out)
                                  : by_weight_rows(uses[p].rows, rows, a.slab.dim(2), we, out));
  }
  run(ctx, products, start);
}

}  // namespace

void gemm_nt(Context& ctx, In a, const Operand& b, Out c) {
  dense(ctx, by_weight_rows(a.dim(0), by_rows(a), a.dim(1), b, result(c)), Start::kZero);
}
void gemm_nt_all(Context& ctx, In a, std::span<const WeightTo> to) {
  std::vector<Product> products;
  for (const WeightTo& t : to)
    products.push_back(by_weight_rows(a.dim(0), by_rows(a), a.dim(1), t.b, result(t.c)));
  run(ctx, products, Start::kZero);
}
void gemm_nt_acc(Context& ctx, In a, const Operand& b, Acc c) {
  dense(ctx, by_weight_rows(a.dim(0), by_rows(a), a.dim(1), b, result(c)), Start::kOld);
}
void gemm_nn(Context& ctx, In a, const Operand& b, Out c) {
  dense(ctx, by_weight_cols(a.dim(0), by_rows(a), b, result(c)), Start::kZero);
}
void gemm_nn_acc(Context& ctx, In a, const Operand& b, Acc c) {
  dense(ctx, by_weight_cols(a.dim(0), by_rows(a), b, result(c)), Start::kOld);
}
void gemm_tn_acc(Context& ctx, In a, In b, Acc c) {
  dense(ctx,
        {.M = a.dim(1),
         .N = b.dim(1),
         .K = a.dim(0),
         .a = by_cols(static_cast<const Tensor&>(a)),
         .b = by_cols(static_cast<const Tensor&>(b)),
         .c = result(c)},
        Start::kOld);
}

void gemm_nt_heads(Context& ctx, In a, const Operand& b, HeadRows rows, Out c) {
  for_heads(ctx, a, b, rows, c, false);
}
void gemm_nn_heads(Context& ctx, In a, const Operand& b, HeadRows rows, Out c) {
  for_heads(ctx, a, b, rows, c, true);
}

void grouped_gemm_nt(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                     std::span<const Operand> w, const PagedRows& c) {
  grouped(ctx, layout, a, w, c, false, Start::kZero);
}
void grouped_gemm_nt_all(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const WeightsTo> to) {
  const std::vector<PageUse> uses = pages_in_use(layout);
  std::vector<Product> products;
  for (size_t p = 0; p < uses.size(); ++p) {
    const auto position = static_cast<int64_t>(p);
    for (const WeightsTo& t : to)
      products.push_back(by_weight_rows(uses[p].rows, by_rows(page_at(a, position)), a.slab.dim(2),
                                        t.w[static_cast<size_t>(uses[p].expert)],
                                        result(page_at(t.c, position))));
  }
  run(ctx, products, Start::kZero);
}
void grouped_gemm_nn(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                     std::span<const Operand> w, const PagedRows& c) {
  grouped(ctx, layout, a, w, c, true, Start::kZero);
}
void grouped_gemm_nn_acc(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const Operand> w, const PagedRows& c) {
  grouped(ctx, layout, a, w, c, true, Start::kOld);
}

void grouped_gemm_tn_acc(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         const PagedRows& b, std::span<const Tensor> dw) {
  const std::vector<PageUse> uses = pages_in_use(layout);
  const auto* begin = layout.page_begin.data<int32_t>();
  // A gradient's chain goes from page to page, so the n-th pages of all experts run together.
  for (int64_t nth = 0;; ++nth) {
    std::vector<Product> products;
    for (size_t p = 0; p < uses.size(); ++p) {
      const auto position = static_cast<int64_t>(p);
      if (position - begin[uses[p].expert] != nth) continue;
      products.push_back({.M = a.slab.dim(2),
                          .N = b.slab.dim(2),
                          .K = uses[p].rows,
                          .a = by_cols(page_at(a, position)),
                          .b = by_cols(page_at(b, position)),
                          .c = result(dw[static_cast<size_t>(uses[p].expert)])});
    }
    if (products.empty()) return;
    run(ctx, products, Start::kOld);
  }
}

}  // namespace hadal::ops::cpu
