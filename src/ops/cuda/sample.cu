// Choosing the next token on CUDA: a block for each row, the same draw as on the CPU.
//
//   T rows   V vocabulary
//
// Probabilities in f64 whatever the logits' type. The largest logit is found by all the GPU; a row
// that is not greedy is then read about ten times by one block, whatever its distribution.
// SPDX-License-Identifier: Apache-2.0
#include "core/rng.h"
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/draw.h"

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

// An id and its value; of equal values the smaller id comes first. id -1: nothing.
struct Ranked {
  double value;
  int64_t id;
};
__device__ bool comes_before(const Ranked& a, const Ranked& b) {
  if (a.id < 0 || b.id < 0) return a.id >= 0;
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The first of the candidates of the first kCount threads, for every thread of the block.
template <int kCount = kThreads>
__device__ Ranked first_of_block(Ranked mine, Ranked* shared) {
  if (threadIdx.x < kCount) shared[threadIdx.x] = mine;
  __syncthreads();
  for (int half = kCount / 2; half > 0; half /= 2) {
    if (threadIdx.x < half && comes_before(shared[threadIdx.x + half], shared[threadIdx.x]))
      shared[threadIdx.x] = shared[threadIdx.x + half];
    __syncthreads();
  }
  const Ranked first = shared[0];
  __syncthreads();
  return first;
}

// The rule of each row, or one for all.
struct Rules {
  const double *temperature = nullptr, *top_p = nullptr;  // null: `all`
  const int64_t *top_k = nullptr, *seed = nullptr;
  SampleRule all{};

  __device__ SampleRule of(int64_t t) const {
    if (temperature == nullptr) return all;
    return {temperature[t], top_k[t], top_p[t], static_cast<uint64_t>(seed[t])};
  }
};

constexpr int kDrawThreads = 512, kDigitBits = 4, kDigits = 1 << kDigitBits;
constexpr int kDrawWarps = kDrawThreads / 32;

// Keys are ordered as the logits are; equal logits have equal keys.
__device__ uint32_t key_of(float v) {
  const uint32_t bits = __float_as_uint(v + 0.0f);
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ uint64_t key_of(double v) {
  const auto bits = static_cast<uint64_t>(__double_as_longlong(v + 0.0));
  return bits ^ (bits >> 63 != 0 ? ~uint64_t{0} : uint64_t{1} << 63);
}
__device__ float logit_of(uint32_t key) {
  return __uint_as_float(key ^ (key >> 31 != 0 ? 0x80000000u : 0xffffffffu));
}
__device__ double logit_of(uint64_t key) {
  return __longlong_as_double(
      static_cast<long long>(key ^ (key >> 63 != 0 ? uint64_t{1} << 63 : ~uint64_t{0})));
}

struct DrawShared {
  double parts[kDrawWarps][kDigits];
  double sums[kDigits];
  int64_t ids[kDrawWarps];
};

// One row's tokens in order of falling logit (of equal ones the smaller id first), as its block
// searches them: not sorted, but by the digits of their keys from the first to the last, each by
// the sums over its sixteen values. All threads follow the same path, and sums have a fixed order.
template <class R>
struct RowOrder {
  using Key = decltype(key_of(R{}));
  static constexpr int kBits = 8 * sizeof(Key);

  View logits;
  int64_t row, V;
  double best, temperature;
  DrawShared& shared;

  __device__ R logit(int64_t v) const { return logits.get<R>(row + v); }
  __device__ double weight(R logit) const {
    return exp((static_cast<double>(logit) - best) / temperature);
  }
  __device__ double weight_at(Key key) const { return weight(logit_of(key)); }

  // shared.sums[i]: the sum of value[i] over the threads.
  __device__ void add_up(const double (&value)[kDigits]) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kDigits; ++i) {
      double sum = value[i];
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (lane == 0) shared.parts[warp][i] = sum;
    }
    __syncthreads();
    if (threadIdx.x < kDigits) {
      double sum = 0;
      for (int w = 0; w < kDrawWarps; ++w) sum += shared.parts[w][threadIdx.x];
      shared.sums[threadIdx.x] = sum;
    }
    __syncthreads();
  }

  // The mass of keys above `key`, or of all.
  __device__ double mass(bool all, Key key) const {
    double value[kDigits] = {};
    for (int64_t v = threadIdx.x; v < V; v += kDrawThreads) {
      const R l = logit(v);
      if (all || key_of(l) > key) value[0] += weight(l);
    }
    add_up(value);
    return shared.sums[0];
  }

  struct Place {
    Key key;
    double before;  // the sum over all larger keys
  };
  // The key at which the sum of measure(logit) in falling order is the first that passes, or the
  // last key with a measure where rounding lets none pass.
  template <class Measure, class Passes>
  __device__ Place find(const Measure& measure, const Passes& passes) const {
    Place place{0, 0.0};
    for (int shift = kBits - kDigitBits; shift >= 0; shift -= kDigitBits) {
      double value[kDigits] = {};
      for (int64_t v = threadIdx.x; v < V; v += kDrawThreads) {
        const R l = logit(v);
        const Key shifted = key_of(l) >> shift;
        if (shifted >> kDigitBits != place.key) continue;
        const double m = measure(l);
        const int digit = static_cast<int>(shifted & (kDigits - 1));
#pragma unroll
        for (int i = 0; i < kDigits; ++i) value[i] += i == digit ? m : 0.0;
      }
      add_up(value);
      int chosen = 0;
      double at = place.before, before = at;
      for (int i = kDigits - 1; i >= 0; --i) {
        const double sum = shared.sums[i];
        if (sum == 0) continue;
        chosen = i, before = at;
        at += sum;
        if (passes(at)) break;
      }
      __syncthreads();
      place = {static_cast<Key>(place.key << kDigitBits | static_cast<Key>(chosen)), before};
    }
    return place;
  }

  // The smallest id behind `last` whose key is this one; V where there is none.
  __device__ int64_t next_of(Key key, int64_t last) const {
    int64_t mine = V;
    for (int64_t v = threadIdx.x; v < V && mine == V; v += kDrawThreads)
      if (v > last && key_of(logit(v)) == key) mine = v;
    for (int step = 16; step > 0; step /= 2) {
      const int64_t other = __shfl_xor_sync(0xffffffffu, mine, step);
      if (other < mine) mine = other;
    }
    if (threadIdx.x % 32 == 0) shared.ids[threadIdx.x / 32] = mine;
    __syncthreads();
    for (int w = 0; w < kDrawWarps; ++w)
      if (shared.ids[w] < mine) mine = shared.ids[w];
    // NOTE: every thread starts from its warp's minimum, which is among these.
    __syncthreads();
    return mine;
  }
  // How many tokens have this key.
  __device__ int64_t count_of(Key key) const {
    double value[kDigits] = {};
    for (int64_t v = threadIdx.x; v < V; v += kDrawThreads)
      if (key_of(logit(v)) == key) value[0] += 1;
    add_up(value);
    return static_cast<int64_t>(shared.sums[0]);
  }

  // Inverse of the cumulative distribution, in order of falling weight, at u in [0, 1).
  __device__ int64_t draw(const SampleRule& rule, double u) const {
    const auto weigh = [&](R l) { return weight(l); };
    // What is kept: all larger keys, and the first `ties` tokens of this one.
    Key least = 0;
    int64_t ties = V;
    double total = 0;
    if (rule.top_k > 0 && rule.top_k < V) {
      const auto most = static_cast<double>(rule.top_k);
      const Place place = find([](R) { return 1.0; }, [&](double n) { return n >= most; });
      least = place.key;
      ties = rule.top_k - static_cast<int64_t>(place.before);
      total = mass(false, least) + static_cast<double>(ties) * weight_at(least);
    } else {
      total = mass(true, 0);
    }
    if (rule.top_p < 1) {
      const double wanted = rule.top_p * total;
      const Place place = find(weigh, [&](double m) { return m >= wanted; });
      if (place.key >= least) {
        const double w = weight_at(place.key);
        const int64_t most = place.key == least ? ties : count_of(place.key);
        int64_t count = 0;
        double sum = place.before;
        while (count < most && (count == 0 || sum < wanted)) sum += w, ++count;
        least = place.key, ties = count, total = sum;
      }
    }
    const double threshold = u * total;
    const Place place = find(weigh, [&](double m) { return m > threshold; });
    // Rounding may have left the threshold behind what is kept.
    const Key key = place.key < least ? least : place.key;
    int64_t token = next_of(key, -1);
    if (place.key < least) return token;
    double sum = place.before + weight_at(key);
    for (int64_t i = 1; sum <= threshold && (key > least || i < ties); ++i) {
      const int64_t next = next_of(key, token);
      if (next == V) break;
      token = next;
      sum += weight_at(key);
    }
    return token;
  }
};

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

template <class R>
__global__ void __launch_bounds__(kDrawThreads)
    draw_kernel(int64_t V, int64_t num_parts, const PartBest* parts, Rules rules, uint64_t stream,
                View logits, Array<const int32_t> where, Array<int32_t> tokens, FaultSite fault) {
  __shared__ Ranked ranked[kThreads];
  __shared__ DrawShared shared;
  const int64_t t = blockIdx.x;
  PartBest all{{0, -1}, 0};
  if (threadIdx.x < kThreads) {
    for (int64_t i = threadIdx.x; i < num_parts; i += kThreads) {
      const PartBest& part = parts[t * num_parts + i];
      all.bad |= part.bad;
      if (comes_before(part.best, all.best)) all.best = part.best;
    }
  }
  all.bad = __syncthreads_or(all.bad);
  all.best = first_of_block(all.best, ranked);
  int64_t token = 0;
  if (all.bad != 0 || !isfinite(all.best.value)) {
    if (threadIdx.x == 0) fault.raise(static_cast<double>(t));
  } else {
    const SampleRule rule = rules.of(t);
    token = all.best.id;
    if (rule.temperature != 0) {
      const RowOrder<R> order{logits,         t * logits.stride0, V,
                              all.best.value, rule.temperature,   shared};
      token = order.draw(rule, uniform(rule.seed, stream, static_cast<uint64_t>(where[t])));
    }
  }
  if (threadIdx.x == 0) tokens[t] = static_cast<int32_t>(token);
}

// A block for each row reads it once for each of the K.
template <class R>
__global__ void __launch_bounds__(kDrawThreads)
    top_logits_kernel(int64_t V, int64_t K, View logits, Array<int32_t> ids, Array<R> values) {
  __shared__ Ranked shared[kDrawThreads];
  const int64_t t = blockIdx.x, row = t * logits.stride0;
  Ranked last{0, -1};
  for (int64_t k = 0; k < K; ++k) {
    Ranked best{0, -1};
    for (int64_t v = threadIdx.x; v < V; v += kDrawThreads) {
      const auto value = static_cast<double>(logits.get<R>(row + v));
      const Ranked candidate{isnan(value) ? -INFINITY : value, v};
      const bool left = k == 0 || comes_before(last, candidate);
      if (left && comes_before(candidate, best)) best = candidate;
    }
    last = first_of_block<kDrawThreads>(best, shared);
    if (threadIdx.x == 0) {
      ids.row(t)[k] = static_cast<int32_t>(last.id);
      values.row(t)[k] = static_cast<R>(last.value);
    }
  }
}

__global__ void fill_kernel(int64_t T, Array<const int32_t> given, Array<const int32_t> drawn,
                            Array<int32_t> ids) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t >= T) return;
  const int32_t id = given[t];
  ids[t] = id >= 0 ? id : drawn[-1 - id];
}

void sample_rows(Context& ctx, const Rules& rules, In logits, In positions, Out tokens) {
  const int64_t T = logits.dim(0), V = logits.dim(1);
  if (T == 0) return;
  const int64_t part_size = int64_t{4} * kThreads, num_parts = ceil_div(V, part_size);
  Tensor parts;
  const Block memory = ctx.memory.take_tensor(
      DType::kF64, {T * num_parts * static_cast<int64_t>(sizeof(PartBest) / sizeof(double))},
      &parts);
  static_assert(sizeof(PartBest) % sizeof(double) == 0);
  auto* const best = static_cast<PartBest*>(parts.raw());
  best_of_parts_kernel<<<dim3(static_cast<unsigned>(num_parts), static_cast<unsigned>(T)), kThreads,
                         0, stream_of(ctx)>>>(V, part_size, View(logits), best);
  with_arithmetic({logits.dtype()}, [&]<class R>(R) {
    draw_kernel<R><<<static_cast<unsigned>(T), kDrawThreads, 0, stream_of(ctx)>>>(
        V, num_parts, best, rules, stream_id("sample"), View(logits),
        Array<const int32_t>(positions), Array<int32_t>(tokens), FaultSite(ctx, kNoLogits));
  });
  check_launch(ctx, "sample", logits);
}

}  // namespace

void sample(Context& ctx, const SampleRule& rule, In logits, In positions, Out tokens) {
  Rules rules;
  rules.all = rule;
  sample_rows(ctx, rules, logits, positions, tokens);
}

void top_logits(Context& ctx, In logits, Out ids, Out values) {
  const int64_t T = logits.dim(0), V = logits.dim(1), K = ids.dim(1);
  if (T == 0 || K == 0) return;
  with_arithmetic({logits.dtype()}, [&]<class R>(R) {
    top_logits_kernel<R><<<static_cast<unsigned>(T), kDrawThreads, 0, stream_of(ctx)>>>(
        V, K, View(logits), Array<int32_t>(ids), Array<R>(values));
  });
  check_launch(ctx, "top_logits", logits);
}

void sample_each(Context& ctx, const SampleRules& each, In logits, In positions, Out tokens) {
  Rules rules;
  rules.temperature = each.temperature.data<double>();
  rules.top_p = each.top_p.data<double>();
  rules.top_k = each.top_k.data<int64_t>();
  rules.seed = each.seed.data<int64_t>();
  sample_rows(ctx, rules, logits, positions, tokens);
}

void fill_tokens(Context& ctx, In given, In drawn, Out ids) {
  const int64_t T = given.dim(0);
  if (T == 0) return;
  fill_kernel<<<blocks_for(T, kThreads), kThreads, 0, stream_of(ctx)>>>(
      T, Array<const int32_t>(given), Array<const int32_t>(drawn), Array<int32_t>(ids));
  check_launch(ctx, "fill_tokens", ids);
}

}  // namespace hadal::ops::cuda
