// Sums along a row by a group of 16 threads, in the order of the CPU's row kernels.
//
// Element i goes to partial sum i mod 16; the partial sums are added in a fixed tree. So a row has
// the same bits on every device, and never depends on other rows. Kernels that include this are
// compiled without contraction of multiply-adds (see CMakeLists.txt), as the CPU's are.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/element.cuh"

namespace hadal::ops::cuda {

inline constexpr int kLanes = 16;                   // threads of a row
inline constexpr int kRowsPerBlock = 256 / kLanes;  // rows of a block of 256 threads
inline constexpr unsigned kWholeWarp = 0xffffffffu;

// The row that this group of threads works on (groups of a warp work on neighbouring rows), and the
// thread's place in the group. All groups of a warp must call the sums together.
__device__ inline int64_t group_row() {
  return static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kLanes;
}
__device__ inline int64_t group_lane() { return threadIdx.x % kLanes; }

template <class R>
__device__ R from_lane(R value, int lane) {
  return __shfl_sync(kWholeWarp, value, lane, kLanes);
}

// Every thread of the group gets the sum.
template <class R>
__device__ R add_lanes(R partial) {
  for (int half = 8; half > 2; half /= 2)
    partial = partial + __shfl_down_sync(kWholeWarp, partial, half, kLanes);
  const R s0 = from_lane(partial, 0), s1 = from_lane(partial, 1);
  const R s2 = from_lane(partial, 2), s3 = from_lane(partial, 3);
  return (s0 + s2) + (s1 + s3);
}

template <class R>
__device__ R max_lanes(R best) {
  for (int half = 8; half > 0; half /= 2) {
    const R other = __shfl_xor_sync(kWholeWarp, best, half, kLanes);
    best = other > best ? other : best;
  }
  return best;
}

// Sum over i < n of term(i).
template <class R, class Term>
__device__ R sum_row(int64_t n, const Term& term) {
  R partial = 0;
  for (int64_t i = group_lane(); i < n; i += kLanes) partial += term(i);
  return add_lanes(partial);
}

template <class R>
__device__ R lowest() {
  return -static_cast<R>(INFINITY);
}

// NaN is passed over; -inf if there is nothing.
template <class R, class Term>
__device__ R max_row(int64_t n, const Term& term) {
  R best = lowest<R>();
  for (int64_t i = group_lane(); i < n; i += kLanes) {
    const R value = term(i);
    best = value > best ? value : best;
  }
  return max_lanes(best);
}

}  // namespace hadal::ops::cuda
