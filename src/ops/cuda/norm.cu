// RMSNorm on CUDA: a thread block a row for bf16, else 16 threads a row.
//
//   T rows   D width   B blocks of kGainRows rows
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/bf16_rows.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/rows.cuh"
#include "ops/cuda/detail/tiles.cuh"
#include "ops/norm.h"

namespace hadal::ops::cuda {
namespace {

// dgain is summed over blocks of this many rows, then over the blocks in order.
constexpr int64_t kGainRows = 64;

template <class R>
__global__ void forward_kernel(int64_t T, int64_t D, View x, View gain, R eps, View y,
                               Array<R> rstd) {
  const int64_t row = group_row(), t = row < T ? row : 0, n = row < T ? D : 0;
  const int64_t x0 = t * x.stride0, y0 = t * y.stride0;
  const R squares = sum_row<R>(n, [&](int64_t i) {
    const R v = x.get<R>(x0 + i);
    return v * v;
  });
  if (n == 0) return;
  const R r = R(1) / sqrt(squares / static_cast<R>(D) + eps);
  if (group_lane() == 0) rstd[t] = r;
  for (int64_t i = group_lane(); i < n; i += kLanes)
    y.put(y0 + i, (x.get<R>(x0 + i) * r) * gain.get<R>(i));
}

template <class R>
__global__ void recompute_kernel(int64_t T, int64_t D, View x, View gain, Array<const R> rstd,
                                 View y) {
  const int64_t t = group_row();
  if (t >= T) return;
  const R r = rstd[t];
  for (int64_t i = group_lane(); i < D; i += kLanes)
    y.put(t * y.stride0 + i, (x.get<R>(t * x.stride0 + i) * r) * gain.get<R>(i));
}

// x_hat = x r; dx = r (g dy - x_hat mean(g dy x_hat))
template <class R>
__global__ void dx_kernel(int64_t T, int64_t D, View x, View gain, Array<const R> rstd, View dy,
                          View dx) {
  const int64_t row = group_row(), t = row < T ? row : 0, n = row < T ? D : 0;
  const int64_t x0 = t * x.stride0, dy0 = t * dy.stride0, dx0 = t * dx.stride0;
  const R along = sum_row<R>(
      n, [&](int64_t i) { return (dy.get<R>(dy0 + i) * gain.get<R>(i)) * x.get<R>(x0 + i); });
  if (n == 0) return;
  const R r = rstd[t], c = r * r * r * along / static_cast<R>(D);
  for (int64_t i = group_lane(); i < n; i += kLanes)
    dx.put(dx0 + i, r * (gain.get<R>(i) * dy.get<R>(dy0 + i)) - c * x.get<R>(x0 + i));
}

// partial[b, j] = sum over the rows of block b, in order.
template <class R>
__global__ void dgain_blocks_kernel(int64_t T, int64_t D, View x, Array<const R> rstd, View dy,
                                    R* partial) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= D) return;
  const int64_t begin = blockIdx.y * kGainRows;
  const int64_t end = begin + kGainRows < T ? begin + kGainRows : T;
  R sum = 0;
  for (int64_t t = begin; t < end; ++t)
    sum += dy.get<R>(t * dy.stride0 + j) * (x.get<R>(t * x.stride0 + j) * rstd[t]);
  partial[blockIdx.y * D + j] = sum;
}

// Rows of one sum of the gain's gradient in bf16; kGainRows of them are summed in order after.
constexpr int64_t kGainPart = 8;
__global__ void dgain_parts_kernel(int64_t parts, int64_t D, const float* of_part, float* partial) {
  constexpr int64_t kParts = kGainRows / kGainPart;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= D) return;
  float all = 0.0f;
#pragma unroll
  for (int64_t i = 0; i < kParts; ++i) {
    const int64_t part = blockIdx.y * kParts + i;
    all += part < parts ? of_part[part * D + j] : 0.0f;
  }
  partial[blockIdx.y * D + j] = all;
}

template <class R>
__global__ void dgain_total_kernel(int64_t B, int64_t D, const R* partial, R* dgain) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= D) return;
  R sum = 0;
  for (int64_t b = 0; b < B; ++b) sum += partial[b * D + j];
  dgain[j] = sum;
}

// kChunks: eights of a row that a thread holds, so that a row is read once.
constexpr int64_t kMostChunks = 8;
constexpr int64_t kChunk = kRowThreads * 8;  // elements of the threads' eights
template <int kChunks>
struct HeldRow {
  PackedEight eights[kChunks];
  __device__ static int64_t column(int c) { return c * kChunk + threadIdx.x * 8; }
  __device__ void load(const bf16* row, int64_t D) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      eights[c] = column(c) < D ? PackedEight::load(row + column(c)) : PackedEight{};
  }
};
// Calls fn with the chunks of a row of D elements as a constant; false where they are too many.
template <class Fn>
bool with_chunks(int64_t D, const Fn& fn) {
  const int64_t chunks = ceil_div(D, kChunk);
  if (chunks > kMostChunks) return false;
  if (chunks == 1)
    fn(std::integral_constant<int, 1>{});
  else if (chunks == 2)
    fn(std::integral_constant<int, 2>{});
  else if (chunks <= 4)
    fn(std::integral_constant<int, 4>{});
  else
    fn(std::integral_constant<int, 8>{});
  return true;
}

// Where the rows go a second time.
struct RowTiles {
  Elements<true> q;
  int64_t q_stride;
  float* scale;
  int64_t scale_stride;
  FaultSite fault;
};

template <int kChunks, bool kTiles>
__global__ void __launch_bounds__(kRowThreads)
    forward_bf16_kernel(int64_t D, View x, View gain, float eps, View y, Array<float> rstd,
                        RowTiles tiles) {
  hadal::cuda::let_next_kernel_start();
  hadal::cuda::wait_for_previous_kernel();
  __shared__ float shared[kRowThreads / 32];
  const int64_t t = blockIdx.x;
  auto* const to = static_cast<bf16*>(y.data) + t * y.stride0;
  HeldRow<kChunks> row;
  row.load(static_cast<const bf16*>(x.data) + t * x.stride0, D);
  float squares = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
    for (float value : Eight::widen(row.eights[c]).of) squares += value * value;
  const float r = 1.0f / sqrtf(sum_of_row(squares, shared) / static_cast<float>(D) + eps);
  if (threadIdx.x == 0) rstd[t] = r;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t i = row.column(c);
    if (c * kChunk >= D) break;  // the threads of a tile stay together
    PackedEight out{};
    if (i < D) {
      Eight v = Eight::widen(row.eights[c]);
      const Eight g = load_eight(gain.data, gain.dtype, i);
#pragma unroll
      for (int j = 0; j < 8; ++j) v.of[j] = (v.of[j] * r) * g.of[j];
      out = v.narrow();
      out.store(to + i);
    }
    if constexpr (kTiles) {
      const float scale =
          tile_scale(largest_of_tile(largest_of(out), tiles.fault), ScaleFormat::kF32);
      uint32_t two[2];
      quantise_eight(out, Divisor(scale), two);
      if (i >= D) continue;
      tiles.q.store(t * tiles.q_stride + i, two, D - i);
      if (threadIdx.x % kTileThreads == 0)
        tiles.scale[i / kTileSize * tiles.scale_stride + t] = scale;
    }
  }
}

__global__ void __launch_bounds__(kRowThreads)
    recompute_bf16_kernel(int64_t D, View x, View gain, Array<const float> rstd, View y) {
  const int64_t t = blockIdx.x;
  const auto* from = static_cast<const bf16*>(x.data) + t * x.stride0;
  auto* const to = static_cast<bf16*>(y.data) + t * y.stride0;
  const float r = rstd[t];
  for (int64_t i = threadIdx.x * 8; i < D; i += kRowThreads * 8) {
    Eight v = Eight::load(from + i);
    const Eight g = load_eight(gain.data, gain.dtype, i);
#pragma unroll
    for (int j = 0; j < 8; ++j) v.of[j] = (v.of[j] * r) * g.of[j];
    v.store(to + i);
  }
}

// dx of kGainPart rows, and their part of the gain's gradient: x and dy are read once.
template <int kChunks>
__global__ void __launch_bounds__(kRowThreads)
    backward_bf16_kernel(int64_t T, int64_t D, View x, View gain, Array<const float> rstd, View dy,
                         View dx, float* of_part) {
  __shared__ float shared[2][kRowThreads / 32];
  Eight dgain[kChunks] = {};
  const int64_t end = min(T, (blockIdx.x + int64_t{1}) * kGainPart);
  for (int64_t t = blockIdx.x * kGainPart; t < end; ++t) {
    HeldRow<kChunks> xs, dys;
    xs.load(static_cast<const bf16*>(x.data) + t * x.stride0, D);
    dys.load(static_cast<const bf16*>(dy.data) + t * dy.stride0, D);
    const float r = rstd[t];
    float part = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (xs.column(c) >= D) break;
      const Eight v = Eight::widen(xs.eights[c]), d = Eight::widen(dys.eights[c]);
      const Eight g = load_eight(gain.data, gain.dtype, xs.column(c));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        part += (d.of[j] * g.of[j]) * v.of[j];
        dgain[c].of[j] += d.of[j] * (v.of[j] * r);
      }
    }
    // NOTE: two places in turn: a slow warp may still read the sum before.
    const float along = sum_of_row(part, shared[t % 2]);
    const float scale = r * r * r * along / static_cast<float>(D);
    auto* const to = static_cast<bf16*>(dx.data) + t * dx.stride0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t i = xs.column(c);
      if (i >= D) break;
      const Eight v = Eight::widen(xs.eights[c]), d = Eight::widen(dys.eights[c]);
      const Eight g = load_eight(gain.data, gain.dtype, i);
      Eight out;
#pragma unroll
      for (int j = 0; j < 8; ++j) out.of[j] = r * (g.of[j] * d.of[j]) - scale * v.of[j];
      out.store(to + i);
    }
  }
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t i = HeldRow<kChunks>::column(c);
    if (i >= D) break;
    auto* const to = reinterpret_cast<float4*>(of_part + blockIdx.x * D + i);
    to[0] = float4{dgain[c].of[0], dgain[c].of[1], dgain[c].of[2], dgain[c].of[3]};
    to[1] = float4{dgain[c].of[4], dgain[c].of[5], dgain[c].of[6], dgain[c].of[7]};
  }
}

// dx, and the sums of the gain's gradient over blocks of kGainRows; false where the rows are not of
// this kind.
bool backward_bf16(Context& ctx, const Tensor& x, const Tensor& gain, const Tensor& rstd,
                   const Tensor& dy, const Tensor& dx, const Tensor& partial) {
  const int64_t T = x.dim(0), D = x.dim(1), parts = ceil_div(T, kGainPart);
  if (!has_bf16_rows(x) || !has_bf16_rows(dy) || !has_bf16_rows(dx) ||
      !is_gain_of_bf16_rows(gain) || D > kMostChunks * kChunk)
    return false;
  Tensor of_part;
  const Block memory = ctx.memory.take_tensor(DType::kF32, {parts, D}, &of_part);
  with_chunks(D, [&](auto chunks) {
    backward_bf16_kernel<chunks><<<static_cast<unsigned>(parts), kRowThreads, 0, stream_of(ctx)>>>(
        T, D, View(x), View(gain), Array<const float>(rstd), View(dy), View(dx),
        of_part.data<float>());
  });
  check_launch(ctx, "rmsnorm_backward", x);
  const dim3 blocks(static_cast<unsigned>(ceil_div(D, kThreads)),
                    static_cast<unsigned>(partial.dim(0)));
  dgain_parts_kernel<<<blocks, kThreads, 0, stream_of(ctx)>>>(parts, D, of_part.data<float>(),
                                                              static_cast<float*>(partial.raw()));
  check_launch(ctx, "rmsnorm_backward", x);
  return true;
}

// False where the rows are not of this kind. y_tiles: none, or where y goes a second time.
template <bool kTiles>
bool forward_bf16(Context& ctx, const Tensor& x, const Tensor& gain, double eps, const Tensor& y,
                  const Tensor& rstd, const TileRows& y_tiles) {
  if (!has_bf16_rows(x) || !has_bf16_rows(y) || !is_gain_of_bf16_rows(gain)) return false;
  RowTiles tiles{.q = {},
                 .q_stride = 0,
                 .scale = nullptr,
                 .scale_stride = 0,
                 .fault = FaultSite(ctx, kNotFinite)};
  if constexpr (kTiles) {
    if (!has_eights(y_tiles.data)) return false;
    tiles.q.data = static_cast<uint8_t*>(y_tiles.data.raw());
    tiles.q_stride = y_tiles.data.stride(0);
    tiles.scale = y_tiles.scale.data<float>();
    tiles.scale_stride = y_tiles.scale.stride(0);
  }
  return with_chunks(x.dim(1), [&](auto chunks) {
    launch_programmatic(ctx, forward_bf16_kernel<chunks, kTiles>, static_cast<unsigned>(x.dim(0)),
                        kRowThreads, 0, x.dim(1), View(x), View(gain), static_cast<float>(eps),
                        View(y), Array<float>(rstd), tiles);
  });
}

unsigned row_blocks(int64_t T) { return static_cast<unsigned>(ceil_div(T, kRowsPerBlock)); }

}  // namespace

void rmsnorm_forward(Context& ctx, In x, In gain, double eps, Out y, Out rstd) {
  const int64_t T = x.dim(0), D = x.dim(1);
  if (T == 0) return;
  if (forward_bf16<false>(ctx, x, gain, eps, y, rstd, {}))
    return check_launch(ctx, "rmsnorm_forward", x);
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    forward_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
        T, D, View(x), View(gain), static_cast<R>(eps), View(y), Array<R>(rstd));
  });
  check_launch(ctx, "rmsnorm_forward", x);
}

void rmsnorm_forward_tiles(Context& ctx, In x, In gain, double eps, Out y, Out rstd,
                           const TileRows& y_tiles) {
  if (x.dim(0) == 0) return;
  if (forward_bf16<true>(ctx, x, gain, eps, y, rstd, y_tiles))
    return check_launch(ctx, "rmsnorm_forward_tiles", x);
  in_steps::rmsnorm_forward_tiles(ctx, x, gain, eps, y, rstd, y_tiles);
}

void rmsnorm_recompute(Context& ctx, In x, In gain, In rstd, Out y) {
  const int64_t T = x.dim(0), D = x.dim(1);
  if (T == 0) return;
  if (has_bf16_rows(x) && has_bf16_rows(y) && is_gain_of_bf16_rows(gain)) {
    recompute_bf16_kernel<<<static_cast<unsigned>(T), kRowThreads, 0, stream_of(ctx)>>>(
        D, View(x), View(gain), Array<const float>(rstd), View(y));
    return check_launch(ctx, "rmsnorm_recompute", x);
  }
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    recompute_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
        T, D, View(x), View(gain), Array<const R>(rstd), View(y));
  });
  check_launch(ctx, "rmsnorm_recompute", x);
}

void rmsnorm_backward(Context& ctx, In x, In gain, In rstd, In dy, Out dx, Out dgain) {
  const int64_t T = x.dim(0), D = x.dim(1), B = ceil_div(T, kGainRows);
  const unsigned columns = static_cast<unsigned>(ceil_div(D, kThreads));
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    Tensor partial;
    const Block memory = ctx.memory.take_tensor(DTypeOf<R>::value, {B, D}, &partial);
    if (T > 0 && !backward_bf16(ctx, x, gain, rstd, dy, dx, partial)) {
      // NOTE: before dx, which may be dy.
      dgain_blocks_kernel<R>
          <<<dim3(columns, static_cast<unsigned>(B)), kThreads, 0, stream_of(ctx)>>>(
              T, D, View(x), Array<const R>(rstd), View(dy), partial.data<R>());
      check_launch(ctx, "rmsnorm_backward", x);
      dx_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
          T, D, View(x), View(gain), Array<const R>(rstd), View(dy), View(dx));
      check_launch(ctx, "rmsnorm_backward", x);
    }
    dgain_total_kernel<R>
        <<<columns, kThreads, 0, stream_of(ctx)>>>(B, D, partial.data<R>(), dgain.data<R>());
  });
  check_launch(ctx, "rmsnorm_backward", x);
}

}  // namespace hadal::ops::cuda
