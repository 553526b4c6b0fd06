// Rows of FP8 on the wire, on CUDA: a block for each token.
//
//   T tokens   K copies of a token   W width   B bytes of a row on the wire
//
// The bits are the CPU's (ops/cpu/fp8_wire.cc).
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/pages.cuh"
#include "ops/cuda/detail/tiles.cuh"
#include "ops/fp8_wire.h"

namespace hadal::ops::cuda {
namespace {

// Where the copies of a token go.
struct Places {
  const int32_t* of;  // [T, K], -1 is left out
  int K;
  explicit Places(const Tensor& t) : of(t.data<int32_t>()), K(static_cast<int>(t.dim(1))) {}
  __device__ int64_t at(int64_t t, int k) const { return of[t * K + k]; }
};

// Quantised once, written to every copy.
template <bool kFast>
__global__ void pack_kernel(int64_t W, int64_t x_stride, Source<kFast> x, Places copy,
                            uint8_t* wire, int64_t B, FaultSite fault) {
  const int64_t t = blockIdx.x, tiles = (W + kTileSize - 1) / kTileSize;
  const int64_t step = blockDim.x / kTileThreads;
  // Every thread of a warp takes part in the sums of tiles.
  for (int64_t tile0 = 0; tile0 < tiles; tile0 += step) {
    const int64_t tile = tile0 + threadIdx.x / kTileThreads;
    const int64_t w = tile * kTileSize + threadIdx.x % kTileThreads * 8;
    const auto e = x.load(t * x_stride + w, W - w);
    const float amax = largest_of_tile(largest_of(e), fault);
    const Divisor by(tile_scale(amax, ScaleFormat::kPowerOfTwo));
    uint32_t two[2];
    quantise_eight(e, by, two);
    if (tile >= tiles) continue;
    for (int k = 0; k < copy.K; ++k) {
      const int64_t row = copy.at(t, k);
      if (row < 0) continue;
      Elements<kFast>{wire + row * B}.store(w, two, W - w);
      if (threadIdx.x % kTileThreads == 0) wire[row * B + W + tile] = to_wire_scale(by.scale);
    }
  }
  for (int k = 0; k < copy.K; ++k) {
    const int64_t row = copy.at(t, k);
    if (row < 0) continue;
    for (int64_t b = W + tiles + threadIdx.x; b < B; b += blockDim.x) wire[row * B + b] = 0;
  }
}

// Rows are whole pieces of 16 bytes.
__global__ void copy_kernel(const int4* from, int64_t pieces, Places copy, int4* wire) {
  const int64_t t = blockIdx.x;
  for (int64_t i = threadIdx.x; i < pieces; i += blockDim.x) {
    const int4 piece = from[t * pieces + i];
    for (int k = 0; k < copy.K; ++k)
      if (const int64_t row = copy.at(t, k); row >= 0) wire[row * pieces + i] = piece;
  }
}

constexpr int kMostKept = 8;  // copies of a token whose places a block looks up at once

// kWide: elements of a row are whole pieces of 16 bytes where they come from and where they go.
template <bool kWide>
__global__ void place_kernel(int64_t W, int64_t B, const uint8_t* from, Places places,
                             PagedView rows, uint8_t* slab, float* scale, int64_t scale_stride) {
  using Piece = std::conditional_t<kWide, int4, uint8_t>;
  const int64_t t = blockIdx.x, tiles = (W + kTileSize - 1) / kTileSize;
  const uint8_t* const row = from + t * B;
  __shared__ int64_t offsets[kMostKept], columns[kMostKept];
  for (int first = 0; first < places.K; first += kMostKept) {
    const int count = min(kMostKept, places.K - first);
    __syncthreads();  // the turn before is done with them
    if (static_cast<int>(threadIdx.x) < count) {
      const int64_t place = places.at(t, first + static_cast<int>(threadIdx.x));
      offsets[threadIdx.x] = place < 0 ? -1 : rows.row_offset(place);
      columns[threadIdx.x] = rows.column_of(place);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < W / static_cast<int64_t>(sizeof(Piece)); i += blockDim.x) {
      Piece piece{};
      bool is_held = false;
      for (int k = 0; k < count; ++k) {
        if (offsets[k] < 0) continue;
        if (!is_held) piece = reinterpret_cast<const Piece*>(row)[i];
        is_held = true;
        reinterpret_cast<Piece*>(slab + offsets[k])[i] = piece;
      }
    }
    for (int k = 0; k < count; ++k)
      for (int64_t i = threadIdx.x; offsets[k] >= 0 && i < tiles; i += blockDim.x)
        scale[i * scale_stride + columns[k]] = from_wire_scale(row[W + i]);
  }
}

uint8_t* bytes_of(const Tensor& t) { return static_cast<uint8_t*>(t.raw()); }

// Of a token whose row has `pieces` pieces.
unsigned threads_of(int64_t pieces) {
  return static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div(pieces, int64_t{32}) * 32, 32, kThreads));
}

}  // namespace

void pack_wire_rows(Context& ctx, In x, In copy, Out wire) {
  const int64_t T = x.dim(0), W = x.dim(1);
  if (T == 0 || W == 0) return;
  with_constant(has_bf16_rows(x) && has_eights(wire), [&](auto fast) {
    pack_kernel<<<static_cast<unsigned>(T), threads_of(ceil_div(W, int64_t{8})), 0,
                  stream_of(ctx)>>>(W, x.stride(0), source_of<fast>(x), Places(copy),
                                    bytes_of(wire), wire.dim(1), FaultSite(ctx, kNotFinite));
  });
  check_launch(ctx, "pack_wire_rows", x);
}

void copy_wire_rows(Context& ctx, In from, In copy, Out wire) {
  const int64_t T = from.dim(0), pieces = from.dim(1) / 16;
  if (T == 0 || pieces == 0) return;
  copy_kernel<<<static_cast<unsigned>(T), threads_of(pieces), 0, stream_of(ctx)>>>(
      reinterpret_cast<const int4*>(from.raw()), pieces, Places(copy),
      reinterpret_cast<int4*>(wire.raw()));
  check_launch(ctx, "copy_wire_rows", from);
}

void place_wire_rows(Context& ctx, In from, In row_of_choice, const PagedRows& rows) {
  const int64_t T = from.dim(0), W = rows.slab.dim(2);
  if (T == 0 || W == 0) return;
  const bool wide = W % 16 == 0 && rows.slab.stride(1) % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(rows.slab.raw()) % 16 == 0;
  with_constant(wide, [&](auto in_pieces) {
    place_kernel<in_pieces>
        <<<static_cast<unsigned>(T), threads_of(ceil_div(W, int64_t{16})), 0, stream_of(ctx)>>>(
            W, from.dim(1), bytes_of(from), Places(row_of_choice), PagedView(rows),
            bytes_of(rows.slab), rows.scale.data<float>(), rows.scale.stride(0));
  });
  check_launch(ctx, "place_wire_rows", from);
}

}  // namespace hadal::ops::cuda
