// The choice of a token's experts, by one warp.
//
//   E experts   G groups   K choices of a token
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/math.cuh"
#include "ops/cuda/detail/rows.cuh"
#include "ops/routing.h"

namespace hadal::ops::cuda {

inline constexpr double kNormEps =
    1e-20;  // added to the sum of a token's weights before dividing by it
inline constexpr int kWarp = 32;

enum Mark : int32_t { kClosed, kOpen, kTaken };

// A warp marks the `count` largest of the open values as taken; ties go to smaller indices.
template <class R>
__device__ void take_largest(const R* values, int64_t size, int64_t count, int32_t* marks) {
  for (int64_t i = 0; i < count; ++i) {
    R best = 0;
    int64_t at = -1;
    for (int64_t e = threadIdx.x % kWarp; e < size; e += kWarp) {
      if (marks[e] != kOpen || (at >= 0 && !(values[e] > best))) continue;
      best = values[e];
      at = e;
    }
    for (int half = kWarp / 2; half > 0; half /= 2) {
      const R other = __shfl_xor_sync(kWholeWarp, best, half);
      const int64_t other_at = __shfl_xor_sync(kWholeWarp, at, half);
      const bool better =
          other_at >= 0 && (at < 0 || other > best || (other == best && other_at < at));
      best = better ? other : best;
      at = better ? other_at : at;
    }
    if (threadIdx.x % kWarp == 0 && at >= 0) marks[at] = kTaken;
    __syncwarp();
  }
}

// A warp calls fn(k, e) for the k-th taken one, e, in ascending order; each by some thread.
template <class Fn>
__device__ void for_taken(const int32_t* marks, int64_t size, const Fn& fn) {
  const unsigned lane = threadIdx.x % kWarp;
  int before = 0;
  for (int64_t base = 0; base < size; base += kWarp) {
    const int64_t e = base + lane;
    const bool taken = e < size && marks[e] == kTaken;
    const unsigned votes = __ballot_sync(kWholeWarp, taken);
    if (taken) fn(before + __popc(votes & ((1u << lane) - 1u)), e);
    before += __popc(votes);
  }
  __syncwarp();
}

template <class R>
__device__ R group_value(GroupScore score, const R* biased, int64_t size) {
  R best = lowest<R>(), second = best;
  for (int64_t e = 0; e < size; ++e) {
    if (biased[e] > best) {
      second = best;
      best = biased[e];
    } else if (biased[e] > second) {
      second = biased[e];
    }
  }
  return score == GroupScore::kTopTwoSum && size > 1 ? best + second : best;
}

// What a warp keeps in shared memory for its token.
template <class R>
struct GateScratch {
  R *biased, *group_values;
  int32_t *marks, *group_marks;

  __host__ __device__ static int64_t bytes(int64_t E, int64_t G) {
    return (E + G) * static_cast<int64_t>(sizeof(R) + sizeof(int32_t));
  }
  __device__ GateScratch(char* memory, int64_t E, int64_t G)
      : biased(reinterpret_cast<R*>(memory)),
        group_values(biased + E),
        marks(reinterpret_cast<int32_t*>(group_values + G)),
        group_marks(marks + E) {}
};

// Unbiased scores of one token, by a warp whose two halves do the same: sums are over 16 lanes.
template <class R>
__device__ void score_row(Scoring scoring, const R* logits, R* scores, int64_t E) {
  const int64_t lane = threadIdx.x % kWarp;
  if (scoring == Scoring::kSigmoid) {
    for (int64_t e = lane; e < E; e += kWarp) scores[e] = sigmoid_of(logits[e]);
    __syncwarp();
    return;
  }
  const R largest = max_row<R>(E, [&](int64_t e) { return logits[e]; });
  const R total = sum_row<R>(E, [&](int64_t e) { return exp_of(logits[e] - largest); });
  for (int64_t e = lane; e < E; e += kWarp) scores[e] = exp_of(logits[e] - largest) / total;
  __syncwarp();
}

// Scores of the experts, and of the chosen ones, in ascending order, their numbers and weights.
template <class R>
__device__ void choose_experts(const GateRule& rule, int64_t E, const R* logits, const R* bias,
                               R* score, const GateScratch<R>& s, int32_t* idx, R* weight) {
  const int64_t lane = threadIdx.x % kWarp, G = rule.n_group, size = E / G;
  score_row(rule.scoring, logits, score, E);
  for (int64_t e = lane; e < E; e += kWarp) s.biased[e] = score[e] + bias[e];
  __syncwarp();
  if (rule.topk_group < G) {
    for (int64_t g = lane; g < G; g += kWarp) {
      s.group_values[g] = group_value(rule.group_score, s.biased + g * size, size);
      s.group_marks[g] = kOpen;
    }
    __syncwarp();
    take_largest(s.group_values, G, rule.topk_group, s.group_marks);
  }
  // NOTE: experts of other groups are closed, not zero: a biased score may be negative.
  for (int64_t e = lane; e < E; e += kWarp)
    s.marks[e] = rule.topk_group >= G || s.group_marks[e / size] == kTaken ? kOpen : kClosed;
  __syncwarp();
  take_largest(s.biased, E, rule.num_experts_per_tok, s.marks);

  const int64_t K = rule.num_experts_per_tok;
  R* const chosen = s.biased;  // no longer needed; there are no more choices than experts
  for_taken(s.marks, E, [&](int64_t k, int64_t e) {
    idx[k] = static_cast<int32_t>(e);
    chosen[k] = score[e];
  });
  R total = 0;
  for (int64_t k = 0; k < K; ++k) total += chosen[k];
  const R divisor = rule.norm_topk_prob ? total + static_cast<R>(kNormEps) : R(1);
  for (int64_t k = lane; k < K; k += kWarp)
    weight[k] = chosen[k] / divisor * static_cast<R>(rule.routed_scaling_factor);
}

}  // namespace hadal::ops::cuda
