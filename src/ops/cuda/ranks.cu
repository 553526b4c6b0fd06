// What collectives add, and where tokens go among ranks, on CUDA.
//
//   G ranks   n elements   T tokens   K choices of a token   E experts of a rank   N copies
// SPDX-License-Identifier: Apache-2.0
#include "ops/copy.h"
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/warp_counts.cuh"
#include "ops/ranks.h"

namespace hadal::ops::cuda {
namespace {

constexpr int kWarp = 32;

__device__ int64_t first_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ int64_t index_step() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// ---- sums over ranks ---------------------------------------------------------------------------

__device__ inline float widened(float v) { return v; }
__device__ inline double widened(double v) { return v; }
__device__ inline long long widened(long long v) { return v; }
__device__ inline float widened(bf16 v) { return widen(v); }
__device__ inline void put(float v, float& to) { to = v; }
__device__ inline void put(double v, double& to) { to = v; }
__device__ inline void put(long long v, long long& to) { to = v; }
__device__ inline void put(float v, bf16& to) { to = narrow_bf16(v); }

// Several elements that are read and written at once.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T of[kCount];
};

// n counts packs; `row` is how far the others' rows are apart, in packs.
template <class T, class Sum, int kCount>
__global__ void sum_kernel(int64_t n, int place, int G, const Pack<T, kCount>* own,
                           const Pack<T, kCount>* others, int64_t row, Pack<T, kCount>* y) {
  for (int64_t i = first_index(); i < n; i += index_step()) {
    Sum sum[kCount] = {};
    for (int r = 0; r < G; ++r) {
      const Pack<T, kCount> part = r == place ? own[i] : others[(r < place ? r : r - 1) * row + i];
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        sum[j] = r == 0 ? widened(part.of[j]) : sum[j] + widened(part.of[j]);
    }
    Pack<T, kCount> out;
#pragma unroll
    for (int j = 0; j < kCount; ++j) put(sum[j], out.of[j]);
    y[i] = out;
  }
}

template <class T, class Sum, int kCount>
void launch_sum(Context& ctx, int64_t place, const Tensor& own, const Tensor& others,
                const Tensor& y) {
  using Packed = Pack<T, kCount>;
  const int64_t n = own.dim(0) / kCount;
  sum_kernel<T, Sum, kCount><<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(
      n, static_cast<int>(place), static_cast<int>(others.dim(0)) + 1,
      static_cast<const Packed*>(own.raw()), static_cast<const Packed*>(others.raw()),
      others.stride(0) / kCount, static_cast<Packed*>(y.raw()));
}

// 16 bytes at a time where all rows begin and end at multiples of them.
template <class T, class Sum>
void sum(Context& ctx, int64_t place, const Tensor& own, const Tensor& others, const Tensor& y) {
  constexpr int kCount = 16 / static_cast<int>(sizeof(T));
  const auto is_aligned = [](const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
  };
  if (own.dim(0) % kCount == 0 && others.stride(0) % kCount == 0 && is_aligned(own) &&
      is_aligned(others) && is_aligned(y))
    launch_sum<T, Sum, kCount>(ctx, place, own, others, y);
  else
    launch_sum<T, Sum, 1>(ctx, place, own, others, y);
}

// ---- hops --------------------------------------------------------------------------------------

// A token a thread: its ranks to rank_of [T, Kr] and counts; -1 where there is no copy.
__global__ void mark_kernel(int64_t T, int64_t K, int64_t Kr, int64_t G, int64_t E,
                            Array<const int32_t> ids, int32_t* rank_of, int32_t* copy_of_rank,
                            int32_t* copy_of_choice, unsigned long long* counts,
                            unsigned long long* most, FaultSite fault) {
  const int64_t t = first_index();
  if (t >= T) return;
  const int32_t* const choices = ids.row(t);
  int64_t num_ranks = 0, last = -1;
  for (int64_t k = 0; k < K; ++k) {
    const int64_t expert = choices[k];
    copy_of_choice[t * K + k] = -1;
    if (expert == -1) continue;
    if (expert < 0 || expert >= G * E) {
      fault.raise(static_cast<double>(k), static_cast<double>(t), static_cast<double>(expert));
      continue;
    }
    const int64_t rank = expert / E;
    atomicAdd(&counts[rank * (E + 1) + 1 + expert % E], 1ull);
    if (rank == last || num_ranks == Kr) continue;
    last = rank;
    rank_of[t * Kr + num_ranks++] = static_cast<int32_t>(rank);
    atomicAdd(&counts[rank * (E + 1)], 1ull);
  }
  if (num_ranks > 0) atomicMax(most, static_cast<unsigned long long>(num_ranks));
  for (int64_t i = 0; i < Kr; ++i) copy_of_rank[t * Kr + i] = -1;
  for (int64_t i = num_ranks; i < Kr; ++i) rank_of[t * Kr + i] = -1;
}

constexpr int kNumberThreads = 1024;  // of a block that numbers a rank's copies
static_assert(kNumberThreads / kWarp == kWarp);

// Gives the copies to rank blockIdx.x their numbers in token order: a running count over pieces of
// a token a thread, and within a piece the matches of earlier threads.
__global__ void __launch_bounds__(kNumberThreads)
    number_kernel(int64_t T, int64_t K, int64_t Kr, int64_t E, Array<const int32_t> ids,
                  const int32_t* rank_of, const unsigned long long* counts, int32_t* copy_of_rank,
                  int32_t* copy_of_choice) {
  __shared__ int in_warp[2][kWarp];
  const int rank = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int64_t next = 0;
  for (int g = 0; g < rank; ++g) next += static_cast<int64_t>(counts[g * (E + 1)]);
  int turn = 0;
  for (int64_t begin = 0; begin < T; begin += kNumberThreads, turn ^= 1) {
    const int64_t t = begin + threadIdx.x;
    int64_t place = -1;  // of the rank among the token's
    for (int64_t i = 0; t < T && i < Kr && place < 0; ++i)
      if (rank_of[t * Kr + i] == rank) place = i;
    const unsigned matches = __ballot_sync(0xffffffffu, place >= 0);
    if (lane == 0) in_warp[turn][warp] = __popc(matches);
    __syncthreads();
    const WarpCounts counted = add_warp_counts(in_warp[turn], warp, lane);
    if (place >= 0) {
      const auto copy =
          static_cast<int32_t>(next + counted.before + __popc(matches & ((1u << lane) - 1u)));
      copy_of_rank[t * Kr + place] = copy;
      for (int64_t k = 0; k < K; ++k) {
        const int32_t expert = ids.row(t)[k];
        if (expert >= 0 && expert / E == rank) copy_of_choice[t * K + k] = copy;
      }
    }
    next += counted.all;
  }
}

constexpr const char* kNoCopy = "choice {0} is in copy {1}, but there are {2}";

template <class R>
__global__ void choices_kernel(int64_t T, int64_t K, int64_t N, int64_t E, Array<const int32_t> ids,
                               Array<const R> weights, const int32_t* copy_of_choice,
                               int32_t* ids_out, R* weights_out, FaultSite fault) {
  for (int64_t i = first_index(); i < T * K; i += index_step()) {
    const int64_t copy = copy_of_choice[i], k = i % K;
    if (copy == -1) continue;
    if (copy < 0 || copy >= N) {
      fault.raise(static_cast<double>(i), static_cast<double>(copy), static_cast<double>(N));
      continue;
    }
    ids_out[copy * K + k] = static_cast<int32_t>(ids.row(i / K)[k] % E);
    weights_out[copy * K + k] = weights.row(i / K)[k];
  }
}

template <class R>
__global__ void values_kernel(int64_t T, int64_t K, int64_t N, const R* back,
                              const int32_t* copy_of_choice, Array<R> values, FaultSite fault) {
  for (int64_t i = first_index(); i < T * K; i += index_step()) {
    const int64_t copy = copy_of_choice[i], k = i % K;
    if (copy < -1 || copy >= N) {
      fault.raise(static_cast<double>(i), static_cast<double>(copy), static_cast<double>(N));
      continue;
    }
    values.row(i / K)[k] = copy == -1 ? R(0) : back[copy * K + k];
  }
}

}  // namespace

void sum_of_ranks(Context& ctx, int64_t place, In own, In others, Out y) {
  if (own.dim(0) == 0) return;
  switch (own.dtype()) {
    case DType::kF32:
      sum<float, float>(ctx, place, own, others, y);
      break;
    case DType::kF64:
      sum<double, double>(ctx, place, own, others, y);
      break;
    case DType::kBF16:
      sum<bf16, float>(ctx, place, own, others, y);
      break;
    default:
      sum<long long, long long>(ctx, place, own, others, y);
  }
  check_launch(ctx, "sum_of_ranks", own);
}

void hop_copies(Context& ctx, In ids, Out copy_of_rank, Out copy_of_choice, Out counts, Out most) {
  const int64_t T = ids.dim(0), K = ids.dim(1), G = counts.dim(0), E = counts.dim(1) - 1;
  const int64_t Kr = copy_of_rank.dim(1);
  fill(ctx, 0.0, counts);
  fill(ctx, 0.0, most);
  if (T == 0) return;
  Tensor rank_of;
  const Block memory = ctx.memory.take_tensor(DType::kI32, {T, Kr}, &rank_of);
  // NOTE: two's complement: adding an unsigned number adds the signed one.
  auto* const count = reinterpret_cast<unsigned long long*>(counts.data<int64_t>());
  mark_kernel<<<static_cast<unsigned>(ceil_div(T, kThreads)), kThreads, 0, stream_of(ctx)>>>(
      T, K, Kr, G, E, Array<const int32_t>(ids), rank_of.data<int32_t>(),
      copy_of_rank.data<int32_t>(), copy_of_choice.data<int32_t>(), count,
      reinterpret_cast<unsigned long long*>(most.data<int64_t>()),
      FaultSite(ctx, "choice {0} of token {1} is expert {2}, which no rank has"));
  check_launch(ctx, "hop_copies", ids);
  number_kernel<<<static_cast<unsigned>(G), kNumberThreads, 0, stream_of(ctx)>>>(
      T, K, Kr, E, Array<const int32_t>(ids), rank_of.data<int32_t>(), count,
      copy_of_rank.data<int32_t>(), copy_of_choice.data<int32_t>());
  check_launch(ctx, "hop_copies", ids);
}

void hop_choices(Context& ctx, int64_t experts_of_rank, In ids, In weights, In copy_of_choice,
                 Out ids_out, Out weights_out) {
  const int64_t T = ids.dim(0), K = ids.dim(1), N = ids_out.dim(0);
  fill(ctx, -1.0, ids_out);
  fill(ctx, 0.0, weights_out);
  if (T * K == 0) return;
  with_arithmetic({weights.dtype()}, [&]<class R>(R) {
    choices_kernel<R><<<blocks_for(T * K, kThreads), kThreads, 0, stream_of(ctx)>>>(
        T, K, N, experts_of_rank, Array<const int32_t>(ids), Array<const R>(weights),
        copy_of_choice.data<int32_t>(), ids_out.data<int32_t>(), weights_out.data<R>(),
        FaultSite(ctx, kNoCopy));
  });
  check_launch(ctx, "hop_choices", ids);
}

void hop_values(Context& ctx, In back, In copy_of_choice, Out values) {
  const int64_t T = values.dim(0), K = values.dim(1), N = back.dim(0);
  if (T * K == 0) return;
  with_arithmetic({values.dtype()}, [&]<class R>(R) {
    values_kernel<R><<<blocks_for(T * K, kThreads), kThreads, 0, stream_of(ctx)>>>(
        T, K, N, back.data<R>(), copy_of_choice.data<int32_t>(), Array<R>(values),
        FaultSite(ctx, kNoCopy));
  });
  check_launch(ctx, "hop_values", values);
}

}  // namespace hadal::ops::cuda
