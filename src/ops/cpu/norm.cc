// RMSNorm on the CPU.
//
//   T rows   D width   B blocks of kGainRows rows
// SPDX-License-Identifier: Apache-2.0
#include "ops/norm.h"

#include <cmath>

#include "ops/cpu/rows.h"

namespace hadal::ops::cpu {
namespace {

// dgain is summed over blocks of this many rows, then over the blocks in order.
constexpr int64_t kGainRows = 64;

// The gain as an array of R, converted once in the calling thread.
template <class R>
class GainRow {
 public:
  GainRow(Context& ctx, const Tensor& gain) {
    const int64_t D = gain.dim(0);
    memory_ = ctx.memory.take_tensor(DTypeOf<R>::value, {D}, &copy_);
    row_ = read_row(gain, 0, D, static_cast<R*>(copy_.raw()));
  }
  const R* data() const { return row_; }

 private:
  Block memory_;
  Tensor copy_;
  const R* row_;
};

template <class R>
R& stat(const Tensor& t, int64_t index) {
  return t.data<R>()[index * t.stride(0)];
}

}  // namespace

void rmsnorm_forward(Context& ctx, In x, In gain, double eps, Out y, Out rstd) {
  const int64_t T = x.dim(0), D = x.dim(1);
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    const ScratchRows<R> scratch(ctx, 2, D);
    const GainRow<R> gain_row(ctx, gain);
    for_rows(ctx, T, D, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const R* from = read_row(x, t * x.stride(0), D, scratch.row(thread, 0));
        const R mean = kernels.dot(from, from, D) / static_cast<R>(D);
        const R r = R(1) / std::sqrt(mean + static_cast<R>(eps));
        stat<R>(rstd, t) = r;
        R* to = begin_row(y, t * y.stride(0), scratch.row(thread, 1));
        kernels.norm(from, gain_row.data(), r, to, D);
        end_row(to, y, t * y.stride(0), D);
      }
    });
  });
}

void rmsnorm_forward_tiles(Context& ctx, In x, In gain, double eps, Out y, Out rstd,
                           const TileRows& y_tiles) {
  in_steps::rmsnorm_forward_tiles(ctx, x, gain, eps, y, rstd, y_tiles);
}

void rmsnorm_recompute(Context& ctx, In x, In gain, In rstd, Out y) {
  const int64_t T = x.dim(0), D = x.dim(1);
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    const ScratchRows<R> scratch(ctx, 2, D);
    const GainRow<R> gain_row(ctx, gain);
    for_rows(ctx, T, D, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const R* from = read_row(x, t * x.stride(0), D, scratch.row(thread, 0));
        R* to = begin_row(y, t * y.stride(0), scratch.row(thread, 1));
        kernels.norm(from, gain_row.data(), stat<R>(rstd, t), to, D);
        end_row(to, y, t * y.stride(0), D);
      }
    });
  });
}

void rmsnorm_backward(Context& ctx, In x, In gain, In rstd, In dy, Out dx, Out dgain) {
  const int64_t T = x.dim(0), D = x.dim(1), B = (T + kGainRows - 1) / kGainRows;
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    const ScratchRows<R> scratch(ctx, 3, D);
    const GainRow<R> gain_row(ctx, gain);
    Tensor partial;
    const Block partial_memory = ctx.memory.take_tensor(DTypeOf<R>::value, {B, D}, &partial);
    ctx.threads.parallel_for(B, [&](int64_t block, int thread) {
      R* block_dgain = partial.data<R>() + block * D;
      std::fill(block_dgain, block_dgain + D, R(0));
      for (int64_t t = block * kGainRows; t < std::min(T, (block + 1) * kGainRows); ++t) {
        const R* x_row = read_row(x, t * x.stride(0), D, scratch.row(thread, 0));
        const R* dy_row = read_row(dy, t * dy.stride(0), D, scratch.row(thread, 1));
        const R r = stat<R>(rstd, t);
        // x_hat = x r; dx = r (g dy - x_hat mean(g dy x_hat))
        const R along = kernels.dot3(dy_row, gain_row.data(), x_row, D);
        const R c = r * r * r * along / static_cast<R>(D);
        kernels.norm_dgain(x_row, dy_row, r, block_dgain, D);
        R* to = begin_row(dx, t * dx.stride(0), scratch.row(thread, 2));
        kernels.norm_dx(x_row, gain_row.data(), dy_row, r, c, to, D);
        end_row(to, dx, t * dx.stride(0), D);
      }
    });
    R* total = dgain.data<R>();
    std::fill(total, total + D, R(0));
    for (int64_t block = 0; block < B; ++block) {
      kernels.add(total, partial.data<R>() + block * D, total, D);
    }
  });
}

}  // namespace hadal::ops::cpu
