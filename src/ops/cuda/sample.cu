// Choosing the next token on CUDA: a block for each row, the same draw as on the CPU.
//
//   T rows   V vocabulary
//
// Probabilities in f64 whatever the logits' type. Tokens are taken in order of falling probability
// by one search of the whole row for each, which is quick where few hold most of the mass.
// SPDX-License-Identifier: Apache-2.0
#include "core/rng.h"
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/sample.h"

namespace hadal::ops::cuda {
namespace {

// Rng(seed, stream).uniform(counter) of core/rng.h: Philox-4x32-10.
__device__ double uniform(uint64_t seed, uint64_t stream, uint64_t counter) {
  auto x0 = static_cast<uint32_t>(counter), x1 = static_cast<uint32_t>(counter >> 32);
  auto x2 = static_cast<uint32_t>(stream), x3 = static_cast<uint32_t>(stream >> 32);
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * x0, p1 = uint64_t{0xCD9E8D57u} * x2;
    x0 = static_cast<uint32_t>(p1 >> 32) ^ x1 ^ k0;
    x1 = static_cast<uint32_t>(p1);
    x2 = static_cast<uint32_t>(p0 >> 32) ^ x3 ^ k1;
    x3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<double>(((uint64_t{x1} << 32) | x0) >> 11) * 0x1p-53;
}

constexpr int kSumLanes = 16;  // partial sums of the total, as on the CPU

// An id and its value; of equal values the smaller id comes first. id -1: nothing.
struct Ranked {
  double value;
  int64_t id;
};
__device__ bool comes_before(const Ranked& a, const Ranked& b) {
  if (a.id < 0 || b.id < 0) return a.id >= 0;
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The first of the threads' candidates, for every thread.
__device__ Ranked first_of_block(Ranked mine, Ranked* shared) {
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half && comes_before(shared[threadIdx.x + half], shared[threadIdx.x]))
      shared[threadIdx.x] = shared[threadIdx.x + half];
    __syncthreads();
  }
  const Ranked first = shared[0];
  __syncthreads();
  return first;
}

// The best of those that come after `last`.
__device__ Ranked next_after(const Ranked& last, const double* weights, int64_t V, Ranked* shared) {
  Ranked best{0, -1};
  for (int64_t v = threadIdx.x; v < V; v += blockDim.x) {
    const Ranked candidate{weights[v], v};
    if (last.id >= 0 && !comes_before(last, candidate)) continue;
    if (comes_before(candidate, best)) best = candidate;
  }
  return first_of_block(best, shared);
}

// Sum of the weights in 16 partial sums and a fixed tree.
__device__ double sum_of(const double* weights, int64_t V, double* lanes) {
  if (threadIdx.x < kSumLanes) {
    double sum = 0;
    for (int64_t v = threadIdx.x; v < V; v += kSumLanes) sum += weights[v];
    lanes[threadIdx.x] = sum;
  }
  __syncthreads();
  double four[4];
  for (int i = 0; i < 4; ++i) four[i] = (lanes[i] + lanes[i + 8]) + (lanes[i + 4] + lanes[i + 12]);
  __syncthreads();
  return (four[0] + four[2]) + (four[1] + four[3]);
}

struct Shared {
  Ranked ranked[kThreads];
  double lanes[kSumLanes];
};

// Inverse of the cumulative distribution, in order of falling weight, at u in [0, 1). All threads
// follow the same path.
__device__ int64_t draw(const SampleRule& rule, const double* weights, int64_t V, double u,
                        Shared& shared) {
  const int64_t most = rule.top_k > 0 && rule.top_k < V ? rule.top_k : V;
  double total = 0;
  if (most < V) {
    Ranked last{0, -1};
    for (int64_t i = 0; i < most; ++i) {
      last = next_after(last, weights, V, shared.ranked);
      total += last.value;
    }
  } else {
    total = sum_of(weights, V, shared.lanes);
  }
  int64_t kept = most;
  if (rule.top_p < 1) {
    const double wanted = rule.top_p * total;
    double mass = 0;
    Ranked last{0, -1};
    for (kept = 0; mass < wanted && kept < most; ++kept) {
      last = next_after(last, weights, V, shared.ranked);
      mass += last.value;
    }
    total = mass;
  }
  const double threshold = u * total;
  double mass = 0;
  int64_t token = 0;
  Ranked last{0, -1};
  for (int64_t i = 0; i < kept; ++i) {
    last = next_after(last, weights, V, shared.ranked);
    if (last.id < 0 || last.value == 0) break;  // rounding left mass below the threshold
    token = last.id;
    mass += last.value;
    if (mass > threshold) break;
  }
  return token;
}

// The best of a part of a row, one block a part: greedy choice of a long row needs the whole GPU.
struct PartBest {
  Ranked best;
  int bad;  // NaN was seen
};

__device__ PartBest best_of(View logits, int64_t row, int64_t begin, int64_t end, Ranked* shared) {
  PartBest part{{0, -1}, 0};
  for (int64_t v = begin + threadIdx.x; v < end; v += blockDim.x) {
    const Ranked candidate{logits.get<double>(row + v), v};
    part.bad |= isnan(candidate.value) ? 1 : 0;
    if (comes_before(candidate, part.best)) part.best = candidate;
  }
  part.bad = __syncthreads_or(part.bad);
  part.best = first_of_block(part.best, shared);
  return part;
}

__global__ void best_of_parts_kernel(int64_t V, int64_t part_size, View logits, PartBest* parts) {
  __shared__ Ranked shared[kThreads];
  const int64_t begin = blockIdx.x * part_size;
  const int64_t end = begin + part_size < V ? begin + part_size : V;
  const PartBest best = best_of(logits, blockIdx.y * logits.stride0, begin, end, shared);
  if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = best;
}

constexpr const char* kNoLogits =
    "row {0} of the logits has NaN or no finite largest element: nothing can be drawn from it";

__global__ void greedy_kernel(int64_t num_parts, const PartBest* parts, Array<int32_t> tokens,
                              FaultSite fault) {
  __shared__ Ranked shared[kThreads];
  const int64_t t = blockIdx.x;
  PartBest all{{0, -1}, 0};
  for (int64_t i = threadIdx.x; i < num_parts; i += blockDim.x) {
    const PartBest& part = parts[t * num_parts + i];
    all.bad |= part.bad;
    if (comes_before(part.best, all.best)) all.best = part.best;
  }
  all.bad = __syncthreads_or(all.bad);
  all.best = first_of_block(all.best, shared);
  if (threadIdx.x != 0) return;
  const bool usable = all.bad == 0 && isfinite(all.best.value);
  if (!usable) fault.raise(static_cast<double>(t));
  tokens[t] = usable ? static_cast<int32_t>(all.best.id) : 0;
}

__global__ void sample_kernel(int64_t V, SampleRule rule, uint64_t stream, View logits,
                              Array<const int32_t> where, double* weights, Array<int32_t> tokens,
                              FaultSite fault) {
  __shared__ Shared shared;
  const int64_t t = blockIdx.x, row = t * logits.stride0;
  const auto [best, bad] = best_of(logits, row, 0, V, shared.ranked);
  if (bad != 0 || !isfinite(best.value)) {
    if (threadIdx.x == 0) {
      fault.raise(static_cast<double>(t));
      tokens[t] = 0;
    }
    return;
  }
  double* mine = weights + t * V;
  for (int64_t v = threadIdx.x; v < V; v += blockDim.x)
    mine[v] = exp((logits.get<double>(row + v) - best.value) / rule.temperature);
  __syncthreads();
  const int64_t token =
      draw(rule, mine, V, uniform(rule.seed, stream, static_cast<uint64_t>(where[t])), shared);
  if (threadIdx.x == 0) tokens[t] = static_cast<int32_t>(token);
}

}  // namespace

void sample(Context& ctx, const SampleRule& rule, In logits, In positions, Out tokens) {
  const int64_t T = logits.dim(0), V = logits.dim(1);
  if (T == 0) return;
  if (rule.temperature == 0) {
    const int64_t part_size = int64_t{4} * kThreads, num_parts = ceil_div(V, part_size);
    Tensor parts;
    const Block memory = ctx.memory.take_tensor(
        DType::kF64, {T * num_parts * static_cast<int64_t>(sizeof(PartBest) / sizeof(double))},
        &parts);
    static_assert(sizeof(PartBest) % sizeof(double) == 0);
    auto* const best = static_cast<PartBest*>(parts.raw());
    best_of_parts_kernel<<<dim3(static_cast<unsigned>(num_parts), static_cast<unsigned>(T)),
                           kThreads, 0, stream_of(ctx)>>>(V, part_size, View(logits), best);
    greedy_kernel<<<static_cast<unsigned>(T), kThreads, 0, stream_of(ctx)>>>(
        num_parts, best, Array<int32_t>(tokens), FaultSite(ctx, kNoLogits));
    return check_launch(ctx, "sample", logits);
  }
  Tensor weights;
  const Block memory = ctx.memory.take_tensor(DType::kF64, {T * V}, &weights);
  sample_kernel<<<static_cast<unsigned>(T), kThreads, 0, stream_of(ctx)>>>(
      V, rule, stream_id("sample"), View(logits), Array<const int32_t>(positions),
      weights.data<double>(), Array<int32_t>(tokens), FaultSite(ctx, kNoLogits));
  check_launch(ctx, "sample", logits);
}

}  // namespace hadal::ops::cuda
