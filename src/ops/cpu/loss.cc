// Cross-entropy on the CPU.
//
//   T tokens of the chunk   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "ops/loss.h"

#include <cmath>

#include "ops/cpu/rows.h"

namespace hadal::ops::cpu {
namespace {

// The target of token t, or -1 for none.
int64_t target_of(const Tensor& targets, int64_t t, int64_t V) {
  const int64_t target = targets.data<int32_t>()[t * targets.stride(0)];
  HADAL_CHECK(target >= -1 && target < V, "target ", target, " of token ", t,
              " is outside the vocabulary of ", V, " ids; use -1 for no target");
  return target;
}

template <class R>
R& stat(const Tensor& t, int64_t index) {
  return t.data<R>()[index * t.stride(0)];
}

}  // namespace

void cross_entropy_forward(Context& ctx, In logits, In targets, Out lse, Out loss) {
  const int64_t T = logits.dim(0), V = logits.dim(1);
  with_arithmetic({logits.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    const ScratchRows<R> scratch(ctx, 1, V);
    for_rows(ctx, T, V, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t target = target_of(targets, t, V);
        const R* row = read_row(logits, t * logits.stride(0), V, scratch.row(thread, 0));
        const R largest = kernels.max(row, V);
        const R log_sum = largest + std::log(kernels.exp_sum(row, largest, V));
        stat<R>(lse, t) = log_sum;
        stat<R>(loss, t) = target < 0 ? R(0) : log_sum - row[target];
      }
    });
  });
}

void cross_entropy_backward(Context& ctx, In logits, In targets, In lse, double scale,
                            Out dlogits) {
  const int64_t T = logits.dim(0), V = logits.dim(1);
  with_arithmetic({logits.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    const ScratchRows<R> scratch(ctx, 2, V);
    for_rows(ctx, T, V, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t target = target_of(targets, t, V);
        const int64_t at = t * dlogits.stride(0);
        R* to = begin_row(dlogits, at, scratch.row(thread, 1));
        if (target < 0) {
          std::fill(to, to + V, R(0));
        } else {
          const R* row = read_row(logits, t * logits.stride(0), V, scratch.row(thread, 0));
          kernels.exp_shifted(row, stat<R>(lse, t), static_cast<R>(scale), to, V);
          to[target] -= static_cast<R>(scale);
        }
        end_row(to, dlogits, at, V);
      }
    });
  });
}

void sum_acc(Context&, In x, Acc total) {
  double sum = 0;
  for (int64_t i = 0; i < x.dim(0); ++i) sum += load_element(x.raw(), x.dtype(), i * x.stride(0));
  total.data<double>()[0] += sum;
}

}  // namespace hadal::ops::cpu
