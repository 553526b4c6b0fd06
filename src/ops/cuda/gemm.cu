// Matrix product bodies on CUDA: Hopper's own units where they take the call (gemm_sm90.h), else a
// thread block for each tile of 64 x 64.
//
//   M, T rows   N output width   K inner width   H heads   E experts   P pages
//
// K is never split between blocks, so results do not depend on the grid (detail/matmul.cuh).
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/add_parts.h"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/matmul.cuh"
#include "ops/cuda/detail/pages.cuh"
#include "ops/cuda/gemm_sm90.h"
#include "ops/gemm.h"

namespace hadal::ops::cuda {
namespace {

// a's rows are the rows of the product: element (m, k).
Matrix by_rows(const Tensor& t) { return {t.raw(), t.dtype(), t.stride(0), 1}; }
// a's columns are the rows of the product.
Matrix by_cols(const Tensor& t) { return {t.raw(), t.dtype(), 1, t.stride(0)}; }

Matrix with_scales(Matrix m, const Operand& o, bool rows_are_stored_rows) {
  if (o.scale.empty()) return m;
  m.scale = o.scale.data<float>();
  m.scale_stride = o.scale.stride(0);
  m.stored_row = o.row_begin;
  m.rows_are_stored_rows = rows_are_stored_rows;
  return m;
}
Matrix by_rows(const Operand& o) { return with_scales(by_rows(o.data), o, true); }
Matrix by_cols(const Operand& o) { return with_scales(by_cols(o.data), o, false); }

Result result(const Tensor& t) { return {t.raw(), t.dtype(), t.stride(0)}; }

// One product, or one for each head: head h starts at these strides, b's counted in stored rows.
struct Product {
  int64_t M, N, K;
  Matrix a, b;
  Result c;
  Start start;
  int64_t a_head = 0, c_head = 0;           // elements
  int64_t b_head_rows = 0, b_row_size = 0;  // rows, and elements from one to the next
};

template <class R>
__global__ void product_kernel(Product p) {
  __shared__ TileMemory<R> memory;
  const int64_t h = blockIdx.z;
  p.a.data = advance(p.a.data, p.a.dtype, h * p.a_head);
  p.b.data = advance(p.b.data, p.b.dtype, h * p.b_head_rows * p.b_row_size);
  p.b.stored_row += h * p.b_head_rows;
  p.c.data = const_cast<void*>(advance(p.c.data, p.c.dtype, h * p.c_head));
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kTile;
  matmul_tile(row, p.M, col, p.N, p.K, p.a, p.b, p.c, p.start, memory);
}

void launch(Context& ctx, const char* op, const Product& p, int64_t H, const Tensor& c) {
  if (p.M == 0 || p.N == 0 || H == 0) return;  // an MTP depth may have no tokens
  const dim3 grid(static_cast<unsigned>(ceil_div(p.N, kTile)),
                  static_cast<unsigned>(ceil_div(p.M, kTile)), static_cast<unsigned>(H));
  HADAL_CHECK(grid.y <= 65535 && grid.z <= 65535, op, ": the result ", c.str(),
              " has more rows or heads than a CUDA grid; cut it into smaller calls");
  with_arithmetic({p.a.dtype, p.b.dtype, p.c.dtype},
                  [&]<class R>(R) { product_kernel<R><<<grid, kThreads, 0, stream_of(ctx)>>>(p); });
  check_launch(ctx, op, c);
}

// Parts of equal size that the K of a narrow f32 product over many tokens is cut into; 1: not cut.
int64_t parts_of_tokens(const Tensor& a, const Tensor& b, const Tensor& c) {
  constexpr int64_t kLong = 2048, kLeast = 256, kWanted = 264;
  const int64_t T = a.dim(0);
  const bool is_f32 =
      c.dtype() == DType::kF32 && a.dtype() != DType::kF64 && b.dtype() != DType::kF64;
  if (!is_f32 || T < kLong) return 1;
  const int64_t tiles = ceil_div(c.dim(0), kTile) * ceil_div(c.dim(1), kTile);
  for (int64_t parts = std::min(kWanted / tiles, T / kLeast); parts > 1; --parts)
    if (T % parts == 0) return parts;
  return 1;
}

void heads(Context& ctx, const char* op, const Tensor& a, const Operand& b, HeadRows rows,
           const Tensor& c, bool transposed) {
  const Operand first = b.rows(rows.first, a.dim(1) > 0 ? rows.count : 0);
  const Product p{.M = a.dim(0),
                  .N = c.dim(2),
                  .K = a.dim(2),
                  .a = by_rows(a),
                  .b = transposed ? by_cols(first) : by_rows(first),
                  .c = result(c),
                  .start = Start::kZero,
                  .a_head = a.stride(1),
                  .c_head = c.stride(1),
                  .b_head_rows = rows.stride,
                  .b_row_size = b.data.stride(0)};
  launch(ctx, op, p, a.dim(1), c);
}

// The weights of up to kMostExperts experts as a kernel parameter.
constexpr int64_t kMostExperts = 256;
struct ExpertWeights {
  int64_t first, count;  // experts [first, first + count) of the layout
  DType dtype;
  bool transposed;
  const void* data[kMostExperts];
  int64_t row_stride[kMostExperts];
  const float* scale[kMostExperts];
  int64_t scale_stride[kMostExperts], row_begin[kMostExperts];

  __device__ Matrix of(int64_t expert) const {
    const int64_t e = expert - first;
    return {data[e],
            dtype,
            transposed ? 1 : row_stride[e],
            transposed ? row_stride[e] : 1,
            scale[e],
            scale_stride[e],
            row_begin[e],
            !transposed};
  }
};

// Half a page of rows times its expert's weights; the other blocks of a page do the rest.
template <class R>
__global__ void grouped_kernel(int64_t N, int64_t K, LayoutView layout, PagedView a,
                               const __grid_constant__ ExpertWeights w, PagedView c, Start start) {
  __shared__ TileMemory<R> memory;
  constexpr int64_t kParts = kPageRows / kTile;
  const int64_t position = blockIdx.y / kParts, row = blockIdx.y % kParts * kTile;
  if (position >= layout.num_positions()) return;
  const int64_t expert = layout.expert_of(position), rows = layout.rows_at(expert, position);
  if (expert < w.first || expert >= w.first + w.count || row >= rows) return;
  const int64_t a_at = a.page_offset(position), c_at = c.page_offset(position);
  if (a_at < 0 || c_at < 0) return;
  const Matrix am{advance(a.data, a.dtype, a_at), a.dtype, a.row_stride, 1};
  const Result cr{const_cast<void*>(advance(c.data, c.dtype, c_at)), c.dtype, c.row_stride};
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kTile;
  matmul_tile(row, rows, col, N, K, am, w.of(expert), cr, start, memory);
}

void grouped(Context& ctx, const char* op, const ExpertLayout& layout, const PagedRows& a,
             std::span<const Operand> w, const PagedRows& c, bool transposed, Start start) {
  const int64_t N = c.slab.dim(2), K = a.slab.dim(2), E = layout.num_experts();
  const int64_t P = std::min(num_places(a), num_places(c));
  if (N == 0 || P == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(N, kTile)),
                  static_cast<unsigned>(P * (kPageRows / kTile)));
  HADAL_CHECK(grid.y <= 65535, op, ": ", P,
              " pages are more than a CUDA grid has; use smaller micro-batches");
  for (int64_t first = 0; first < E; first += kMostExperts) {
    ExpertWeights table{};
    table.first = first;
    table.count = std::min(kMostExperts, E - first);
    table.dtype = w[static_cast<size_t>(first)].data.dtype();
    table.transposed = transposed;
    for (int64_t i = 0; i < table.count; ++i) {
      const Operand& o = w[static_cast<size_t>(first + i)];
      HADAL_CHECK(o.data.dtype() == table.dtype, op, ": the weights of experts are ",
                  dtype_name(table.dtype), " and ", dtype_name(o.data.dtype()),
                  "; on CUDA all must have one type");
      table.data[i] = o.data.raw();
      table.row_stride[i] = o.data.stride(0);
      table.row_begin[i] = o.row_begin;
      if (o.scale.empty()) continue;
      table.scale[i] = o.scale.data<float>();
      table.scale_stride[i] = o.scale.stride(0);
    }
    with_arithmetic({a.slab.dtype(), table.dtype, c.slab.dtype()}, [&]<class R>(R) {
      grouped_kernel<R><<<grid, kThreads, 0, stream_of(ctx)>>>(
          N, K, LayoutView(layout), PagedView(a), table, PagedView(c), start);
    });
    check_launch(ctx, op, c.slab);
  }
}

// The gradients of up to kMostExperts experts as a kernel parameter.
struct ExpertGrads {
  int64_t first;
  DType dtype;
  void* data[kMostExperts];
  int64_t row_stride[kMostExperts];
};

// One tile of dw[e] += a^T b over the expert's rows, page after page.
template <class R>
__global__ void grouped_tn_kernel(int64_t N, int64_t K, LayoutView layout, PagedView a, PagedView b,
                                  const __grid_constant__ ExpertGrads dw) {
  __shared__ TileMemory<R> memory;
  const int64_t expert = dw.first + blockIdx.z;
  const int64_t begin = layout.page_begin[expert], end = layout.page_begin[expert + 1];
  if (begin == end) return;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kTile;
  const Result c{dw.data[blockIdx.z], dw.dtype, dw.row_stride[blockIdx.z]};
  Sums<R> sums;
  begin_tile(row, N, col, K, c, Start::kOld, sums);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t a_at = a.page_offset(p), b_at = b.page_offset(p);
    if (a_at < 0 || b_at < 0) continue;
    const Matrix am{advance(a.data, a.dtype, a_at), a.dtype, 1, a.row_stride};
    const Matrix bm{advance(b.data, b.dtype, b_at), b.dtype, 1, b.row_stride};
    multiply_tile(row, N, col, K, layout.rows_at(expert, p), am, bm, sums, memory);
  }
  end_tile(row, N, col, K, c, sums);
}

}  // namespace

void gemm_nt(Context& ctx, In a, const Operand& b, Out c) {
  if (sm90::gemm(ctx, "gemm_nt", sm90::Bf16Layout::kNt, a, b, c, Start::kZero)) return;
  launch(ctx, "gemm_nt",
         {a.dim(0), b.data.dim(0), a.dim(1), by_rows(a), by_rows(b), result(c), Start::kZero}, 1,
         c);
}

void gemm_nt_acc(Context& ctx, In a, const Operand& b, Acc c) {
  if (sm90::gemm(ctx, "gemm_nt_acc", sm90::Bf16Layout::kNt, a, b, c, Start::kOld)) return;
  launch(ctx, "gemm_nt_acc",
         {a.dim(0), b.data.dim(0), a.dim(1), by_rows(a), by_rows(b), result(c), Start::kOld}, 1, c);
}

void gemm_nn(Context& ctx, In a, const Operand& b, Out c) {
  if (sm90::gemm(ctx, "gemm_nn", sm90::Bf16Layout::kNn, a, b, c, Start::kZero)) return;
  launch(ctx, "gemm_nn",
         {a.dim(0), b.data.dim(1), a.dim(1), by_rows(a), by_cols(b), result(c), Start::kZero}, 1,
         c);
}

void gemm_nn_acc(Context& ctx, In a, const Operand& b, Acc c) {
  if (sm90::gemm(ctx, "gemm_nn_acc", sm90::Bf16Layout::kNn, a, b, c, Start::kOld)) return;
  launch(ctx, "gemm_nn_acc",
         {a.dim(0), b.data.dim(1), a.dim(1), by_rows(a), by_cols(b), result(c), Start::kOld}, 1, c);
}

void gemm_tn_acc(Context& ctx, In a, In b, Acc c) {
  if (sm90::gemm(ctx, "gemm_tn_acc", sm90::Bf16Layout::kTn, a, Operand(b), c, Start::kOld)) return;
  const int64_t S = parts_of_tokens(a, b, c);
  if (S > 1) {
    const int64_t M = a.dim(1), N = b.dim(1), part = a.dim(0) / S;
    Tensor parts;
    const Block memory = ctx.memory.take_tensor(DType::kF32, {S, M, N}, &parts);
    Product p{.M = M,
              .N = N,
              .K = part,
              .a = by_cols(static_cast<const Tensor&>(a)),
              .b = by_cols(static_cast<const Tensor&>(b)),
              .c = result(parts.view({S * M, N})),
              .start = Start::kZero};
    p.a_head = part * a.stride(0);
    p.b_head_rows = part;
    p.b_row_size = b.stride(0);
    p.c_head = M * N;
    launch(ctx, "gemm_tn_acc", p, S, c);
    return add_parts(ctx, "gemm_tn_acc", parts, Start::kOld, c);
  }
  launch(ctx, "gemm_tn_acc",
         {a.dim(1), b.dim(1), a.dim(0), by_cols(static_cast<const Tensor&>(a)),
          by_cols(static_cast<const Tensor&>(b)), result(c), Start::kOld},
         1, c);
}

void gemm_nt_heads(Context& ctx, In a, const Operand& b, HeadRows rows, Out c) {
  if (sm90::gemm_heads(ctx, "gemm_nt_heads", sm90::Bf16Layout::kNt, a, b, rows, c)) return;
  heads(ctx, "gemm_nt_heads", a, b, rows, c, false);
}

void gemm_nn_heads(Context& ctx, In a, const Operand& b, HeadRows rows, Out c) {
  if (sm90::gemm_heads(ctx, "gemm_nn_heads", sm90::Bf16Layout::kNn, a, b, rows, c)) return;
  heads(ctx, "gemm_nn_heads", a, b, rows, c, true);
}

void grouped_gemm_nt(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                     std::span<const Operand> w, const PagedRows& c) {
  if (sm90::grouped_gemm(ctx, "grouped_gemm_nt", sm90::Bf16Layout::kNt, layout, a, w, c,
                         Start::kZero))
    return;
  grouped(ctx, "grouped_gemm_nt", layout, a, w, c, false, Start::kZero);
}

void grouped_gemm_nn(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                     std::span<const Operand> w, const PagedRows& c) {
  if (sm90::grouped_gemm(ctx, "grouped_gemm_nn", sm90::Bf16Layout::kNn, layout, a, w, c,
                         Start::kZero))
    return;
  grouped(ctx, "grouped_gemm_nn", layout, a, w, c, true, Start::kZero);
}

void grouped_gemm_nn_acc(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const Operand> w, const PagedRows& c) {
  if (sm90::grouped_gemm(ctx, "grouped_gemm_nn_acc", sm90::Bf16Layout::kNn, layout, a, w, c,
                         Start::kOld))
    return;
  grouped(ctx, "grouped_gemm_nn_acc", layout, a, w, c, true, Start::kOld);
}

void grouped_gemm_tn_acc(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         const PagedRows& b, std::span<const Tensor> dw) {
  if (sm90::grouped_gemm_tn_acc(ctx, layout, a, b, dw)) return;
  const int64_t N = a.slab.dim(2), K = b.slab.dim(2), E = layout.num_experts();
  if (N == 0 || K == 0) return;
  for (int64_t first = 0; first < E; first += kMostExperts) {
    const int64_t count = std::min(kMostExperts, E - first);
    ExpertGrads table{};
    table.first = first;
    table.dtype = dw[static_cast<size_t>(first)].dtype();
    for (int64_t i = 0; i < count; ++i) {
      const Tensor& g = dw[static_cast<size_t>(first + i)];
      HADAL_CHECK(g.dtype() == table.dtype,
                  "grouped_gemm_tn_acc: the gradients of experts must have one type");
      table.data[i] = g.raw();
      table.row_stride[i] = g.stride(0);
    }
    const dim3 grid(static_cast<unsigned>(ceil_div(K, kTile)),
                    static_cast<unsigned>(ceil_div(N, kTile)), static_cast<unsigned>(count));
    with_arithmetic({a.slab.dtype(), b.slab.dtype(), table.dtype}, [&]<class R>(R) {
      grouped_tn_kernel<R><<<grid, kThreads, 0, stream_of(ctx)>>>(
          N, K, LayoutView(layout), PagedView(a), PagedView(b), table);
    });
    check_launch(ctx, "grouped_gemm_tn_acc", a.slab);
  }
}

}  // namespace hadal::ops::cuda
