// Element-wise movement on CUDA.
//
//   T rows   D width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include <bit>

#include "ops/copy.h"
#include "ops/cuda/detail/bf16_rows.cuh"
#include "ops/cuda/detail/element.cuh"
#include "ops/cuda/detail/launch.cuh"

namespace hadal::ops::cuda {
namespace {

// A view of any rank and strides, by the number of an element.
struct Elements {
  void* data;
  DType dtype;
  bool dense;
  int rank;
  int64_t dim[kMaxRank], stride[kMaxRank];

  explicit Elements(const Tensor& t)
      : data(t.raw()), dtype(t.dtype()), dense(t.is_dense()), rank(t.rank()), dim{}, stride{} {
    for (int d = 0; d < rank; ++d) {
      dim[d] = t.dim(d);
      stride[d] = t.stride(d);
    }
  }
  __device__ int64_t offset(int64_t index) const {
    if (dense) return index;
    int64_t at = 0;
    for (int d = rank - 1; d >= 0; --d) {
      at += index % dim[d] * stride[d];
      index /= dim[d];
    }
    return at;
  }
  template <class R>
  __device__ R get(int64_t index) const {
    return load<R>(data, dtype, offset(index));
  }
  template <class R>
  __device__ void put(int64_t index, R value) const {
    store(data, dtype, offset(index), value);
  }
};

__device__ int64_t first_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ int64_t index_step() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

template <class R>
__global__ void cast_kernel(int64_t n, Elements x, Elements y) {
  for (int64_t i = first_index(); i < n; i += index_step()) y.put(i, x.get<R>(i));
}

template <class R>
__global__ void add_kernel(int64_t n, Elements a, Elements b, Elements c) {
  for (int64_t i = first_index(); i < n; i += index_step()) c.put(i, a.get<R>(i) + b.get<R>(i));
}

// Dense bf16 and f32, eight elements a thread.
bool is_vector(const Tensor& t) {
  return t.is_dense() && t.num_elements() % 8 == 0 &&
         (t.dtype() == DType::kBF16 || t.dtype() == DType::kF32) &&
         reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}
__device__ void store_eight(void* p, DType dtype, int64_t i, const Eight& v) {
  if (dtype == DType::kBF16) return v.store(static_cast<bf16*>(p) + i);
  auto* const to = reinterpret_cast<float4*>(static_cast<float*>(p) + i);
  to[0] = float4{v.of[0], v.of[1], v.of[2], v.of[3]};
  to[1] = float4{v.of[4], v.of[5], v.of[6], v.of[7]};
}
__global__ void cast_eight_kernel(int64_t n, const void* x, DType x_type, void* y, DType y_type) {
  for (int64_t i = first_index() * 8; i < n; i += index_step() * 8)
    store_eight(y, y_type, i, load_eight(x, x_type, i));
}
__global__ void add_eight_kernel(int64_t n, const void* a, DType a_type, const void* b,
                                 DType b_type, void* c, DType c_type) {
  for (int64_t i = first_index() * 8; i < n; i += index_step() * 8) {
    Eight sum = load_eight(a, a_type, i);
    const Eight other = load_eight(b, b_type, i);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum.of[j] = sum.of[j] + other.of[j];
    store_eight(c, c_type, i, sum);
  }
}

__global__ void fill_kernel(int64_t n, double value, Elements x) {
  for (int64_t i = first_index(); i < n; i += index_step()) x.put(i, value);
}
__global__ void fill_units_kernel(int64_t units, uint4 value, uint4* x) {
  for (int64_t i = first_index(); i < units; i += index_step()) x[i] = value;
}

template <class R>
__global__ void embed_kernel(int64_t D, int64_t V, View table, Array<const int32_t> ids, View x,
                             FaultSite fault) {
  const int64_t t = blockIdx.x;
  const int64_t id = ids[t];
  if (id < 0 || id >= V) {
    if (threadIdx.x == 0)
      fault.raise(static_cast<double>(id), static_cast<double>(t), static_cast<double>(V));
    return;
  }
  for (int64_t j = threadIdx.x; j < D; j += blockDim.x)
    x.put(t * x.stride0 + j, table.get<R>(id * table.stride0 + j));
}

// first[id] = the first token of that id; what is above T before.
__global__ void first_token_kernel(int64_t T, int64_t V, Array<const int32_t> ids, uint32_t* first,
                                   FaultSite fault) {
  const int64_t t = first_index();
  if (t >= T) return;
  const int64_t id = ids[t];
  if (id >= 0 && id < V)
    atomicMin(first + id, static_cast<uint32_t>(t));
  else
    fault.raise(static_cast<double>(id), static_cast<double>(t), static_cast<double>(V));
}

// The blocks of an id's first token add all tokens of that id, in token order: a thread a column.
template <class R>
__global__ void embed_backward_kernel(int64_t T, int64_t D, int64_t V, View dx,
                                      Array<const int32_t> ids, const uint32_t* first_of,
                                      View dtable) {
  constexpr int kEach = 8, kPiece = kThreads * kEach, kWarps = kThreads / 32;
  __shared__ int16_t found[kPiece];  // tokens of this id in a piece, in order
  __shared__ int in_warp[kWarps];
  const int64_t first = blockIdx.x, id = ids[first];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  if (id < 0 || id >= V || first_of[id] != first) return;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kThreads + thread;
  const int64_t at = id * dtable.stride0 + column;
  R sum = column < D ? dtable.get<R>(at) : R(0);
  for (int64_t begin = first; begin < T; begin += kPiece) {
    unsigned matches = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t t = begin + thread * kEach + j;
      if (t < T && ids[t] == id) matches |= 1u << j;
    }
    if (__syncthreads_or(static_cast<int>(matches)) == 0) continue;
    const int mine = __popc(matches);
    int before = mine;  // of the warp, this thread's included
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, before, d);
      if (lane >= d) before += other;
    }
    if (lane == 31) in_warp[warp] = before;
    __syncthreads();
    before -= mine;
    int count = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += in_warp[w];
      count += in_warp[w];
    }
    for (int j = 0; j < kEach; ++j)
      if ((matches >> j & 1u) != 0) found[before++] = static_cast<int16_t>(thread * kEach + j);
    __syncthreads();
    if (column < D)
      for (int i = 0; i < count; ++i)
        sum = sum + dx.get<R>((begin + found[i]) * dx.stride0 + column);
  }
  if (column < D) dtable.put(at, sum);
}

constexpr const char* kIdOutside =
    "token id {0} at position {1} is outside the vocabulary of {2} ids";

}  // namespace

void cast(Context& ctx, In x, Out y) {
  const int64_t n = x.num_elements();
  if (is_vector(x) && is_vector(y) && n > 0) {
    cast_eight_kernel<<<blocks_for(n / 8, kThreads), kThreads, 0, stream_of(ctx)>>>(
        n, x.raw(), x.dtype(), y.raw(), y.dtype());
    return check_launch(ctx, "cast", x);
  }
  with_arithmetic({x.dtype(), y.dtype()}, [&]<class R>(R) {
    cast_kernel<R>
        <<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(n, Elements(x), Elements(y));
  });
  check_launch(ctx, "cast", x);
}

void add(Context& ctx, In a, In b, Out c) {
  const int64_t n = c.num_elements();
  if (is_vector(a) && is_vector(b) && is_vector(c) && n > 0) {
    add_eight_kernel<<<blocks_for(n / 8, kThreads), kThreads, 0, stream_of(ctx)>>>(
        n, a.raw(), a.dtype(), b.raw(), b.dtype(), c.raw(), c.dtype());
    return check_launch(ctx, "add", c);
  }
  with_arithmetic({a.dtype(), b.dtype(), c.dtype()}, [&]<class R>(R) {
    add_kernel<R><<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(
        n, Elements(a), Elements(b), Elements(c));
  });
  check_launch(ctx, "add", c);
}

void add_acc(Context& ctx, In x, Acc y) { add(ctx, x, y, Out(static_cast<Tensor&>(y))); }

void fill(Context& ctx, double value, Out x) {
  const int64_t n = x.num_elements();
  const auto narrow = static_cast<float>(value);
  if (is_vector(x) && n > 0 && static_cast<double>(narrow) == value) {
    const bool is_f32 = x.dtype() == DType::kF32;
    uint32_t word = std::bit_cast<uint32_t>(narrow);
    if (!is_f32) word = uint32_t{to_bf16(narrow).bits} * 0x10001u;
    const int64_t units = n / (is_f32 ? 4 : 8);
    fill_units_kernel<<<blocks_for(units, kThreads), kThreads, 0, stream_of(ctx)>>>(
        units, uint4{word, word, word, word}, static_cast<uint4*>(x.raw()));
    return check_launch(ctx, "fill", x);
  }
  fill_kernel<<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(n, value, Elements(x));
  check_launch(ctx, "fill", x);
}

void embed_forward(Context& ctx, In table, In ids, Out x) {
  const int64_t V = table.dim(0), D = table.dim(1), T = ids.dim(0);
  if (T == 0) return;
  with_arithmetic({table.dtype(), x.dtype()}, [&]<class R>(R) {
    embed_kernel<R><<<static_cast<unsigned>(T), kThreads, 0, stream_of(ctx)>>>(
        D, V, View(table), Array<const int32_t>(ids), View(x), FaultSite(ctx, kIdOutside));
  });
  check_launch(ctx, "embed_forward", x);
}

void embed_backward_acc(Context& ctx, In dx, In ids, Acc dtable) {
  const int64_t V = dtable.dim(0), D = dtable.dim(1), T = ids.dim(0);
  if (T == 0) return;
  Tensor first;
  const Block memory = ctx.memory.take_tensor(DType::kI32, {V}, &first);
  fill(ctx, -1.0, first);  // as unsigned numbers above every token
  auto* const first_of = static_cast<uint32_t*>(first.raw());
  first_token_kernel<<<blocks_for(T, kThreads), kThreads, 0, stream_of(ctx)>>>(
      T, V, Array<const int32_t>(ids), first_of, FaultSite(ctx, kIdOutside));
  check_launch(ctx, "embed_backward_acc", dx);
  with_arithmetic({dx.dtype(), dtable.dtype()}, [&]<class R>(R) {
    const dim3 grid(static_cast<unsigned>(T), static_cast<unsigned>(ceil_div(D, kThreads)));
    embed_backward_kernel<R><<<grid, kThreads, 0, stream_of(ctx)>>>(
        T, D, V, View(dx), Array<const int32_t>(ids), first_of, View(dtable));
  });
  check_launch(ctx, "embed_backward_acc", dx);
}

}  // namespace hadal::ops::cuda
