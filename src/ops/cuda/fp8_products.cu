// Block-scaled FP8 products on CUDA: Hopper's kernels where alignment allows, else plain ones.
//
//   M rows   N columns   K inner width   E experts   P pages
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/add_parts.h"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/pages.cuh"
#include "ops/cuda/fp8_gemm/config.h"
#include "ops/cuda/fp8_wgrad/config.h"
#include "ops/cuda/operands.h"
#include "ops/fp8.h"

namespace hadal::ops::cuda {
namespace {

using hadal::cuda::Fp8GemmArgs;
using hadal::cuda::Fp8WgradArgs;

// One side of a plain product: elements of 128 of the inner width, `block` apart from step to step.
struct Side {
  const e4m3* data;
  int64_t row, block;  // elements from row to row, from step to step
  const float* scale;
  int64_t scale_row, scale_block;
  int64_t rows_of_scale;  // rows that share a scale

  __device__ float scale_of(int64_t r, int64_t step) const {
    return scale[r / rows_of_scale * scale_row + step * scale_block];
  }
};

constexpr int kEdge = 16;  // of a plain tile

int short_sums() {
  static const bool wanted = env::fp8_short_sums();
  return wanted;
}

// The element (row, col) of c: one chain of products within 128 of K, scaled sums in order.
struct PlainProduct {
  int64_t M, N, K;
  Side a, b;
  int short_sums = cuda::short_sums();

  __device__ float sum(int64_t row, int64_t col, float (&ta)[kEdge][kTileSize + 1],
                       float (&tb)[kEdge][kTileSize + 1]) const {
    const int64_t row0 = row - threadIdx.y, col0 = col - threadIdx.x;
    const int thread = static_cast<int>(threadIdx.y) * kEdge + static_cast<int>(threadIdx.x);
    float sum = 0.0f;
    for (int64_t k0 = 0, step = 0; k0 < K; k0 += kTileSize, ++step) {
      const int64_t count = min(kTileSize, K - k0);
      for (int i = thread; i < kEdge * kTileSize; i += kEdge * kEdge) {
        const int r = i / kTileSize, k = i % kTileSize;
        ta[r][k] =
            row0 + r < M && k < count ? widen(a.data[(row0 + r) * a.row + step * a.block + k]) : 0;
        tb[r][k] =
            col0 + r < N && k < count ? widen(b.data[(col0 + r) * b.row + step * b.block + k]) : 0;
      }
      __syncthreads();
      if (row < M && col < N) {
        float partial = 0.0f;
        for (int k = 0; k < count; ++k)
          partial = __fmaf_rn(ta[threadIdx.y][k], tb[threadIdx.x][k], partial);
        sum = __fmaf_rn(partial, a.scale_of(row, step) * b.scale_of(col, step), sum);
        if (short_sums) sum = short_sum(sum);
      }
      __syncthreads();
    }
    return sum;
  }
};

__device__ void put(void* c, DType dtype, int64_t at, float sum, Start start) {
  if (start == Start::kOld) sum = load<float>(c, dtype, at) + sum;
  store(c, dtype, at, sum);
}

__global__ void plain_kernel(PlainProduct p, void* c, DType dtype, int64_t c_stride, Start start) {
  __shared__ float ta[kEdge][kTileSize + 1], tb[kEdge][kTileSize + 1];
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kEdge + threadIdx.y;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kEdge + threadIdx.x;
  const float sum = p.sum(row, col, ta, tb);
  if (row < p.M && col < p.N) put(c, dtype, row * c_stride + col, sum, start);
}

// Rows of experts; the weights lie at even distances.
__global__ void plain_pages_kernel(LayoutView layout, PlainProduct p, PagedView a, PagedView c,
                                   int64_t w_next, int64_t scale_next, int64_t first, int64_t count,
                                   Start start) {
  __shared__ float ta[kEdge][kTileSize + 1], tb[kEdge][kTileSize + 1];
  const int64_t position = blockIdx.z;
  if (position >= layout.num_positions()) return;
  const int64_t expert = layout.expert_of(position);
  const int64_t a_at = a.page_offset(position), c_at = c.page_offset(position);
  if (expert < first || expert >= first + count || a_at < 0 || c_at < 0) return;
  p.M = layout.rows_at(expert, position);
  p.a.data += a_at;
  p.a.scale += a_at / a.page_stride * kPageRows;
  p.b.data += (expert - first) * w_next;
  p.b.scale += (expert - first) * scale_next;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kEdge + threadIdx.y;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kEdge + threadIdx.x;
  const float sum = p.sum(row, col, ta, tb);
  if (row < p.M && col < p.N) put(c.data, c.dtype, c_at + row * c.row_stride + col, sum, start);
}

// The gradient of one expert.
__global__ void plain_gradient_kernel(LayoutView layout, int64_t expert, PlainProduct p, float* c,
                                      int64_t c_stride) {
  __shared__ float ta[kEdge][kTileSize + 1], tb[kEdge][kTileSize + 1];
  const int64_t begin = layout.page_begin[expert];
  const int64_t pages = layout.page_begin[expert + 1] - begin;
  if (pages == 0) return;
  p.a.data += begin * p.a.block;
  p.a.scale += begin * p.a.scale_block;
  p.b.data += begin * p.b.block;
  p.b.scale += begin * p.b.scale_block;
  p.K = pages * kTileSize;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kEdge + threadIdx.y;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kEdge + threadIdx.x;
  const float sum = p.sum(row, col, ta, tb);
  if (row < p.M && col < p.N) put(c, DType::kF32, row * c_stride + col, sum, Start::kOld);
}

dim3 plain_grid(int64_t M, int64_t N, int64_t batches) {
  return dim3(static_cast<unsigned>(ceil_div(N, kEdge)), static_cast<unsigned>(ceil_div(M, kEdge)),
              static_cast<unsigned>(batches));
}
const dim3 kPlainBlock(kEdge, kEdge);

const Tensor& data_of(const Operand& w, bool transposed) {
  return transposed ? w.transposed : w.data;
}
const Tensor& scale_of(const Operand& w, bool transposed) {
  return transposed ? w.transposed_scale : w.scale;
}

Side side_of(const Operand& w, bool transposed) {
  const Tensor &d = data_of(w, transposed), &s = scale_of(w, transposed);
  return {d.data<e4m3>(), d.stride(0), kTileSize, s.data<float>(), s.stride(0), 1, kTileSize};
}
Side side_of(const TileColumns& c) {
  const int64_t W = c.data.dim(1);
  return {c.data.data<e4m3>(), kTileSize, W * kTileSize, c.scale.data<float>(), 1, W, 1};
}

bool is_aligned_rows(const Tensor& t, int64_t row_stride) {
  return is_aligned(t) && row_stride % 16 == 0;
}
bool is_result(const Tensor& c, int64_t n, int64_t row_stride, int64_t page_stride) {
  return is_aligned(c) && n % 2 == 0 && row_stride % 2 == 0 && page_stride % 2 == 0;
}

// What the arguments say of the weights; false if the kernel cannot read them.
bool set_weights(std::span<const Operand> w, bool transposed, Fp8GemmArgs* args) {
  const Tensor &d = data_of(w[0], transposed), &s = scale_of(w[0], transposed);
  args->w_batch_stride = distance_between(
      w, [&](const Operand& o) -> const Tensor& { return data_of(o, transposed); });
  args->scale_w_batch_stride = distance_between(
      w, [&](const Operand& o) -> const Tensor& { return scale_of(o, transposed); });
  if (args->w_batch_stride < 0 || args->scale_w_batch_stride < 0) return false;
  args->w = d.raw();
  args->w_row_stride = d.stride(0);
  args->scale_w = s.data<float>();
  args->scale_w_row_stride = s.stride(0);
  args->n = static_cast<int>(d.dim(0));
  args->k = static_cast<int>(d.dim(1));
  args->num_experts = static_cast<int>(w.size());
  return is_aligned_rows(d, d.stride(0)) && args->w_batch_stride % 16 == 0;
}

bool dense_sm90(Context& ctx, const char* op, const TileRows& a, const Operand& w, bool transposed,
                const Tensor& c, Start start) {
  if (!has_sm90(ctx) || !is_aligned_rows(a.data, a.data.stride(0)) || !is_aligned(a.scale) ||
      a.scale.stride(0) % 4 != 0 || !is_result(c, c.dim(1), c.stride(0), 0))
    return false;
  Fp8GemmArgs args{};
  if (!set_weights(std::span(&w, 1), transposed, &args)) return false;
  args.a = a.data.raw();
  args.slab_rows = a.data.dim(0);
  args.a_row_stride = a.data.stride(0);
  args.scale_a = a.scale.data<float>();
  args.scale_stride = a.scale.stride(0);
  args.c = c.raw();
  args.c_row_stride = c.stride(0);
  args.c_page_stride = kPageRows * c.stride(0);
  args.c_is_f32 = c.dtype() == DType::kF32;
  args.accumulate = start == Start::kOld;
  args.rows = static_cast<int>(c.dim(0));
  args.places = args.a_pages = args.c_pages = static_cast<int>(num_tiles(c.dim(0)));
  args.num_sms = num_sms(ctx);
  args.short_sums = short_sums();
  fp8_gemm_sm90(args, stream_of(ctx));
  check_launch(ctx, op, c);
  return true;
}

void dense(Context& ctx, const char* op, const TileRows& a, const Operand& w, const Tensor& c,
           bool transposed, Start start) {
  const int64_t M = c.dim(0), N = c.dim(1);
  if (M == 0 || N == 0) return;
  if (dense_sm90(ctx, op, a, w, transposed, c, start)) return;
  const PlainProduct p{.M = M,
                       .N = N,
                       .K = a.data.dim(1),
                       .a = {a.data.data<e4m3>(), a.data.stride(0), kTileSize,
                             a.scale.data<float>(), 1, a.scale.stride(0), 1},
                       .b = side_of(w, transposed)};
  plain_kernel<<<plain_grid(M, N, 1), kPlainBlock, 0, stream_of(ctx)>>>(p, c.raw(), c.dtype(),
                                                                        c.stride(0), start);
  check_launch(ctx, op, c);
}

bool grouped_sm90(Context& ctx, const char* op, const ExpertLayout& layout, const PagedRows& a,
                  std::span<const Operand> w, const PagedRows& c, bool transposed, Start start) {
  const Tensor &rows = a.slab, &result = c.slab;
  if (!has_sm90(ctx) || !is_aligned_rows(rows, rows.stride(1)) || !is_aligned(a.scale) ||
      rows.stride(0) != kPageRows * rows.stride(1) ||
      !is_result(result, result.dim(2), result.stride(1), result.stride(0)) || !has_dense_list(a) ||
      !has_dense_list(c))
    return false;
  Fp8GemmArgs args{};
  if (!set_weights(w, transposed, &args)) return false;
  args.a = rows.raw();
  args.slab_rows = rows.dim(0) * kPageRows;
  args.a_row_stride = rows.stride(1);
  args.scale_a = a.scale.data<float>();
  args.scale_stride = a.scale.stride(0);
  args.c = result.raw();
  args.c_row_stride = result.stride(1);
  args.c_page_stride = result.stride(0);
  args.c_is_f32 = result.dtype() == DType::kF32;
  args.accumulate = start == Start::kOld;
  args.counts = layout.counts.data<int32_t>();
  args.page_begin = layout.page_begin.data<int32_t>();
  args.a_page = page_list(a);
  args.c_page = page_list(c);
  args.places = static_cast<int>(std::min(num_places(a), num_places(c)));
  args.a_pages = static_cast<int>(rows.dim(0));
  args.c_pages = static_cast<int>(result.dim(0));
  args.num_sms = num_sms(ctx);
  args.short_sums = short_sums();
  fp8_gemm_sm90(args, stream_of(ctx));
  check_launch(ctx, op, result);
  return true;
}

void grouped(Context& ctx, const char* op, const ExpertLayout& layout, const PagedRows& a,
             std::span<const Operand> w, const PagedRows& c, bool transposed, Start start) {
  const int64_t N = c.slab.dim(2), P = std::min(num_places(a), num_places(c));
  if (N == 0 || P == 0 || w.empty()) return;
  if (grouped_sm90(ctx, op, layout, a, w, c, transposed, start)) return;
  HADAL_CHECK(P <= 65535, op, ": ", P, " pages are more than a CUDA grid has");
  int64_t data_next = distance_between(
      w, [&](const Operand& o) -> const Tensor& { return data_of(o, transposed); });
  int64_t scale_next = distance_between(
      w, [&](const Operand& o) -> const Tensor& { return scale_of(o, transposed); });
  const bool even = data_next >= 0 && scale_next >= 0;
  const auto E = static_cast<int64_t>(w.size());
  for (int64_t first = 0; first < E; first += even ? E : 1) {
    const PlainProduct p{.M = kPageRows,
                         .N = N,
                         .K = a.slab.dim(2),
                         .a = {a.slab.data<e4m3>(), a.slab.stride(1), kTileSize,
                               a.scale.data<float>(), 1, a.scale.stride(0), 1},
                         .b = side_of(w[static_cast<size_t>(first)], transposed)};
    plain_pages_kernel<<<plain_grid(kPageRows, N, P), kPlainBlock, 0, stream_of(ctx)>>>(
        LayoutView(layout), p, PagedView(a), PagedView(c), even ? data_next : 0,
        even ? scale_next : 0, first, even ? E : 1, start);
    check_launch(ctx, op, c.slab);
  }
}

bool gradient_reads(const TileColumns& a, const TileColumns& b) {
  return is_aligned(a.data) && is_aligned(b.data) && is_aligned(a.scale) && is_aligned(b.scale) &&
         a.data.dim(1) % 4 == 0 && b.data.dim(1) % 4 == 0;
}
bool gradient_writes(const Tensor& c) { return is_aligned(c) && c.stride(0) % 4 == 0; }

Fp8WgradArgs gradient_args(Context& ctx, const TileColumns& a, const TileColumns& b,
                           const Tensor& c) {
  Fp8WgradArgs args{};
  args.a = a.data.raw();
  args.scale_a = a.scale.data<float>();
  args.b = b.data.raw();
  args.scale_b = b.scale.data<float>();
  args.c = c.data<float>();
  args.c_row_stride = c.stride(0);
  args.accumulate = 1;
  args.n = static_cast<int>(a.data.dim(1));
  args.k = static_cast<int>(b.data.dim(1));
  args.pages = static_cast<int>(std::min(a.data.dim(0), b.data.dim(0)));
  args.batches = 1;
  args.num_sms = num_sms(ctx);
  args.short_sums = short_sums();
  return args;
}

// Parts that the pages of a gradient of few tiles are cut into; the parts are added in order. Their
// number follows from shapes alone.
int64_t parts_of_pages(int64_t N, int64_t K, int64_t pages) {
  constexpr int64_t kWanted = 132, kLeast = 8;
  const int64_t tiles = ceil_div(N, 256) * ceil_div(K, 128);
  return std::max<int64_t>(1, std::min(kWanted / tiles, pages / kLeast));
}

}  // namespace

void fp8_gemm_nt(Context& ctx, const TileRows& a, const Operand& w, Out c) {
  dense(ctx, "fp8_gemm_nt", a, w, c, false, Start::kZero);
}
void fp8_gemm_nn(Context& ctx, const TileRows& a, const Operand& w, Out c) {
  dense(ctx, "fp8_gemm_nn", a, w, c, true, Start::kZero);
}
void fp8_gemm_nn_acc(Context& ctx, const TileRows& a, const Operand& w, Acc c) {
  dense(ctx, "fp8_gemm_nn_acc", a, w, c, true, Start::kOld);
}

void fp8_gemm_tn_acc(Context& ctx, const TileColumns& a, const TileColumns& b, Acc c) {
  const int64_t N = c.dim(0), K = c.dim(1), pages = a.data.dim(0);
  if (N == 0 || K == 0 || pages == 0) return;
  if (!has_sm90(ctx) || !gradient_reads(a, b) || !gradient_writes(c)) {
    const PlainProduct p{.M = N, .N = K, .K = pages * kTileSize, .a = side_of(a), .b = side_of(b)};
    plain_kernel<<<plain_grid(N, K, 1), kPlainBlock, 0, stream_of(ctx)>>>(p, c.raw(), DType::kF32,
                                                                          c.stride(0), Start::kOld);
    return check_launch(ctx, "fp8_gemm_tn_acc", c);
  }
  Fp8WgradArgs args = gradient_args(ctx, a, b, c);
  const int64_t parts = parts_of_pages(N, K, pages);
  args.part_pages = static_cast<int>(ceil_div(pages, parts));
  args.batches = static_cast<int>(ceil_div(pages, args.part_pages));
  if (args.batches == 1) {
    fp8_wgrad_sm90(args, stream_of(ctx));
    return check_launch(ctx, "fp8_gemm_tn_acc", c);
  }
  Tensor sums;
  const Block memory = ctx.memory.take_tensor(DType::kF32, {args.batches, N, K}, &sums);
  args.c = sums.data<float>();
  args.c_row_stride = K;
  args.c_batch_stride = N * K;
  args.accumulate = 0;
  fp8_wgrad_sm90(args, stream_of(ctx));
  check_launch(ctx, "fp8_gemm_tn_acc", c);
  add_parts(ctx, "fp8_gemm_tn_acc", sums, Start::kOld, c);
}

void grouped_fp8_gemm_nt(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const Operand> w, const PagedRows& c) {
  grouped(ctx, "grouped_fp8_gemm_nt", layout, a, w, c, false, Start::kZero);
}
void grouped_fp8_gemm_nn(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                         std::span<const Operand> w, const PagedRows& c) {
  grouped(ctx, "grouped_fp8_gemm_nn", layout, a, w, c, true, Start::kZero);
}
void grouped_fp8_gemm_nn_acc(Context& ctx, const ExpertLayout& layout, const PagedRows& a,
                             std::span<const Operand> w, const PagedRows& c) {
  grouped(ctx, "grouped_fp8_gemm_nn_acc", layout, a, w, c, true, Start::kOld);
}

void grouped_fp8_gemm_tn_acc(Context& ctx, const ExpertLayout& layout, const TileColumns& a,
                             const TileColumns& b, std::span<const Tensor> dw) {
  if (dw.empty() || dw[0].num_elements() == 0 || a.data.dim(0) == 0) return;
  const int64_t next = distance_between(dw, [](const Tensor& t) -> const Tensor& { return t; });
  if (has_sm90(ctx) && gradient_reads(a, b) && gradient_writes(dw[0]) && next >= 0 &&
      next % 4 == 0) {
    Fp8WgradArgs args = gradient_args(ctx, a, b, dw[0]);
    args.c_batch_stride = next;
    args.batches = static_cast<int>(dw.size());
    args.page_begin = layout.page_begin.data<int32_t>();
    fp8_wgrad_sm90(args, stream_of(ctx));
    return check_launch(ctx, "grouped_fp8_gemm_tn_acc", a.data);
  }
  const int64_t N = a.data.dim(1), K = b.data.dim(1);
  for (size_t e = 0; e < dw.size(); ++e) {
    const PlainProduct p{.M = N, .N = K, .K = 0, .a = side_of(a), .b = side_of(b)};
    plain_gradient_kernel<<<plain_grid(N, K, 1), kPlainBlock, 0, stream_of(ctx)>>>(
        LayoutView(layout), static_cast<int64_t>(e), p, dw[e].data<float>(), dw[e].stride(0));
    check_launch(ctx, "grouped_fp8_gemm_tn_acc", dw[e]);
  }
}

}  // namespace hadal::ops::cuda
