// SwiGLU in tiles on CUDA: one pass over bf16 rows whose width is a multiple of 128; else in steps.
//
//   T rows   F hidden width   P pages
//
// A warp a row, whatever its width, eight neighbouring elements a thread: 16 threads hold a tile.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/math.cuh"
#include "ops/cuda/detail/pages.cuh"
#include "ops/cuda/detail/tiles.cuh"
#include "ops/swiglu_tiles.h"

namespace hadal::ops::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kBlocksOfSm = 8;  // of 64 registers a thread; left to itself one kernel takes 66

unsigned blocks_for_rows(int64_t rows) {
  return static_cast<unsigned>(ceil_div(rows, kRowThreads / kWarp));
}

// Which rows are in use: of a matrix, or of a layout.
struct DenseRows {
  int64_t T;
  __device__ bool in_use(int64_t row) const { return row < T; }
};
struct LayoutRows {
  LayoutView layout;
  __device__ bool in_use(int64_t row) const {
    const int64_t position = row / kPageRows;
    return position < layout.num_positions() &&
           row % kPageRows < layout.rows_at(layout.expert_of(position), position);
  }
};

// Rows of e4m3 tiles; null if there are none.
struct TilesView {
  PagedView rows;
  float* scale = nullptr;
  int64_t scale_stride = 0;  // from tile to tile

  explicit TilesView(const TileRows& q) {
    if (q.data.empty()) return;
    rows = PagedView(q.data);
    set_scale(q.scale);
  }
  explicit TilesView(const PagedRows& q) {
    if (q.slab.empty()) return;
    rows = PagedView(q);
    set_scale(q.scale);
  }
  void set_scale(const Tensor& s) {
    scale = s.data<float>();
    scale_stride = s.stride(0);
  }
};

// One of those rows.
struct TileRow {
  uint8_t* data;  // null if there are no tiles
  float* scale;
  int64_t scale_stride;
  bool exists;

  __device__ TileRow(const TilesView& view, int64_t row) : scale_stride(view.scale_stride) {
    const int64_t at = view.scale == nullptr ? -1 : view.rows.row_offset(row);
    exists = view.scale == nullptr || at >= 0;
    data = at < 0 ? nullptr : static_cast<uint8_t*>(view.rows.data) + at;
    scale = view.scale + (at < 0 ? 0 : view.rows.column_of(row));
  }
  // Elements i .. i + 7, by all threads of a tile at once; `active`: they are within the row.
  __device__ void put(int64_t i, const PackedEight& e, ScaleFormat format, bool active,
                      const FaultSite& fault) const {
    const Divisor by(tile_scale(largest_of_tile(largest_of(e), fault), format));
    if (!active) return;
    uint32_t two[2];
    quantise_eight(e, by, two);
    Elements<true>{data}.store(i, two, 8);
    if (i % kTileSize == 0) scale[i / kTileSize * scale_stride] = by.scale;
  }
  __device__ Eight get(int64_t i) const {
    Eight e = Elements<true>{data}.load(i, 8);
    const float s = scale[i / kTileSize * scale_stride];
#pragma unroll
    for (float& value : e.of) value = value * s;
    return e;
  }
};

__device__ const bf16* row_of(const PagedView& rows, int64_t row) {
  const int64_t at = rows.row_offset(row);
  return at < 0 ? nullptr : static_cast<const bf16*>(rows.data) + at;
}
__device__ bf16* row_to(const PagedView& rows, int64_t row) {
  return const_cast<bf16*>(row_of(rows, row));
}

template <class Rows>
__global__ void __launch_bounds__(kRowThreads, kBlocksOfSm)
    forward_kernel(Rows rows, int64_t F, PagedView gate_up, const float* row_weight, TilesView kept,
                   TilesView y, FaultSite fault) {
  const int64_t row = row_of_group<kWarp>();
  if (!rows.in_use(row)) return;
  const bf16* const from = row_of(gate_up, row);
  const TileRow kept_row(kept, row), to(y, row);
  if (from == nullptr || !kept_row.exists || !to.exists) return;
  const float weight = row_weight != nullptr ? row_weight[row] : 1.0f;
  // Every thread of the warp takes part in the scales.
  for (int64_t first = 0; first < F; first += kWarp * 8) {
    const int64_t i = first + threadIdx.x % kWarp * 8;
    const bool active = i < F;
    PackedEight packed_gate{}, packed_up{};
    if (active) {
      packed_gate = PackedEight::load(from + i);
      packed_up = PackedEight::load(from + F + i);
    }
    const Eight gate = Eight::widen(packed_gate), up = Eight::widen(packed_up);
    Eight out;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      out.of[j] = weight * ((gate.of[j] * sigmoid_of(gate.of[j])) * up.of[j]);
    if (kept_row.data != nullptr) {
      kept_row.put(i, packed_gate, ScaleFormat::kF32, active, fault);
      kept_row.put(F + i, packed_up, ScaleFormat::kF32, active, fault);
    }
    to.put(i, out.narrow(), ScaleFormat::kF32, active, fault);
  }
}

template <class Rows>
__global__ void __launch_bounds__(kRowThreads, kBlocksOfSm)
    backward_kernel(Rows rows, int64_t F, PagedView plain, TilesView tiled, const float* row_weight,
                    PagedView dy, ScaleFormat format, PagedView dgate_up, TilesView dgate,
                    TilesView dup, PagedView y, float* drow_weight, FaultSite fault) {
  const int64_t row = row_of_group<kWarp>();
  if (!rows.in_use(row)) return;
  const TileRow tiles(tiled, row), dgate_row(dgate, row), dup_row(dup, row);
  const bf16* const from = tiles.data == nullptr ? row_of(plain, row) : nullptr;
  const bf16* const dys = row_of(dy, row);
  bf16 *const dto = row_to(dgate_up, row), *const to = row_to(y, row);
  if ((from == nullptr && tiles.data == nullptr) || dys == nullptr || dto == nullptr ||
      to == nullptr || !dgate_row.exists || !dup_row.exists)
    return;
  const float weight = row_weight != nullptr ? row_weight[row] : 1.0f;
  float part = 0.0f;
  for (int64_t first = 0; first < F; first += kWarp * 8) {
    const int64_t i = first + threadIdx.x % kWarp * 8;
    const bool active = i < F;
    Eight gate{}, up{}, d{};
    if (active) {
      gate = tiles.data != nullptr ? Eight::widen(tiles.get(i).narrow()) : Eight::load(from + i);
      up = tiles.data != nullptr ? Eight::widen(tiles.get(F + i).narrow())
                                 : Eight::load(from + F + i);
      d = Eight::load(dys + i);
    }
    Eight dg, du, out;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float z = sigmoid_of(gate.of[j]), silu = gate.of[j] * z, value = silu * up.of[j];
      dg.of[j] = weight * ((d.of[j] * up.of[j]) * (z * (1.0f + gate.of[j] * (1.0f - z))));
      du.of[j] = weight * (d.of[j] * silu);
      out.of[j] = weight * value;
      part += d.of[j] * value;
    }
    const PackedEight packed_gate = dg.narrow(), packed_up = du.narrow();
    if (active) {
      packed_gate.store(dto + i);
      packed_up.store(dto + F + i);
      out.store(to + i);
    }
    dgate_row.put(i, packed_gate, format, active, fault);
    dup_row.put(i, packed_up, format, active, fault);
  }
  if (drow_weight == nullptr) return;
  const float sum = sum_of_warp(part);
  if (threadIdx.x % kWarp == 0) drow_weight[row] = sum;
}

// Plain rows of gate and up, or those in tiles.
bool takes_input(const TileRows& q) {
  return q.scale.empty() ? has_bf16_rows(q.data) : has_eights(q.data);
}
bool takes_input(const PagedRows& q) {
  return q.scale.empty() ? has_bf16_pages(q) : has_eights(q.slab);
}
bool takes_width(int64_t F) { return F % kTileSize == 0; }

// Row numbers that all of them have room for.
int64_t num_rows(std::initializer_list<const PagedRows*> all, const Tensor& values) {
  int64_t rows = values.dim(0);
  for (const PagedRows* one : all) rows = std::min(rows, num_places(*one) * kPageRows);
  return rows;
}

}  // namespace

void swiglu_forward_tiles(Context& ctx, In gate_up, const TileRows& kept, const TileRows& y) {
  const int64_t T = y.data.dim(0), F = y.data.dim(1);
  if (T == 0) return;
  if (!has_bf16_rows(gate_up) || !takes_width(F) || !has_eights(kept.data) || !has_eights(y.data))
    return in_steps::swiglu_forward_tiles(ctx, gate_up, kept, y);
  forward_kernel<<<blocks_for_rows(T), kRowThreads, 0, stream_of(ctx)>>>(
      DenseRows{T}, F, PagedView(gate_up), nullptr, TilesView(kept), TilesView(y),
      FaultSite(ctx, kNotFinite));
  check_launch(ctx, "swiglu_forward_tiles", y.data);
}

void swiglu_backward_tiles(Context& ctx, const TileRows& gate_up, In dy, TileRule rule,
                           Out dgate_up, const TileRows& dgate, const TileRows& dup, Out y) {
  const int64_t T = dy.dim(0), F = dy.dim(1);
  if (T == 0) return;
  if (!takes_width(F) || rule.shape != TileShape::kRow || !takes_input(gate_up) ||
      !has_bf16_rows(dy) || !has_bf16_rows(dgate_up) || !has_bf16_rows(y) ||
      !has_eights(dgate.data) || !has_eights(dup.data))
    return in_steps::swiglu_backward_tiles(ctx, gate_up, dy, rule, dgate_up, dgate, dup, y);
  backward_kernel<<<blocks_for_rows(T), kRowThreads, 0, stream_of(ctx)>>>(
      DenseRows{T}, F, PagedView(gate_up.data),
      TilesView(gate_up.scale.empty() ? TileRows{} : gate_up), nullptr, PagedView(dy), rule.format,
      PagedView(dgate_up), TilesView(dgate), TilesView(dup), PagedView(y), nullptr,
      FaultSite(ctx, kNotFinite));
  check_launch(ctx, "swiglu_backward_tiles", dy);
}

void grouped_swiglu_forward_tiles(Context& ctx, const ExpertLayout& layout,
                                  const PagedRows& gate_up, In row_weight, const PagedRows& kept,
                                  const PagedRows& y) {
  const int64_t F = y.slab.dim(2), count = num_rows({&gate_up, &y}, row_weight);
  if (count == 0) return;
  if (!has_bf16_pages(gate_up) || !takes_width(F) || !has_eights(kept.slab) || !has_eights(y.slab))
    return in_steps::grouped_swiglu_forward_tiles(ctx, layout, gate_up, row_weight, kept, y);
  forward_kernel<<<blocks_for_rows(count), kRowThreads, 0, stream_of(ctx)>>>(
      LayoutRows{LayoutView(layout)}, F, PagedView(gate_up), row_weight.data<float>(),
      TilesView(kept), TilesView(y), FaultSite(ctx, kNotFinite));
  check_launch(ctx, "grouped_swiglu_forward_tiles", y.slab);
}

void grouped_swiglu_backward_tiles(Context& ctx, const ExpertLayout& layout,
                                   const PagedRows& gate_up, In row_weight, const PagedRows& dy,
                                   TileRule rule, const PagedRows& dgate_up, const PagedRows& dgate,
                                   const PagedRows& dup, const PagedRows& y, Out drow_weight) {
  const int64_t F = dy.slab.dim(2);
  const int64_t count = std::min(num_rows({&gate_up, &dy, &dgate_up, &y}, row_weight),
                                 num_rows({&dgate, &dup}, drow_weight));
  if (count == 0) return;
  if (!takes_width(F) || rule.shape != TileShape::kRow || !takes_input(gate_up) ||
      !has_bf16_pages(dy) || !has_bf16_pages(dgate_up) || !has_bf16_pages(y) ||
      !has_eights(dgate.slab) || !has_eights(dup.slab))
    return in_steps::grouped_swiglu_backward_tiles(ctx, layout, gate_up, row_weight, dy, rule,
                                                   dgate_up, dgate, dup, y, drow_weight);
  backward_kernel<<<blocks_for_rows(count), kRowThreads, 0, stream_of(ctx)>>>(
      LayoutRows{LayoutView(layout)}, F, PagedView(gate_up),
      TilesView(gate_up.scale.empty() ? PagedRows{} : gate_up), row_weight.data<float>(),
      PagedView(dy), rule.format, PagedView(dgate_up), TilesView(dgate), TilesView(dup),
      PagedView(y), drow_weight.data<float>(), FaultSite(ctx, kNotFinite));
  check_launch(ctx, "grouped_swiglu_backward_tiles", dy.slab);
}

}  // namespace hadal::ops::cuda
