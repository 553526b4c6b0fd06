// Launches the BF16 matrix products.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <type_traits>

#include "core/check.h"
#include "ops/cuda/bf16_gemm/kernel.cuh"
#include "ops/cuda/bf16_gemm/thin.cuh"
#include "ops/cuda/bf16_gemm/thin_e4m3.cuh"
#include "ops/cuda/detail/programmatic_launch.h"
#include "ops/cuda/detail/shared_bytes.h"
#include "ops/cuda/detail/tensor_map.h"

namespace hadal::cuda {

namespace {

CUtensorMap map_of(const Bf16Matrix& m, uint32_t box_rows) {
  return make_batched_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                  .elem_bytes = 2,
                                  .data = m.data,
                                  .rows = m.rows,
                                  .cols = m.cols,
                                  .row_stride = m.row_stride,
                                  .box_rows = box_rows,
                                  .box_cols = 64,
                                  .batches = m.batches,
                                  .batch_stride = m.batch_stride});
}

// Tiles that the host knows of: a launch of fewer blocks than SMs where there are fewer.
template <Bf16Work kWork, class C>
int64_t most_tiles(const Bf16GemmArgs& args) {
  const int64_t cols = (args.n + C::kCols - 1) / C::kCols;
  if (kWork == Bf16Work::kPages) return args.places * cols;
  return static_cast<int64_t>(args.batches) * ((args.m + C::kRows - 1) / C::kRows) * cols;
}

template <Bf16Layout kLayout, Bf16Work kWork, int kCols>
void launch_wide(const Bf16GemmArgs& args, cudaStream_t stream) {
  using C = Bf16GemmConfig<kCols>;
  const auto kernel = bf16_gemm_kernel_sm90<kLayout, kWork, kCols>;
  allow_shared_bytes<bf16_gemm_kernel_sm90<kLayout, kWork, kCols>, C::kSharedBytes>();
  const CUtensorMap map_a = map_of(args.a, kLayout == Bf16Layout::kTn ? 64 : C::kRows);
  const CUtensorMap map_b = map_of(args.b, kLayout == Bf16Layout::kNt ? C::kCols : 64);
  const int64_t tiles = most_tiles<kWork, C>(args);
  HADAL_CHECK(tiles < (int64_t{1} << 31), "bf16_gemm: ", tiles, " tiles are more than 2^31");
  const ProgrammaticLaunch launch(static_cast<unsigned>(std::min<int64_t>(tiles, args.num_sms)),
                                  C::kThreads, C::kSharedBytes, stream);
  HADAL_CHECK_CUDA(launch.start(kernel, args, map_a, map_b));
}

// Wide tiles feed the matrix unit best; narrow ones waste less where there are few.
template <Bf16Layout kLayout, Bf16Work kWork>
void choose(const Bf16GemmArgs& args, cudaStream_t stream) {
  const auto rounds = [&](int64_t tiles) { return (tiles + args.num_sms - 1) / args.num_sms; };
  const int64_t wide = rounds(most_tiles<kWork, Bf16GemmConfig<256>>(args));
  const int64_t narrow = rounds(most_tiles<kWork, Bf16GemmConfig<128>>(args));
  if (wide * 2 <= narrow * 11 / 10) {
    launch_wide<kLayout, kWork, 256>(args, stream);
  } else {
    launch_wide<kLayout, kWork, 128>(args, stream);
  }
}

// One of the kernels for few rows: C its shapes, map_w how it reads b.
template <class C, Bf16Work kWork, int kFew, auto kKernel>
void start_thin(const Bf16GemmArgs& args, const CUtensorMap& map_w, cudaStream_t stream) {
  allow_shared_bytes<kKernel, C::kSharedBytes>();
  const int batches = kWork == Bf16Work::kPages ? args.places : args.batches;
  const dim3 grid(static_cast<unsigned>((args.n + C::kCols - 1) / C::kCols),
                  static_cast<unsigned>(batches));
  const ProgrammaticLaunch launch(grid, C::kThreads, C::kSharedBytes, stream);
  HADAL_CHECK_CUDA(launch.start(kKernel, args, map_of(args.a, kFew), map_w));
}

template <Bf16Layout kLayout, Bf16Work kWork, int kFew>
void launch_thin(const Bf16GemmArgs& args, cudaStream_t stream) {
  start_thin<Bf16GemmThin<kFew>, kWork, kFew, bf16_gemm_thin_kernel_sm90<kLayout, kWork, kFew>>(
      args, map_of(args.b, 64), stream);
}

template <Bf16Work kWork, int kFew>
void launch_thin_e4m3(const Bf16GemmArgs& args, cudaStream_t stream) {
  using C = Bf16GemmThinE4m3<kFew>;
  const CUtensorMap map_w = make_batched_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                                     .elem_bytes = 1,
                                                     .data = args.b.data,
                                                     .rows = args.b.rows,
                                                     .cols = args.b.cols,
                                                     .row_stride = args.b.row_stride,
                                                     .box_rows = C::kCols,
                                                     .box_cols = C::kDepth,
                                                     .batches = args.b.batches,
                                                     .batch_stride = args.b.batch_stride});
  start_thin<C, kWork, kFew, bf16_gemm_thin_e4m3_kernel_sm90<kWork, kFew>>(args, map_w, stream);
}

// Calls fn with as many columns of the matrix unit as hold the rows, or the most that there are.
template <class Fn>
void with_few(int rows, const Fn& fn) {
  if (rows <= 8)
    fn(std::integral_constant<int, 8>{});
  else if (rows <= 16)
    fn(std::integral_constant<int, 16>{});
  else if (rows <= 32)
    fn(std::integral_constant<int, 32>{});
  else
    fn(std::integral_constant<int, 64>{});
}

template <Bf16Layout kLayout, Bf16Work kWork>
bool choose_thin(const Bf16GemmArgs& args, int rows, cudaStream_t stream) {
  if (rows > 64 || args.k_split > 0) return false;
  with_few(rows, [&](auto few) { launch_thin<kLayout, kWork, few>(args, stream); });
  return true;
}

// NOTE: with fewer places than experts there are hardly more rows than places: a decode step.
int few_of_pages(const Bf16GemmArgs& args) {
  return args.places >= args.batches ? Bf16GemmConfig<128>::kRows : args.places;
}

}  // namespace

bool bf16_gemm_reads(const Bf16Matrix& m) {
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.row_stride % 8 == 0 &&
         m.batch_stride % 8 == 0 && m.rows > 0 && m.cols > 0 && m.batches > 0;
}

void bf16_gemm_sm90(Bf16Layout layout, Bf16Work work, const Bf16GemmArgs& args,
                    cudaStream_t stream) {
  HADAL_CHECK(bf16_gemm_reads(args.a) && bf16_gemm_reads(args.b) && args.n % 2 == 0 &&
                  args.c_row_stride % 2 == 0 && args.c_batch_stride % 2 == 0,
              "bf16_gemm: rows must be aligned to 16 bytes and N even; got N ", args.n,
              ", row strides ", args.a.row_stride, ", ", args.b.row_stride, " and ",
              args.c_row_stride);
  using enum Bf16Layout;
  switch (work) {
    case Bf16Work::kBatch:
      if (layout == kNt && choose_thin<kNt, Bf16Work::kBatch>(args, args.m, stream)) return;
      if (layout == kNn && choose_thin<kNn, Bf16Work::kBatch>(args, args.m, stream)) return;
      if (layout == kNt) return choose<kNt, Bf16Work::kBatch>(args, stream);
      if (layout == kNn) return choose<kNn, Bf16Work::kBatch>(args, stream);
      return choose<kTn, Bf16Work::kBatch>(args, stream);
    case Bf16Work::kPages:
      if (layout == kNt && choose_thin<kNt, Bf16Work::kPages>(args, few_of_pages(args), stream))
        return;
      if (layout == kNt) return choose<kNt, Bf16Work::kPages>(args, stream);
      HADAL_CHECK(layout == kNn, "bf16_gemm: experts' rows are multiplied as kNt or kNn");
      return choose<kNn, Bf16Work::kPages>(args, stream);
    case Bf16Work::kExpertRows:
      HADAL_CHECK(layout == kTn, "bf16_gemm: experts' gradients are products kTn");
      return choose<kTn, Bf16Work::kExpertRows>(args, stream);
  }
}

bool bf16_gemm_reads_e4m3(const Bf16GemmArgs& args) {
  const Bf16Matrix& b = args.b;
  return reinterpret_cast<uintptr_t>(b.data) % 16 == 0 && b.row_stride % 16 == 0 &&
         b.batch_stride % 16 == 0 && b.rows > 0 && b.cols > 0 && b.batches > 0 &&
         args.b_scale != nullptr && args.b_scale_row % 64 == 0 && args.b_scale_batch_rows % 64 == 0;
}

void bf16_gemm_e4m3_sm90(Bf16Work work, const Bf16GemmArgs& args, cudaStream_t stream) {
  HADAL_CHECK(bf16_gemm_reads(args.a) && bf16_gemm_reads_e4m3(args) &&
                  (work == Bf16Work::kPages || (work == Bf16Work::kBatch && args.m <= 64)),
              "bf16_gemm: with FP8 weights there must be at most 64 rows, aligned to 16 bytes, and "
              "whole half blocks of scales; got ",
              args.m, " rows, strides ", args.b.row_stride, " and ", args.b.batch_stride,
              ", scales from row ", args.b_scale_row);
  if (work == Bf16Work::kPages)
    with_few(few_of_pages(args),
             [&](auto few) { launch_thin_e4m3<Bf16Work::kPages, few>(args, stream); });
  else
    with_few(args.m, [&](auto few) { launch_thin_e4m3<Bf16Work::kBatch, few>(args, stream); });
}

}  // namespace hadal::cuda
