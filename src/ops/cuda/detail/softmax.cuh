// Rows of scores in a block's scratch memory: softmax by groups of 16 threads, and scratch for as
// many blocks as fit.
//
//   n visible elements of a row
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/math.cuh"
#include "ops/cuda/detail/rows.cuh"

namespace hadal::ops::cuda {

// Calls fn(row) for rows [0, count), 16 at a time; the groups of a warp take part together, so fn
// gets a row >= count where there is none left.
template <class Fn>
__device__ void for_group_rows(int64_t count, const Fn& fn) {
  for (int64_t row = threadIdx.x / kLanes; row - threadIdx.x / kLanes < count; row += kRowsPerBlock)
    fn(row);
}

// x [n] = softmax of scale * x; returns the log of the denominator.
template <class R>
__device__ R softmax_row(R* x, int64_t n, R scale) {
  const R top = max_row<R>(n, [&](int64_t i) { return x[i]; }) * scale;
  const R sum = sum_row<R>(n, [&](int64_t i) {
    x[i] = softmax_exp(x[i] * scale - top);
    return x[i];
  });
  const R factor = R(1) / sum;
  for (int64_t i = group_lane(); i < n; i += kLanes) x[i] *= factor;
  return top + log_of(sum);
}

// Scratch of `per_block` elements for each of up to `tasks` blocks; a block takes several tasks
// where memory does not allow one each.
template <class R>
class BlockScratch {
 public:
  BlockScratch(Context& ctx, int64_t tasks, int64_t per_block)
      : num_blocks_(blocks_of(tasks, per_block)),
        memory_(ctx.memory.take_tensor(DTypeOf<R>::value, {num_blocks_ * per_block}, &view_)) {}
  unsigned num_blocks() const { return static_cast<unsigned>(num_blocks_); }
  R* data() const { return view_.data<R>(); }

 private:
  static int64_t blocks_of(int64_t tasks, int64_t per_block) {
    constexpr int64_t kMostBlocks = 264;              // two for each multiprocessor of an H100
    constexpr int64_t kMostBytes = int64_t{1} << 30;  // unless one block needs more
    const int64_t bytes = std::max<int64_t>(1, per_block * static_cast<int64_t>(sizeof(R)));
    return std::clamp<int64_t>(std::min(kMostBytes / bytes, kMostBlocks), 1, tasks);
  }

  int64_t num_blocks_;
  Tensor view_;
  Block memory_;
};

}  // namespace hadal::ops::cuda
