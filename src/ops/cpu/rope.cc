// Rotary position embedding on the CPU.
//
//   T tokens   H heads   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#include "ops/rope.h"

#include <cmath>

#include "ops/cpu/rows.h"

namespace hadal::ops::cpu {
namespace {

// Turns one head in place; `sine` is +1 forward and -1 backward, which is the transpose.
template <class R>
void turn(RopeLayout layout, const R* angles, R sine, R* x, int64_t num_pairs) {
  const R *cosines = angles, *sines = angles + num_pairs;
  const int64_t step = layout == RopeLayout::kInterleaved ? 2 : 1;
  const int64_t other = layout == RopeLayout::kInterleaved ? 1 : num_pairs;
  for (int64_t j = 0; j < num_pairs; ++j) {
    const R c = cosines[j], s = sine * sines[j];
    const R a = x[j * step], b = x[j * step + other];
    x[j * step] = a * c - b * s;
    x[j * step + other] = a * s + b * c;
  }
}

}  // namespace

void rope_table(Context& ctx, In positions, In inv_freq, double magnitude, Out table) {
  const int64_t T = positions.dim(0), num_pairs = inv_freq.dim(0);
  const int32_t* position = positions.data<int32_t>();
  const double* freq = inv_freq.data<double>();
  for_rows(ctx, T, 32 * num_pairs, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t j = 0; j < num_pairs; ++j) {
        const double angle = static_cast<double>(position[t * positions.stride(0)]) * freq[j];
        const int64_t at = t * table.stride(0) + j;
        store_element(table.raw(), table.dtype(), at, magnitude * std::cos(angle));
        store_element(table.raw(), table.dtype(), at + num_pairs, magnitude * std::sin(angle));
      }
    }
  });
}

void rope_apply(Context& ctx, RopeLayout layout, RopeDirection direction, In table, Acc x) {
  const int64_t T = x.dim(0), H = x.dim(1), Dr = x.dim(2);
  with_arithmetic({x.dtype(), table.dtype()}, [&]<class R>(R) {
    const R sine = direction == RopeDirection::kForward ? R(1) : R(-1);
    const ScratchRows<R> scratch(ctx, 2, Dr);
    for_rows(ctx, T, H * Dr, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const R* angles = read_row(table, t * table.stride(0), Dr, scratch.row(thread, 0));
        for (int64_t h = 0; h < H; ++h) {
          const int64_t at = t * x.stride(0) + h * x.stride(1);
          R* head = begin_row(x, at, scratch.row(thread, 1));
          read_row(x, at, Dr, head);
          turn(layout, angles, sine, head, Dr / 2);
          end_row(head, x, at, Dr);
        }
      }
    });
  });
}

}  // namespace hadal::ops::cpu
