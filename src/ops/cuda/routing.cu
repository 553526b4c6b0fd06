// The gate and the balance loss on CUDA.
//
//   T tokens   S sequences   E experts   G groups   K choices of a token
//
// Movement of tokens to experts' rows is in ops/cuda/routing_rows.cu.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/gate.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/math.cuh"
#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/rows.cuh"
#include "ops/routing.h"

namespace hadal::ops::cuda {
namespace {

// One warp a token.
template <class R>
__global__ void gate_kernel(int64_t E, GateRule rule, Array<const R> logits, const R* bias,
                            Array<R> scores, Array<int32_t> topk_idx, Array<R> topk_weight) {
  extern __shared__ __align__(16) char memory[];
  hadal::cuda::let_next_kernel_start();
  hadal::cuda::wait_for_previous_kernel();
  const int64_t t = blockIdx.x;
  choose_experts(rule, E, logits.row(t), bias, scores.row(t),
                 GateScratch<R>(memory, E, rule.n_group), topk_idx.row(t), topk_weight.row(t));
}

// dlogits += gradient through the scoring of one token, given the gradient of the scores. `n` is E,
// or 0 for a group of threads without a token.
template <class R, class Gradient>
__device__ void through_scoring(Scoring scoring, const R* scores, const Gradient& dscore,
                                R* dlogits, int64_t n, bool accumulate) {
  R along = 0;
  if (scoring == Scoring::kSoftmax)
    along = sum_row<R>(n, [&](int64_t e) { return dscore(e) * scores[e]; });
  for (int64_t e = group_lane(); e < n; e += kLanes) {
    const R old = accumulate ? dlogits[e] : R(0);
    dlogits[e] = scoring == Scoring::kSigmoid ? old + dscore(e) * scores[e] * (R(1) - scores[e])
                                              : old + scores[e] * (dscore(e) - along);
  }
}

template <class R>
__global__ void gate_backward_kernel(int64_t T, int64_t E, GateRule rule, Array<const R> scores,
                                     Array<const int32_t> topk_idx, Array<const R> dtopk_weight,
                                     Array<R> dlogits, FaultSite fault) {
  const int64_t row = group_row(), t = row < T ? row : 0, K = rule.num_experts_per_tok;
  const R *score = scores.row(t), *dweight = dtopk_weight.row(t);
  const int32_t* idx = topk_idx.row(t);
  const auto chosen = [&](int64_t k) { return idx[k] >= 0 && idx[k] < E ? idx[k] : 0; };
  R total = 0, along = 0;
  for (int64_t k = 0; k < K; ++k) {
    if (chosen(k) != idx[k] && row < T)
      fault.raise(static_cast<double>(t), idx[k], static_cast<double>(E));
    total += score[chosen(k)];
    along += dweight[k] * score[chosen(k)];
  }
  const R divisor = rule.norm_topk_prob ? total + static_cast<R>(kNormEps) : R(1);
  const R mean = rule.norm_topk_prob ? along / divisor : R(0);
  const R factor = static_cast<R>(rule.routed_scaling_factor);
  const auto dscore = [&](int64_t e) {
    R value = 0;
    for (int64_t k = 0; k < K; ++k)
      if (idx[k] == e) value = (dweight[k] - mean) / divisor * factor;
    return value;
  };
  through_scoring(rule.scoring, score, dscore, dlogits.row(t), row < T ? E : 0, false);
}

// Sum of each token's scores, and its K best without bias and groups. One warp a token.
template <class R>
__global__ void balance_choose_kernel(int64_t E, int64_t K, Array<const R> scores, R* total,
                                      int32_t* chosen) {
  extern __shared__ __align__(16) char memory[];
  auto* marks = reinterpret_cast<int32_t*>(memory);
  const int64_t t = blockIdx.x, lane = threadIdx.x;
  const R* score = scores.row(t);
  const R sum = sum_row<R>(E, [&](int64_t e) { return score[e]; });
  for (int64_t e = lane; e < E; e += kWarp) marks[e] = kOpen;
  __syncwarp();
  take_largest(score, E, K, marks);
  if (lane == 0) total[t] = sum;
  for_taken(marks, E, [&](int64_t k, int64_t e) { chosen[t * K + k] = static_cast<int32_t>(e); });
}

constexpr int64_t kShareTokens = 64;  // of one partial sum of shares

// A sequence's shares summed over pieces of kShareTokens tokens: a block a piece, a thread an
// expert.
template <class R>
__global__ void balance_share_kernel(int64_t E, Array<const int32_t> offsets, Array<const R> scores,
                                     const R* total, R* share) {
  constexpr int kAhead = 8;  // tokens whose scores are under way at once
  const int64_t s = blockIdx.x, end = offsets[s + 1];
  const int64_t first = offsets[s] + blockIdx.y * kShareTokens;
  const int64_t last = first + kShareTokens < end ? first + kShareTokens : end;
  R* const to = share + (s * gridDim.y + blockIdx.y) * E;
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    R mine = 0;
    for (int64_t t = first; t < last; t += kAhead) {
      const int64_t ahead = last - t < kAhead ? last - t : kAhead;
      R score[kAhead], inverse[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (i < ahead) score[i] = scores.row(t + i)[e], inverse[i] = R(1) / total[t + i];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (i < ahead) mine += score[i] * inverse[i];
    }
    to[e] = mine;
  }
}

// Averages over a sequence: a block a sequence, a thread an expert, pieces in token order. Counts
// are whole numbers, so they come from a histogram in any order.
template <class R>
__global__ void balance_average_kernel(int64_t E, int64_t K, int64_t pieces,
                                       Array<const int32_t> offsets, const int32_t* chosen,
                                       R* share, Array<R> loss, Array<R> fraction) {
  extern __shared__ int32_t histogram[];
  const int64_t s = blockIdx.x, first = offsets[s], last = offsets[s + 1], length = last - first;
  R *f = fraction.row(s), *shares = share + s * pieces * E;
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) histogram[e] = 0;
  __syncthreads();
  for (int64_t i = first * K + threadIdx.x; i < last * K; i += blockDim.x)
    atomicAdd(&histogram[chosen[i]], 1);
  __syncthreads();
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    R mine = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) mine += shares[piece * E + e];
    R count = static_cast<R>(histogram[e]);
    if (length > 0) count = count * static_cast<R>(E) / static_cast<R>(K * length);
    f[e] = count;
    shares[e] = mine;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  R sum = 0;
  for (int64_t e = 0; length > 0 && e < E; ++e) sum += f[e] * (shares[e] / static_cast<R>(length));
  loss[s] = sum;
}

template <class R>
__global__ void balance_backward_kernel(int64_t T, int64_t S, int64_t E, Scoring scoring, R scale,
                                        Array<const int32_t> offsets, Array<const R> scores,
                                        Array<const R> fraction, Array<R> dlogits) {
  const int64_t row = group_row();
  const bool in_use = row < T && row < offsets[S];
  const int64_t t = in_use ? row : 0;
  int64_t s = 0;
  while (s + 1 < S && offsets[s + 1] <= t) ++s;
  const R length = static_cast<R>(offsets[s + 1] - offsets[s]);
  const R *score = scores.row(t), *f = fraction.row(s);
  const int64_t n = in_use ? E : 0;
  const R total = sum_row<R>(n, [&](int64_t e) { return score[e]; });
  const R mean = sum_row<R>(n, [&](int64_t e) { return f[e] * score[e]; }) / total;
  const R each = scale / length / total;
  const auto dscore = [&](int64_t e) { return each * (f[e] - mean); };
  through_scoring(scoring, score, dscore, dlogits.row(t), n, true);
}

template <class R>
__global__ void bias_kernel(int64_t E, Array<const int64_t> counts, R step, Array<R> bias) {
  int64_t total = 0;
  for (int64_t e = 0; e < E; ++e) total += counts[e];
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    if (E * counts[e] < total) bias[e] += step;
    if (E * counts[e] > total) bias[e] -= step;
  }
}

unsigned row_blocks(int64_t T) { return static_cast<unsigned>(ceil_div(T, kRowsPerBlock)); }

// Shared memory of a gate's warp; what does not fit the default limit is refused by the launch.
template <class R>
unsigned gate_bytes(const GateRule& rule, int64_t E) {
  constexpr int64_t kLimit = 48 << 10;
  const int64_t bytes = GateScratch<R>::bytes(E, rule.n_group);
  HADAL_CHECK(bytes <= kLimit, "the gate of ", E, " experts needs ", bytes,
              " bytes of shared memory on CUDA, of which there are ", kLimit);
  return static_cast<unsigned>(bytes);
}

}  // namespace

void gate_forward(Context& ctx, const GateRule& rule, In logits, In bias, Out scores, Out topk_idx,
                  Out topk_weight) {
  const int64_t T = logits.dim(0), E = logits.dim(1);
  if (T == 0) return;
  with_arithmetic({logits.dtype()}, [&]<class R>(R) {
    launch_programmatic(ctx, gate_kernel<R>, static_cast<unsigned>(T), kWarp,
                        gate_bytes<R>(rule, E), E, rule, Array<const R>(logits),
                        const_cast<const R*>(bias.data<R>()), Array<R>(scores),
                        Array<int32_t>(topk_idx), Array<R>(topk_weight));
  });
  check_launch(ctx, "gate_forward", logits);
}

void gate_backward(Context& ctx, const GateRule& rule, In scores, In topk_idx, In dtopk_weight,
                   Out dlogits) {
  const int64_t T = scores.dim(0), E = scores.dim(1);
  if (T == 0) return;
  with_arithmetic({scores.dtype()}, [&]<class R>(R) {
    gate_backward_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
        T, E, rule, Array<const R>(scores), Array<const int32_t>(topk_idx),
        Array<const R>(dtopk_weight), Array<R>(dlogits),
        FaultSite(ctx, "a choice of token {0} is expert {1}, but there are {2} experts"));
  });
  check_launch(ctx, "gate_backward", scores);
}

void balance_loss_forward(Context& ctx, const GateRule& rule, const Packed& seq, In scores,
                          Out loss, Out fraction) {
  const int64_t T = scores.dim(0), E = scores.dim(1), K = rule.num_experts_per_tok;
  const int64_t S = seq.num_seqs;
  if (S == 0) return;
  with_arithmetic({scores.dtype()}, [&]<class R>(R) {
    Tensor total, chosen, share;
    const Block total_memory = ctx.memory.take_tensor(DTypeOf<R>::value, {T}, &total);
    const Block chosen_memory = ctx.memory.take_tensor(DType::kI32, {T, K}, &chosen);
    const int64_t pieces = std::max<int64_t>(1, ceil_div(seq.max_len, kShareTokens));
    const Block share_memory = ctx.memory.take_tensor(DTypeOf<R>::value, {S, pieces, E}, &share);
    if (T > 0) {
      balance_choose_kernel<R>
          <<<static_cast<unsigned>(T), kWarp, gate_bytes<R>(rule, E), stream_of(ctx)>>>(
              E, K, Array<const R>(scores), total.data<R>(), chosen.data<int32_t>());
      check_launch(ctx, "balance_loss_forward", scores);
    }
    balance_share_kernel<R>
        <<<dim3(static_cast<unsigned>(S), static_cast<unsigned>(pieces)),
           static_cast<unsigned>(std::min<int64_t>(ceil_div(E, kWarp) * kWarp, kThreads)), 0,
           stream_of(ctx)>>>(E, Array<const int32_t>(seq.offsets), Array<const R>(scores),
                             total.data<R>(), share.data<R>());
    check_launch(ctx, "balance_loss_forward", scores);
    const auto histogram_bytes = static_cast<unsigned>(E * static_cast<int64_t>(sizeof(int32_t)));
    balance_average_kernel<R>
        <<<static_cast<unsigned>(S), kThreads, histogram_bytes, stream_of(ctx)>>>(
            E, K, pieces, Array<const int32_t>(seq.offsets), chosen.data<int32_t>(),
            share.data<R>(), Array<R>(loss), Array<R>(fraction));
  });
  check_launch(ctx, "balance_loss_forward", scores);
}

void balance_loss_backward(Context& ctx, const GateRule& rule, const Packed& seq, double scale,
                           In scores, In fraction, Acc dlogits) {
  const int64_t T = seq.num_tokens, E = scores.dim(1), S = seq.num_seqs;
  if (T == 0 || S == 0) return;
  with_arithmetic({scores.dtype()}, [&]<class R>(R) {
    balance_backward_kernel<R><<<row_blocks(T), kThreads, 0, stream_of(ctx)>>>(
        T, S, E, rule.scoring, static_cast<R>(scale), Array<const int32_t>(seq.offsets),
        Array<const R>(scores), Array<const R>(fraction), Array<R>(dlogits));
  });
  check_launch(ctx, "balance_loss_backward", scores);
}

void bias_update(Context& ctx, In counts, double gamma, Acc bias) {
  with_arithmetic({bias.dtype()}, [&]<class R>(R) {
    bias_kernel<R><<<1, kThreads, 0, stream_of(ctx)>>>(bias.dim(0), Array<const int64_t>(counts),
                                                       static_cast<R>(gamma), Array<R>(bias));
  });
  check_launch(ctx, "bias_update", bias);
}

}  // namespace hadal::ops::cuda
