// Absorbed attention over the paged latent cache on CUDA, and the cache write.
//
//   T tokens   S sequences   H heads   W = R + Dr cached width   R latent width   n positions
//
// A thread block does 64 heads of one token: scores of positions 0 .. p, each one chain over W;
// softmax over all of them; the result as one chain over positions in order. So a token's bits do
// not depend on what else is in the call. It is the reference for ops/cuda/mla_decode, which takes
// the calls of bf16 models of DeepSeek-V3's latent size (latent_attention_sm90.h).
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"
#include "ops/cuda/detail/cache.cuh"
#include "ops/cuda/detail/matmul.cuh"
#include "ops/cuda/detail/softmax.cuh"
#include "ops/cuda/latent_attention_sm90.h"

namespace hadal::ops::cuda {
namespace {

static_assert(kCachePageTokens == kTile, "a tile of scores is the keys of one page");
template <class T, class Rows>
__global__ void write_kernel(int64_t S, int64_t W, Array<const int32_t> offsets,
                             Array<const int32_t> positions, View latent, Rows cache,
                             FaultSite fault) {
  const int64_t t = blockIdx.x, seq = sequence_of(offsets, S, t);
  const int64_t at = cache.offset(seq, positions[t]), from = t * latent.stride0;
  if (at < 0) {
    if (threadIdx.x == 0) fault.raise(positions[t], static_cast<double>(seq));
    return;
  }
  cache.template put_latent<T>(at, [&](int64_t i) { return latent.get<T>(from + i); });
  for (int64_t i = threadIdx.x; i < W - cache.R; i += blockDim.x)
    cache.put_key(at, i, latent.get<T>(from + cache.R + i));
}

struct Sizes {
  int64_t T, S, H, W, R;
};

template <class T, class Rows>
__global__ void attend_kernel(Sizes size, T scale, DType arithmetic, Array<const int32_t> offsets,
                              Array<const int32_t> positions, View q, Rows cache, View out,
                              T* scratch, FaultSite fault) {
  __shared__ TileMemory<T> memory;
  const int64_t width = cache.places * kCachePageTokens;
  T* scores = scratch + blockIdx.x * kTile * width;
  const int64_t head_blocks = (size.H + kTile - 1) / kTile;
  for (int64_t task = blockIdx.x; task < size.T * head_blocks; task += gridDim.x) {
    const int64_t t = task / head_blocks, h0 = task % head_blocks * kTile;
    const int64_t heads = size.H - h0 < kTile ? size.H - h0 : kTile;
    const int64_t seq = sequence_of(offsets, size.S, t), n = positions[t] + 1;
    bool complete = n <= width;
    for (int64_t p = 0; p < n && complete; p += kCachePageTokens)
      complete = cache.offset(seq, p) >= 0;
    if (!complete) {
      if (threadIdx.x == 0) fault.raise(positions[t], static_cast<double>(seq));
      continue;
    }
    const Matrix q_rows{advance(q.data, q.dtype, t * q.stride0 + h0 * q.stride1), q.dtype,
                        q.stride1, 1};
    for (int64_t p = 0; p < n; p += kCachePageTokens) {
      const int64_t keys = n - p < kCachePageTokens ? n - p : kCachePageTokens;
      matmul_tile(0, heads, 0, keys, size.W, q_rows, cache.keys(cache.offset(seq, p)),
                  Result{scores + p, arithmetic, width}, Start::kZero, memory);
    }
    __syncthreads();
    for_group_rows(heads,
                   [&](int64_t h) { softmax_row(scores + h * width, h < heads ? n : 0, scale); });
    __syncthreads();
    for (int64_t col = 0; col < size.R; col += kTile) {
      Sums<T> sums{};
      for (int64_t p = 0; p < n; p += kCachePageTokens) {
        const int64_t keys = n - p < kCachePageTokens ? n - p : kCachePageTokens;
        const Matrix weights{scores + p, arithmetic, width, 1};
        multiply_tile(0, heads, col, size.R, keys, weights, cache.values(cache.offset(seq, p)),
                      sums, memory);
      }
      const Result to{
          const_cast<void*>(advance(out.data, out.dtype, t * out.stride0 + h0 * out.stride1)),
          out.dtype, out.stride1};
      end_tile(0, heads, col, size.R, to, sums);
    }
    __syncthreads();
  }
}

}  // namespace

void latent_cache_write(Context& ctx, const Packed& seq, In latent, const LatentPages& cache) {
  const int64_t T = latent.dim(0);
  if (T == 0) return;
  with_arithmetic({latent.dtype()}, [&]<class R>(R) {
    with_latent_rows(cache, latent.dtype(), latent.dim(1), [&]<class Rows>(const Rows& rows) {
      write_kernel<R><<<static_cast<unsigned>(T), kThreads, 0, stream_of(ctx)>>>(
          seq.num_seqs, latent.dim(1), Array<const int32_t>(seq.offsets),
          Array<const int32_t>(seq.positions), View(latent), rows, FaultSite(ctx, kNoPage));
    });
  });
  check_launch(ctx, "latent_cache_write", latent);
}

void latent_attention(Context& ctx, const Packed& seq, double scale, In q, const LatentPages& cache,
                      Out out) {
  const Sizes size{q.dim(0), seq.num_seqs, q.dim(1), q.dim(2), out.dim(2)};
  const int64_t tasks = size.T * ceil_div(size.H, kTile);
  if (tasks == 0) return;
  if (sm90::latent_attention(ctx, seq, scale, q, cache, out)) return;
  with_arithmetic({q.dtype()}, [&]<class R>(R) {
    const BlockScratch<R> scratch(ctx, tasks, kTile * cache.table.dim(1) * kCachePageTokens);
    with_latent_rows(cache, q.dtype(), size.R, [&]<class Rows>(const Rows& rows) {
      attend_kernel<R><<<scratch.num_blocks(), kThreads, 0, stream_of(ctx)>>>(
          size, static_cast<R>(scale), DTypeOf<R>::value, Array<const int32_t>(seq.offsets),
          Array<const int32_t>(seq.positions), View(q), rows, View(out), scratch.data(),
          FaultSite(ctx, kNoPage));
    });
  });
  check_launch(ctx, "latent_attention", q);
}

}  // namespace hadal::ops::cuda
