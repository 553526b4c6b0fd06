// Matrix product bodies: cut the result into tasks, each a single-threaded block product.
//
//   M, T rows   N output width   K inner width   H heads   E experts   P pages
//
// K is never split between tasks, so results do not depend on the cut (ops/cpu/matmul.h).
// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm.h"

#include <algorithm>

#include "ops/cpu/matmul.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kTaskRows = 192, kTaskCols = 512;
constexpr int64_t kMinTasksPerThread = 4;

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

ResultView block_of(const ResultView& c, int64_t m, int64_t n) {
  const auto element = static_cast<int64_t>(dtype_size(c.dtype));
  return {static_cast<char*>(c.data) + (m * c.row_stride + n) * element, c.dtype, c.row_stride};
}

bool is_f64(const MatrixView& a, const MatrixView& b, const ResultView& c) {
  return a.dtype == DType::kF64 || b.dtype == DType::kF64 || c.dtype == DType::kF64;
}

void run(int64_t M, int64_t N, int64_t K, const MatrixView& a, const MatrixView& b,
         const ResultView& c, Start start) {
  if (is_f64(a, b, c))
    matmul<double>(M, N, K, a, b, c, start);
  else
    matmul<float>(M, N, K, a, b, c, start);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a result of M x N is cut, so that every thread has work.
struct Grid {
  int64_t rows, cols;  // of one task
  int64_t row_tasks, col_tasks;
};
Grid grid_of(int64_t M, int64_t N, int64_t wanted) {
  Grid g{std::min(M, kTaskRows), std::min(N, kTaskCols), 0, 0};
  const auto tasks = [&] { return ceil_div(M, g.rows) * ceil_div(N, g.cols); };
  // Columns in multiples of 32 and rows in multiples of 12: whole register blocks everywhere.
  while (tasks() < wanted && g.cols > 64) g.cols = ceil_div(ceil_div(g.cols, 2), 32) * 32;
  while (tasks() < wanted && g.rows > 48) g.rows = ceil_div(ceil_div(g.rows, 2), 12) * 12;
  g.row_tasks = ceil_div(M, g.rows);
  g.col_tasks = ceil_div(N, g.cols);
  return g;
}

void dense(Context& ctx, int64_t M, int64_t N, int64_t K, const MatrixView& a, const MatrixView& b,
           const ResultView& c, Start start) {
  if (M == 0 || N == 0) return;  // an MTP depth may have no tokens
  const int threads = ctx.threads.num_threads();
  const Grid g = grid_of(M, N, threads == 1 ? 1 : threads * kMinTasksPerThread);
  ctx.threads.parallel_for(g.row_tasks * g.col_tasks, [&](int64_t task, int) {
    const int64_t m = task / g.col_tasks * g.rows, n = task % g.col_tasks * g.cols;
    run(std::min(g.rows, M - m), std::min(g.cols, N - n), K, a.block(m, 0), b.block(n, 0),
        block_of(c, m, n), start);
  });
}

// The operand's rows that head h uses.
void for_heads(Context& ctx, const Tensor& a, const Operand& b, HeadRows rows, const Tensor& c,
               bool transposed) {
  const int64_t T = a.dim(0), H = a.dim(1), K = a.dim(2), N = c.dim(2);
  constexpr int64_t kRows = 96;
  const int64_t blocks = std::max<int64_t>(1, ceil_div(T, kRows));
  ctx.threads.parallel_for(H * blocks, [&](int64_t task, int) {
    const int64_t h = task / blocks, t = task % blocks * kRows;
    const Operand w = b.rows(rows.first + h * rows.stride, rows.count);
    const MatrixView av{
        static_cast<const char*>(a.raw()) +
            (t * a.stride(0) + h * a.stride(1)) * static_cast<int64_t>(dtype_size(a.dtype())),
        a.dtype(), a.stride(0), 1};
    const ResultView cv{
        static_cast<char*>(c.raw()) +
            (t * c.stride(0) + h * c.stride(1)) * static_cast<int64_t>(dtype_size(c.dtype())),
        c.dtype(), c.stride(0)};
    run(std::min(kRows, T - t), N, K, av, transposed ? by_cols(w) : by_rows(w), cv, Start::kZero);
  });
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

// Each page's rows times its expert's weights; few pages are cut by columns as well.
void grouped(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
             std::span<const Operand> w, const PagedRows& c, bool transposed, Start start) {
  const std::vector<PageUse> uses = pages_in_use(layout);
  const auto P = static_cast<int64_t>(uses.size());
  const int64_t N = c.slab.dim(2), K = a.slab.dim(2);
  const int64_t wanted = ctx.threads.num_threads() * kMinTasksPerThread;
  const int64_t cuts = P == 0 ? 1 : std::min(ceil_div(wanted, P), ceil_div(N, 64));
  const int64_t cols = ceil_div(ceil_div(N, cuts), 32) * 32, col_tasks = ceil_div(N, cols);
  ctx.threads.parallel_for(P * col_tasks, [&](int64_t task, int) {
    const int64_t p = task / col_tasks, n = task % col_tasks * cols;
    const PageUse& use = uses[static_cast<size_t>(p)];
    const Operand& we = w[static_cast<size_t>(use.expert)];
    const MatrixView b = transposed ? by_cols(we) : by_rows(we);
    run(use.rows, std::min(cols, N - n), K, by_rows(page_at(a, p)), b.block(n, 0),
        block_of(result(page_at(c, p)), 0, n), start);
  });
}

}  // namespace

void gemm_nt(Context& ctx, In a, const Operand& b, Out c) {
  dense(ctx, a.dim(0), b.data.dim(0), a.dim(1), by_rows(a), by_rows(b), result(c), Start::kZero);
}
void gemm_nt_acc(Context& ctx, In a, const Operand& b, Acc c) {
  dense(ctx, a.dim(0), b.data.dim(0), a.dim(1), by_rows(a), by_rows(b), result(c), Start::kOld);
}
void gemm_nn(Context& ctx, In a, const Operand& b, Out c) {
  dense(ctx, a.dim(0), b.data.dim(1), a.dim(1), by_rows(a), by_cols(b), result(c), Start::kZero);
}
void gemm_nn_acc(Context& ctx, In a, const Operand& b, Acc c) {
  dense(ctx, a.dim(0), b.data.dim(1), a.dim(1), by_rows(a), by_cols(b), result(c), Start::kOld);
}
void gemm_tn_acc(Context& ctx, In a, In b, Acc c) {
  dense(ctx, a.dim(1), b.dim(1), a.dim(0), by_cols(static_cast<const Tensor&>(a)),
        by_cols(static_cast<const Tensor&>(b)), result(c), Start::kOld);
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
  const int64_t N = a.slab.dim(2), K = b.slab.dim(2);
  const auto* begin = layout.page_begin.data<int32_t>();
  const auto* counts = layout.counts.data<int32_t>();
  ctx.threads.parallel_for(layout.num_experts(), [&](int64_t e, int) {
    for (int64_t p = begin[e]; p < begin[e + 1]; ++p) {
      const int64_t rows = std::min<int64_t>(kPageRows, counts[e] - (p - begin[e]) * kPageRows);
      run(N, K, rows, by_cols(page_at(a, p)), by_cols(page_at(b, p)),
          result(dw[static_cast<size_t>(e)]), Start::kOld);
    }
  });
}

}  // namespace hadal::ops::cpu
