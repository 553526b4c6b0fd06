// AdamW, moving averages and sums of squares on the CPU.
// SPDX-License-Identifier: Apache-2.0
#include "ops/optim.h"

#include <cmath>

#include "ops/cpu/rows.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kTile = 1024;      // elements that a thread converts at a time, on its stack
constexpr int64_t kSumBlock = 4096;  // elements of one partial sum of squares

}  // namespace

void adamw(Context& ctx, const AdamW& rule, In grad, Acc param, Acc m, Acc v) {
  with_arithmetic({param.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    const double correction1 = 1.0 - std::pow(rule.beta1, static_cast<double>(rule.step));
    const double correction2 = 1.0 - std::pow(rule.beta2, static_cast<double>(rule.step));
    const AdamwFactors<R> factors = {
        .grad_scale = static_cast<R>(rule.grad_scale),
        .beta1 = static_cast<R>(rule.beta1),
        .one_minus_beta1 = static_cast<R>(1.0 - rule.beta1),
        .beta2 = static_cast<R>(rule.beta2),
        .one_minus_beta2 = static_cast<R>(1.0 - rule.beta2),
        .keep = static_cast<R>(1.0 - rule.lr * rule.weight_decay),
        .step = static_cast<R>(rule.lr / correction1),
        .correction2 = static_cast<R>(1.0 / correction2),
        .eps = static_cast<R>(rule.eps),
    };
    for_rows(ctx, param.num_elements(), 1, [&](int64_t begin, int64_t end, int) {
      R tile[4][kTile];
      for (int64_t i = begin; i < end; i += kTile) {
        const int64_t count = std::min(kTile, end - i);
        const R* g = read_row(grad, i, count, tile[0]);
        R* state[3];
        const Tensor* tensors[3] = {&param, &m, &v};
        for (int j = 0; j < 3; ++j) {
          state[j] = begin_row(*tensors[j], i, tile[j + 1]);
          read_row(*tensors[j], i, count, state[j]);
        }
        kernels.adamw(factors, g, state[0], state[1], state[2], count);
        for (int j = 0; j < 3; ++j) end_row(state[j], *tensors[j], i, count);
      }
    });
  });
}

void ema_update(Context& ctx, double decay, In x, Acc average) {
  with_arithmetic({average.dtype()}, [&]<class R>(R) {
    const R keep = static_cast<R>(decay), take = static_cast<R>(1.0 - decay);
    for_rows(ctx, x.num_elements(), 1, [&](int64_t begin, int64_t end, int) {
      R tile[2][kTile];
      for (int64_t i = begin; i < end; i += kTile) {
        const int64_t count = std::min(kTile, end - i);
        const R* from = read_row(x, i, count, tile[0]);
        R* to = begin_row(average, i, tile[1]);
        read_row(average, i, count, to);
        for (int64_t j = 0; j < count; ++j) to[j] = keep * to[j] + take * from[j];
        end_row(to, average, i, count);
      }
    });
  });
}

void sum_squares_acc(Context& ctx, In x, Acc total) {
  const int64_t n = x.num_elements(), num_blocks = (n + kSumBlock - 1) / kSumBlock;
  Tensor partial;
  const Block memory = ctx.memory.take_tensor(DType::kF64, {num_blocks}, &partial);
  double* sums = partial.data<double>();
  with_arithmetic({x.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    for_rows(ctx, num_blocks, kSumBlock, [&](int64_t begin, int64_t end, int) {
      R tile[kSumBlock];
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kSumBlock, count = std::min(kSumBlock, n - first);
        sums[block] = kernels.sum_squares(read_row(x, first, count, tile), count);
      }
    });
  });
  double sum = 0;
  for (int64_t block = 0; block < num_blocks; ++block) sum += sums[block];
  total.data<double>()[0] += sum;
}

}  // namespace hadal::ops::cpu
