// SwiGLU on CUDA: a warp or a thread block a row for bf16, else 16 threads a row.
//
//   T rows   F hidden width
// SPDX-License-Identifier: Apache-2.0
#include "ops/activation.h"
#include "ops/cuda/detail/bf16_rows.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/math.cuh"
#include "ops/cuda/detail/pages.cuh"
#include "ops/cuda/detail/rows.cuh"

namespace hadal::ops::cuda {
namespace {

// One row: the offsets in elements of what belongs to it; negative for a row that is not in use.
struct RowOffsets {
  int64_t gate_up, dy, dgate_up, y;
};

// Where the rows of the tensors are: by row of a matrix, or by row number of a layout.
struct DenseRows {
  int64_t T;
  int64_t gate_up, dy, dgate_up, y;  // row strides
  __device__ bool find(int64_t row, RowOffsets* at) const {
    if (row >= T) return false;
    *at = {row * gate_up, row * dy, row * dgate_up, row * y};
    return true;
  }
};
struct LayoutRows {
  LayoutView layout;
  PagedView gate_up, dy, dgate_up, y;
  __device__ bool find(int64_t row, RowOffsets* at) const {
    const int64_t position = row / kPageRows;
    if (position >= layout.num_positions()) return false;
    if (row % kPageRows >= layout.rows_at(layout.expert_of(position), position)) return false;
    *at = {gate_up.row_offset(row), dy.row_offset(row), dgate_up.row_offset(row),
           y.row_offset(row)};
    return at->gate_up >= 0 && at->dy >= 0 && at->dgate_up >= 0 && at->y >= 0;
  }
};

template <class R, class Rows>
__global__ void forward_kernel(Rows rows, int64_t F, View gate_up, const R* row_weight, View y) {
  const int64_t row = group_row();
  RowOffsets at;
  if (!rows.find(row, &at)) return;
  const R weight = row_weight != nullptr ? row_weight[row] : R(1);
  for (int64_t i = group_lane(); i < F; i += kLanes) {
    const R gate = gate_up.get<R>(at.gate_up + i), up = gate_up.get<R>(at.gate_up + F + i);
    y.put(at.y + i, weight * ((gate * sigmoid_of(gate)) * up));
  }
}

template <class R, class Rows>
__global__ void backward_kernel(Rows rows, int64_t F, View gate_up, const R* row_weight, View dy,
                                View dgate_up, View y, R* drow_weight) {
  const int64_t row = group_row();
  RowOffsets at;
  const bool in_use = rows.find(row, &at);
  const R weight = in_use && row_weight != nullptr ? row_weight[row] : R(1);
  const R dweight = sum_row<R>(in_use ? F : 0, [&](int64_t i) {
    const R gate = gate_up.get<R>(at.gate_up + i), up = gate_up.get<R>(at.gate_up + F + i);
    const R d = dy.get<R>(at.dy + i);
    const R z = sigmoid_of(gate), silu = gate * z, out = silu * up;
    dgate_up.put(at.dgate_up + i, weight * ((d * up) * (z * (R(1) + gate * (R(1) - z)))));
    dgate_up.put(at.dgate_up + F + i, weight * (d * silu));
    y.put(at.y + i, weight * out);
    return d * out;
  });
  if (in_use && drow_weight != nullptr && group_lane() == 0) drow_weight[row] = dweight;
}

template <int kGroup, class Rows>
__global__ void __launch_bounds__(kRowThreads)
    forward_bf16_kernel(Rows rows, int64_t F, View gate_up, const float* row_weight, View y) {
  const int64_t row = row_of_group<kGroup>();
  RowOffsets at;
  if (!rows.find(row, &at)) return;
  const float weight = row_weight != nullptr ? row_weight[row] : 1.0f;
  const auto* from = static_cast<const bf16*>(gate_up.data) + at.gate_up;
  auto* const to = static_cast<bf16*>(y.data) + at.y;
  for (int64_t i = threadIdx.x % kGroup * 8; i < F; i += kGroup * 8) {
    const Eight gate = Eight::load(from + i), up = Eight::load(from + F + i);
    Eight out;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      out.of[j] = weight * ((gate.of[j] * sigmoid_of(gate.of[j])) * up.of[j]);
    out.store(to + i);
  }
}

template <int kGroup, class Rows>
__global__ void __launch_bounds__(kRowThreads)
    backward_bf16_kernel(Rows rows, int64_t F, View gate_up, const float* row_weight, View dy,
                         View dgate_up, View y, float* drow_weight) {
  __shared__ float shared[kRowThreads / 32];
  const int64_t row = row_of_group<kGroup>();
  RowOffsets at;
  if (!rows.find(row, &at)) return;
  const float weight = row_weight != nullptr ? row_weight[row] : 1.0f;
  const auto* from = static_cast<const bf16*>(gate_up.data) + at.gate_up;
  const auto* dys = static_cast<const bf16*>(dy.data) + at.dy;
  auto* const dto = static_cast<bf16*>(dgate_up.data) + at.dgate_up;
  auto* const to = static_cast<bf16*>(y.data) + at.y;
  float part = 0.0f;
  for (int64_t i = threadIdx.x % kGroup * 8; i < F; i += kGroup * 8) {
    const Eight gate = Eight::load(from + i), up = Eight::load(from + F + i);
    const Eight d = Eight::load(dys + i);
    Eight dgate, dup, out;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float z = sigmoid_of(gate.of[j]), silu = gate.of[j] * z, value = silu * up.of[j];
      dgate.of[j] = weight * ((d.of[j] * up.of[j]) * (z * (1.0f + gate.of[j] * (1.0f - z))));
      dup.of[j] = weight * (d.of[j] * silu);
      out.of[j] = weight * value;
      part += d.of[j] * value;
    }
    dgate.store(dto + i);
    dup.store(dto + F + i);
    out.store(to + i);
  }
  if (drow_weight == nullptr) return;
  float sum = 0.0f;
  if constexpr (kGroup == 32)
    sum = sum_of_warp(part);
  else
    sum = sum_of_row(part, shared);
  if (threadIdx.x % kGroup == 0) drow_weight[row] = sum;
}

// What rows of a forward may take a warp: no bits depend on that.
int64_t narrow_of(int64_t rows) {
  constexpr int64_t kMany = 16384;
  return rows >= kMany ? kNarrowOfMany : kNarrow;
}

unsigned row_blocks(int64_t rows) { return static_cast<unsigned>(ceil_div(rows, kRowsPerBlock)); }

// Row numbers that the tensors have room for.
int64_t num_rows(const PagedRows& a, const PagedRows& b, const Tensor& values) {
  const int64_t places = std::min(num_places(a), num_places(b));
  return std::min(places * kPageRows, values.dim(0));
}

}  // namespace

void swiglu_forward(Context& ctx, In gate_up, Out y) {
  const int64_t T = y.dim(0), F = y.dim(1);
  if (T == 0) return;
  const DenseRows rows{T, gate_up.stride(0), 0, 0, y.stride(0)};
  if (has_bf16_rows(gate_up) && has_bf16_rows(y)) {
    with_group(T, F, narrow_of(T), [&]<class G>(G, unsigned blocks) {
      forward_bf16_kernel<G::value>
          <<<blocks, kRowThreads, 0, stream_of(ctx)>>>(rows, F, View(gate_up), nullptr, View(y));
    });
    return check_launch(ctx, "swiglu_forward", y);
  }
  with_arithmetic({gate_up.dtype()}, [&]<class R>(R) {
    forward_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
        rows, F, View(gate_up), static_cast<const R*>(nullptr), View(y));
  });
  check_launch(ctx, "swiglu_forward", y);
}

void swiglu_backward(Context& ctx, In gate_up, In dy, Out dgate_up, Out y) {
  const int64_t T = dy.dim(0), F = dy.dim(1);
  if (T == 0) return;
  const DenseRows rows{T, gate_up.stride(0), dy.stride(0), dgate_up.stride(0), y.stride(0)};
  if (has_bf16_rows(gate_up) && has_bf16_rows(dy) && has_bf16_rows(dgate_up) && has_bf16_rows(y)) {
    with_group(T, F, kNarrowOfMany, [&]<class G>(G, unsigned blocks) {
      backward_bf16_kernel<G::value><<<blocks, kRowThreads, 0, stream_of(ctx)>>>(
          rows, F, View(gate_up), nullptr, View(dy), View(dgate_up), View(y), nullptr);
    });
    return check_launch(ctx, "swiglu_backward", dy);
  }
  with_arithmetic({gate_up.dtype()}, [&]<class R>(R) {
    backward_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
        rows, F, View(gate_up), static_cast<const R*>(nullptr), View(dy), View(dgate_up), View(y),
        static_cast<R*>(nullptr));
  });
  check_launch(ctx, "swiglu_backward", dy);
}

void grouped_swiglu_forward(Context& ctx, const ExpertLayout& layout, const PagedRows& gate_up,
                            In row_weight, const PagedRows& y) {
  const int64_t F = y.slab.dim(2), count = num_rows(gate_up, y, row_weight);
  if (count == 0) return;
  const LayoutRows rows{LayoutView(layout), PagedView(gate_up), PagedView(y), PagedView(gate_up),
                        PagedView(y)};
  if (has_bf16_pages(gate_up) && has_bf16_pages(y)) {
    with_group(count, F, narrow_of(count), [&]<class G>(G, unsigned blocks) {
      forward_bf16_kernel<G::value><<<blocks, kRowThreads, 0, stream_of(ctx)>>>(
          rows, F, View(gate_up.slab), row_weight.data<float>(), View(y.slab));
    });
    return check_launch(ctx, "grouped_swiglu_forward", y.slab);
  }
  with_arithmetic({gate_up.slab.dtype()}, [&]<class R>(R) {
    forward_kernel<R><<<row_blocks(count), kThreads, 0, stream_of(ctx)>>>(
        rows, F, View(gate_up.slab), row_weight.data<R>(), View(y.slab));
  });
  check_launch(ctx, "grouped_swiglu_forward", y.slab);
}

void grouped_swiglu_backward(Context& ctx, const ExpertLayout& layout, const PagedRows& gate_up,
                             In row_weight, const PagedRows& dy, const PagedRows& dgate_up,
                             const PagedRows& y, Out drow_weight) {
  const int64_t F = dy.slab.dim(2);
  const int64_t count =
      std::min(num_rows(gate_up, dy, row_weight), num_rows(dgate_up, y, drow_weight));
  if (count == 0) return;
  const LayoutRows rows{LayoutView(layout), PagedView(gate_up), PagedView(dy), PagedView(dgate_up),
                        PagedView(y)};
  if (has_bf16_pages(gate_up) && has_bf16_pages(dy) && has_bf16_pages(dgate_up) &&
      has_bf16_pages(y)) {
    with_group(count, F, kNarrowOfMany, [&]<class G>(G, unsigned blocks) {
      backward_bf16_kernel<G::value><<<blocks, kRowThreads, 0, stream_of(ctx)>>>(
          rows, F, View(gate_up.slab), row_weight.data<float>(), View(dy.slab), View(dgate_up.slab),
          View(y.slab), drow_weight.data<float>());
    });
    return check_launch(ctx, "grouped_swiglu_backward", dy.slab);
  }
  with_arithmetic({gate_up.slab.dtype()}, [&]<class R>(R) {
    backward_kernel<R><<<row_blocks(count), kThreads, 0, stream_of(ctx)>>>(
        rows, F, View(gate_up.slab), row_weight.data<R>(), View(dy.slab), View(dgate_up.slab),
        View(y.slab), drow_weight.data<R>());
  });
  check_launch(ctx, "grouped_swiglu_backward", dy.slab);
}

}  // namespace hadal::ops::cuda
