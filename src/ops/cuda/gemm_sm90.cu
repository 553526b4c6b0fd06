// Matrix products on Hopper's own units: bf16_gemm, and gemv for few rows.
//
//   M, T rows   N output width   K inner width   H heads   E experts   P pages
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/add_parts.h"
#include "ops/cuda/dequantise.h"
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/pages.cuh"
#include "ops/cuda/gemm_sm90.h"
#include "ops/cuda/gemv/config.h"
#include "ops/cuda/operands.h"
#include "ops/quant.h"

namespace hadal::ops::cuda::sm90 {
namespace {

using hadal::cuda::Bf16GemmArgs;
using hadal::cuda::Bf16GemmConfig;
using hadal::cuda::Bf16Matrix;
using hadal::cuda::Bf16Work;
using hadal::cuda::GemvArgs;
using hadal::cuda::GemvConfig;
using hadal::cuda::GemvWeight;

bool is_bf16(const Tensor& t) { return t.dtype() == DType::kBF16; }
bool is_result(const Tensor& t) { return t.dtype() == DType::kBF16 || t.dtype() == DType::kF32; }
bool fits_int(std::initializer_list<int64_t> values) {
  for (int64_t value : values)
    if (value >= (int64_t{1} << 31)) return false;
  return true;
}

Bf16Matrix bf16_matrix(const Tensor& t) { return {t.raw(), t.dim(0), t.dim(1), t.stride(0), 1, 0}; }
Bf16Matrix bf16_matrix(const PagedRows& rows) {
  const Tensor& t = rows.slab;
  return {t.raw(), t.dim(1), t.dim(2), t.stride(1), t.dim(0), t.stride(0)};
}
// Head h of [T, H, W].
Bf16Matrix heads_of(const Tensor& t) {
  return {t.raw(), t.dim(0), t.dim(2), t.stride(0), t.dim(1), t.stride(1)};
}

bool writes(const Bf16GemmArgs& args) {
  return args.n % 2 == 0 && args.c_row_stride % 2 == 0 && args.c_batch_stride % 2 == 0 &&
         reinterpret_cast<uintptr_t>(args.c) % 8 == 0;
}
bool run(Context& ctx, const char* op, Bf16Layout layout, Bf16Work work, Bf16GemmArgs& args,
         const Tensor& c) {
  if (!bf16_gemm_reads(args.a) || !bf16_gemm_reads(args.b) || !writes(args)) return false;
  args.num_sms = num_sms(ctx);
  bf16_gemm_sm90(layout, work, args, stream_of(ctx));
  check_launch(ctx, op, c);
  return true;
}

bool is_block_fp8(const Operand& w) { return w.data.dtype() == DType::kE4M3 && !w.scale.empty(); }
// b as block FP8, and its scales.
void set_fp8_weight(const Operand& w, Bf16GemmArgs& args) {
  args.b_scale = w.scale.data<float>();
  args.b_scale_row_stride = w.scale.stride(0);
  args.b_scale_row = static_cast<int>(w.row_begin);
}
// The product with the weight read as FP8, where there are few rows.
bool run_fp8(Context& ctx, const char* op, Bf16Work work, Bf16GemmArgs& args, const Tensor& c) {
  if (!bf16_gemm_reads(args.a) || !bf16_gemm_reads_e4m3(args)) return false;
  bf16_gemm_e4m3_sm90(work, args, stream_of(ctx));
  check_launch(ctx, op, c);
  return true;
}
constexpr int64_t kFewRows = 64;  // that run_fp8() takes at once

// A weight as bf16: itself, or block FP8 dequantised into scratch.
struct Bf16Weight {
  Bf16Weight(Context& ctx, const Operand& w)
      : memory(ctx.memory.take(is_bf16(w.data) ? 0 : tensor_bytes(DType::kBF16, w.data.shape()))),
        data(is_bf16(w.data) ? w.data : memory.tensor(DType::kBF16, w.data.shape())) {
    if (!is_bf16(w.data)) dequantise_blocks(ctx, w, data);
  }
  Block memory;
  Tensor data;
};

GemvWeight gemv_weight(DType dtype) {
  return dtype == DType::kBF16  ? GemvWeight::kBF16
         : dtype == DType::kF32 ? GemvWeight::kF32
                                : GemvWeight::kE4M3;
}
// Whether gemv reads a weight: its type, and rows that start at 16 bytes.
bool gemv_reads(const Operand& w) {
  const DType dtype = w.data.dtype();
  if (dtype != DType::kBF16 && dtype != DType::kF32 && !(dtype == DType::kE4M3 && !w.scale.empty()))
    return false;
  return is_aligned(w.data) && w.data.stride(0) * element_bytes(dtype) % 16 == 0;
}
// Weight gradients of few tiles sum over parts of K on all SMs; the parts are then added in order.
// The number of parts follows from shapes alone.
struct SplitK {
  int64_t parts = 1, size = 0;  // size: K of a part

  SplitK(int64_t M, int64_t N, int64_t K) {
    constexpr int64_t kTileRows = 128, kTileCols = 128, kWanted = 264, kLeast = 1024, kDepth = 64;
    const int64_t tiles = ceil_div(M, kTileRows) * ceil_div(N, kTileCols);
    const int64_t most = K / kLeast;
    parts = std::min(kWanted / tiles, most);
    if (parts < 2) {
      parts = 1;
      return;
    }
    size = ceil_div(ceil_div(K, parts), kDepth) * kDepth;
    parts = ceil_div(K, size);
  }
};

// The parts of the arguments that follow from one weight.
GemvArgs gemv_args(const Operand& w) {
  GemvArgs args{};
  args.type = gemv_weight(w.data.dtype());
  args.w = w.data.raw();
  args.w_row_stride = w.data.stride(0);
  args.scale_row = static_cast<int>(w.row_begin);
  if (!w.scale.empty()) {
    args.scale = w.scale.data<float>();
    args.scale_row_stride = w.scale.stride(0);
  }
  return args;
}

constexpr int64_t kTerms = 3;  // bf16 numbers whose sum is an f32 number, but for its last bit

// Where a matrix of f32 is written as bf16: three copies, `offset` apart, each of one of the terms
// (0 the nearest bf16, 1 that of the rest, 2 of the rest of it).
struct Terms {
  Tensor data;
  int64_t row_stride;
  int64_t offset[kTerms];
  int term[kTerms];
};

__global__ void split_kernel(int64_t rows, int64_t cols, const float* from, int64_t from_stride,
                             bf16* to, Terms terms) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * cols) return;
  const int64_t row = i / cols, col = i % cols;
  float rest = from[row * from_stride + col];
  bf16 term[kTerms];
#pragma unroll
  for (int t = 0; t < kTerms; ++t) {
    term[t] = narrow_bf16(rest);
    rest -= widen(term[t]);
  }
#pragma unroll
  for (int p = 0; p < kTerms; ++p) {
    const int t = terms.term[p];
    to[row * terms.row_stride + col + terms.offset[p]] = t == 0   ? term[0]
                                                         : t == 1 ? term[1]
                                                                  : term[2];
  }
}

void split(Context& ctx, const char* op, const Tensor& from, const Terms& terms) {
  const int64_t count = from.num_elements();
  split_kernel<<<static_cast<unsigned>(ceil_div(count, kThreads)), kThreads, 0, stream_of(ctx)>>>(
      from.dim(0), from.dim(1), from.data<float>(), from.stride(0), terms.data.data<bf16>(), terms);
  check_launch(ctx, op, from);
}

bool few_rows(const Context& ctx, int64_t rows) {
  return ctx.numerics == Numerics::kFastest && rows <= GemvConfig::kMaxRows;
}

bool gemv(Context& ctx, const char* op, const Tensor& a, const Operand& b, const Tensor& c,
          Start start) {
  if (!gemv_reads(b) || !is_aligned(a) || a.stride(0) % 8 != 0 || a.dim(1) % 16 != 0) return false;
  GemvArgs args = gemv_args(b);
  args.a = a.raw();
  args.a_row_stride = a.stride(0);
  args.c = c.raw();
  args.c_row_stride = c.stride(0);
  args.c_is_f32 = c.dtype() == DType::kF32;
  args.accumulate = start == Start::kOld;
  args.m = static_cast<int>(a.dim(0));
  args.n = static_cast<int>(c.dim(1));
  args.k = static_cast<int>(a.dim(1));
  args.batches = 1;
  gemv_nt(args, stream_of(ctx));
  check_launch(ctx, op, c);
  return true;
}

// c = (or +=) a w^T with w f32 (the gate's): the products of a with the terms of w, one after the
// other in one chain over K.
bool gemm_f32_weight(Context& ctx, const char* op, const Tensor& a, const Tensor& w,
                     const Tensor& c, Start start) {
  const int64_t N = w.dim(0), K = w.dim(1);
  if (K % Bf16GemmConfig<128>::kDepth != 0 || !fits_int({kTerms * K})) return false;
  Tensor terms;
  const Block memory = ctx.memory.take_tensor(DType::kBF16, {N, kTerms * K}, &terms);
  split(ctx, op, w, {terms, kTerms * K, {0, K, 2 * K}, {0, 1, 2}});
  Bf16GemmArgs args{};
  args.a = bf16_matrix(a);
  args.b = bf16_matrix(terms);
  args.c = c.raw();
  args.c_row_stride = c.stride(0);
  args.m = static_cast<int>(c.dim(0));
  args.n = static_cast<int>(N);
  args.k = static_cast<int>(kTerms * K);
  args.k_repeat = static_cast<int>(K);
  args.batches = 1;
  args.c_is_f32 = c.dtype() == DType::kF32;
  args.accumulate = start == Start::kOld;
  return run(ctx, op, Bf16Layout::kNt, Bf16Work::kBatch, args, c);
}

// c = (or +=) a b with both f32 and c bf16 (through the gate): the products of the first terms and
// of first and second, whose error is far below the result's rounding, in one chain over K.
bool gemm_f32_nn(Context& ctx, const char* op, const Tensor& a, const Tensor& b, const Tensor& c,
                 Start start) {
  const int64_t T = a.dim(0), N = a.dim(1), K = b.dim(1);
  if (N % 8 != 0 || K % 8 != 0) return false;
  Tensor a_terms, b_terms;
  const Block a_memory = ctx.memory.take_tensor(DType::kBF16, {T, kTerms * N}, &a_terms);
  const Block b_memory = ctx.memory.take_tensor(DType::kBF16, {kTerms * N, K}, &b_terms);
  split(ctx, op, a, {a_terms, kTerms * N, {0, N, 2 * N}, {0, 0, 1}});
  split(ctx, op, b, {b_terms, K, {0, N * K, 2 * N * K}, {0, 1, 0}});
  return gemm(ctx, op, Bf16Layout::kNn, a_terms, Operand(b_terms), c, start);
}

// c += a^T b with a f32 and b bf16 (the gate's gradient): a product for each term of a.
bool gemm_f32_tn(Context& ctx, const char* op, const Tensor& a, const Tensor& b, const Tensor& c) {
  const int64_t T = a.dim(0), N = a.dim(1);
  if (N % 8 != 0 || !is_aligned(b) || b.stride(0) % 8 != 0) return false;
  Tensor terms;
  const Block memory = ctx.memory.take_tensor(DType::kBF16, {kTerms, T, N}, &terms);
  split(ctx, op, a, {terms, N, {0, T * N, 2 * T * N}, {0, 1, 2}});
  for (int64_t t = 0; t < kTerms; ++t)
    if (!gemm(ctx, op, Bf16Layout::kTn, terms.row(t), Operand(b), c, Start::kOld)) return false;
  return true;
}

}  // namespace

bool gemm(Context& ctx, const char* op, Bf16Layout layout, const Tensor& a, const Operand& b,
          const Tensor& c, Start start) {
  if (has_sm90(ctx) && a.dtype() == DType::kF32 && a.num_elements() > 0 && c.num_elements() > 0) {
    if (layout == Bf16Layout::kNn && b.data.dtype() == DType::kF32 && is_bf16(c))
      return gemm_f32_nn(ctx, op, a, b.data, c, start);
    if (layout == Bf16Layout::kTn && is_bf16(b.data) && c.dtype() == DType::kF32)
      return gemm_f32_tn(ctx, op, a, b.data, c);
  }
  if (!has_sm90(ctx) || !is_bf16(a) || !is_result(c)) return false;
  const int64_t M = c.dim(0), N = c.dim(1), K = a.dim(layout == Bf16Layout::kTn ? 0 : 1);
  if (M == 0 || N == 0 || K == 0 || !fits_int({M, N, K})) return false;
  if (layout == Bf16Layout::kNt && few_rows(ctx, M) && gemv(ctx, op, a, b, c, start)) return true;
  if (layout == Bf16Layout::kNt && b.data.dtype() == DType::kF32)
    return gemm_f32_weight(ctx, op, a, b.data, c, start);
  if (!is_bf16(b.data) && !is_block_fp8(b)) return false;
  Bf16GemmArgs args{};
  args.a = bf16_matrix(a);
  args.c = c.raw();
  args.c_row_stride = c.stride(0);
  args.m = static_cast<int>(M);
  args.n = static_cast<int>(N);
  args.k = static_cast<int>(K);
  args.batches = 1;
  args.c_is_f32 = c.dtype() == DType::kF32;
  args.accumulate = start == Start::kOld;
  if (is_block_fp8(b) && layout == Bf16Layout::kNt && M <= kFewRows) {
    args.b = bf16_matrix(b.data);
    set_fp8_weight(b, args);
    if (run_fp8(ctx, op, Bf16Work::kBatch, args, c)) return true;
  }
  const Bf16Weight w(ctx, b);
  args.b = bf16_matrix(w.data);
  const SplitK split(M, N, K);
  if (layout != Bf16Layout::kTn || !args.c_is_f32 || split.parts == 1)
    return run(ctx, op, layout, Bf16Work::kBatch, args, c);

  Tensor parts;
  const Block memory = ctx.memory.take_tensor(DType::kF32, {split.parts, M, N}, &parts);
  args.c = parts.raw();
  args.c_row_stride = N;
  args.c_batch_stride = M * N;
  args.batches = static_cast<int>(split.parts);
  args.k_split = static_cast<int>(split.size);
  args.accumulate = 0;
  if (!run(ctx, op, layout, Bf16Work::kBatch, args, c)) return false;
  add_parts(ctx, op, parts, start, c);
  return true;
}

bool gemm_heads(Context& ctx, const char* op, Bf16Layout layout, const Tensor& a, const Operand& b,
                HeadRows rows, const Tensor& c) {
  const int64_t T = a.dim(0), H = a.dim(1), K = a.dim(2), N = c.dim(2);
  if (!has_sm90(ctx) || !is_bf16(a) || !is_result(c) || T == 0 || H == 0 || K == 0 || N == 0)
    return false;
  if (!fits_int({T, N, K})) return false;
  const Operand first = b.rows(rows.first, rows.count);
  const bool is_nt = layout == Bf16Layout::kNt;
  const bool gemv_takes = is_nt ? K % 16 == 0 : is_bf16(b.data) && N % 8 == 0;
  if (few_rows(ctx, T) && gemv_takes && gemv_reads(first) && is_aligned(a) &&
      a.stride(0) % 8 == 0 && a.stride(1) % 8 == 0) {
    GemvArgs args = gemv_args(first);
    args.a = a.raw();
    args.a_row_stride = a.stride(0);
    args.a_batch_stride = a.stride(1);
    args.w_batch_stride = rows.stride * b.data.stride(0);
    args.scale_batch_rows = static_cast<int>(rows.stride);
    args.c = c.raw();
    args.c_row_stride = c.stride(0);
    args.c_batch_stride = c.stride(1);
    args.c_is_f32 = c.dtype() == DType::kF32;
    args.m = static_cast<int>(T);
    args.n = static_cast<int>(N);
    args.k = static_cast<int>(K);
    args.batches = static_cast<int>(H);
    if (is_nt)
      gemv_nt(args, stream_of(ctx));
    else
      gemv_nn(args, stream_of(ctx));
    check_launch(ctx, op, c);
    return true;
  }
  if (!is_bf16(b.data) && !is_block_fp8(b)) return false;
  Bf16GemmArgs args{};
  args.a = heads_of(a);
  args.c = c.raw();
  args.c_row_stride = c.stride(0);
  args.c_batch_stride = c.stride(1);
  args.m = static_cast<int>(T);
  args.n = static_cast<int>(N);
  args.k = static_cast<int>(K);
  args.batches = static_cast<int>(H);
  args.c_is_f32 = c.dtype() == DType::kF32;
  const auto of_head = [&](const Tensor& w) {
    return Bf16Matrix{w.rows(rows.first, rows.count).raw(),
                      rows.count,
                      w.dim(1),
                      w.stride(0),
                      H,
                      rows.stride * w.stride(0)};
  };
  if (is_block_fp8(b) && is_nt && T <= kFewRows) {
    args.b = of_head(b.data);
    set_fp8_weight(first, args);
    args.b_scale_batch_rows = static_cast<int>(rows.stride);
    if (run_fp8(ctx, op, Bf16Work::kBatch, args, c)) return true;
  }
  const Bf16Weight w(ctx, b);
  args.b = of_head(w.data);
  return run(ctx, op, layout, Bf16Work::kBatch, args, c);
}

bool grouped_gemm(Context& ctx, const char* op, Bf16Layout layout, const ExpertLayout& experts,
                  const PagedRows& a, std::span<const Operand> w, const PagedRows& c, Start start) {
  const int64_t N = c.slab.dim(2), K = a.slab.dim(2), E = experts.num_experts();
  const int64_t P = std::min(num_places(a), num_places(c));
  if (!has_sm90(ctx) || !is_bf16(a.slab) || !is_result(c.slab) || P == 0 || K == 0 || N == 0)
    return false;
  if (!fits_int({P, N, K})) return false;
  if (!has_dense_list(a) || !has_dense_list(c)) return false;
  const DType dtype = w[0].data.dtype();
  const int64_t distance =
      distance_between(w, [](const Operand& o) -> const Tensor& { return o.data; });
  if (distance < 0) return false;
  // NOTE: with fewer places than experts every place is one row: the pages of a decode step.
  if (layout == Bf16Layout::kNt && ctx.numerics == Numerics::kFastest && P < E && K % 16 == 0 &&
      is_aligned(a.slab) && a.slab.stride(1) % 8 == 0 && a.slab.stride(0) % 8 == 0 &&
      gemv_reads(w[0]) && distance * element_bytes(dtype) % 16 == 0) {
    GemvArgs args = gemv_args(w[0]);
    if (dtype == DType::kE4M3) {
      args.scale_batch_stride =
          distance_between(w, [](const Operand& o) -> const Tensor& { return o.scale; });
      if (args.scale_batch_stride < 0) return false;
    }
    args.a = a.slab.raw();
    args.a_row_stride = a.slab.stride(1);
    args.a_batch_stride = a.slab.stride(0);
    args.w_batch_stride = distance;
    args.c = c.slab.raw();
    args.c_row_stride = c.slab.stride(1);
    args.c_batch_stride = c.slab.stride(0);
    args.c_is_f32 = c.slab.dtype() == DType::kF32;
    args.accumulate = start == Start::kOld;
    args.n = static_cast<int>(N);
    args.k = static_cast<int>(K);
    args.batches = static_cast<int>(P);
    args.counts = experts.counts.data<int32_t>();
    args.page_begin = experts.page_begin.data<int32_t>();
    args.a_page = page_list(a);
    args.c_page = page_list(c);
    args.num_experts = static_cast<int>(E);
    args.a_pages = static_cast<int>(a.slab.dim(0));
    args.c_pages = static_cast<int>(c.slab.dim(0));
    gemv_nt(args, stream_of(ctx));
    check_launch(ctx, op, c.slab);
    return true;
  }
  const bool is_fp8 = is_block_fp8(w[0]);
  if (dtype != DType::kBF16 && !is_fp8) return false;
  Bf16GemmArgs args{};
  args.b = {w[0].data.raw(), w[0].data.dim(0), w[0].data.dim(1), w[0].data.stride(0), E, distance};
  args.a = bf16_matrix(a);
  args.c = c.slab.raw();
  args.c_row_stride = c.slab.stride(1);
  args.c_batch_stride = c.slab.stride(0);
  args.n = static_cast<int>(N);
  args.k = static_cast<int>(K);
  args.batches = static_cast<int>(E);
  args.c_is_f32 = c.slab.dtype() == DType::kF32;
  args.accumulate = start == Start::kOld;
  args.counts = experts.counts.data<int32_t>();
  args.page_begin = experts.page_begin.data<int32_t>();
  args.a_page = page_list(a);
  args.c_page = page_list(c);
  args.places = static_cast<int>(P);
  args.c_pages = static_cast<int>(c.slab.dim(0));
  if (!is_fp8) return run(ctx, op, layout, Bf16Work::kPages, args, c.slab);
  // With few pages an expert, reading its weight as FP8 for each is less than writing it as bf16.
  const int64_t scale_distance =
      distance_between(w, [](const Operand& o) -> const Tensor& { return o.scale; });
  if (layout == Bf16Layout::kNt && P <= 2 * E && scale_distance >= 0) {
    set_fp8_weight(w[0], args);
    args.b_scale_batch_stride = scale_distance;
    if (run_fp8(ctx, op, Bf16Work::kPages, args, c.slab)) return true;
  }
  Tensor copies;
  const Block memory = ctx.memory.take_tensor(DType::kBF16, {E, args.b.rows, args.b.cols}, &copies);
  dequantise_matrices(ctx, w, copies);
  args.b = bf16_matrix(PagedRows{copies, Tensor()});
  return run(ctx, op, layout, Bf16Work::kPages, args, c.slab);
}

bool grouped_gemm_tn_acc(Context& ctx, const ExpertLayout& experts, const PagedRows& a,
                         const PagedRows& b, std::span<const Tensor> dw) {
  const int64_t N = a.slab.dim(2), K = b.slab.dim(2), E = experts.num_experts();
  if (!has_sm90(ctx) || !is_bf16(a.slab) || !is_bf16(b.slab) || !is_result(dw[0]) || N == 0 ||
      K == 0)
    return false;
  const int64_t distance = distance_between(dw, [](const Tensor& t) -> const Tensor& { return t; });
  if (distance < 0 || !has_dense_list(a) || !has_dense_list(b) || !fits_int({N, K})) return false;
  Bf16GemmArgs args{};
  args.a = bf16_matrix(a);
  args.b = bf16_matrix(b);
  args.c = dw[0].raw();
  args.c_row_stride = dw[0].stride(0);
  args.c_batch_stride = distance;
  args.m = static_cast<int>(N);
  args.n = static_cast<int>(K);
  args.batches = static_cast<int>(E);
  args.c_is_f32 = dw[0].dtype() == DType::kF32;
  args.accumulate = 1;
  args.counts = experts.counts.data<int32_t>();
  args.page_begin = experts.page_begin.data<int32_t>();
  args.a_page = page_list(a);
  args.b_page = page_list(b);
  args.places = static_cast<int>(std::min(num_places(a), num_places(b)));
  return run(ctx, "grouped_gemm_tn_acc", Bf16Layout::kTn, Bf16Work::kExpertRows, args, a.slab);
}

}  // namespace hadal::ops::cuda::sm90
