// Element-wise movement on CUDA.
//
//   T rows   D width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "ops/copy.h"
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

__global__ void fill_kernel(int64_t n, double value, Elements x) {
  for (int64_t i = first_index(); i < n; i += index_step()) x.put(i, value);
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

// The block of an id's first token adds all tokens of that id, in token order.
template <class R>
__global__ void embed_backward_kernel(int64_t T, int64_t D, int64_t V, View dx,
                                      Array<const int32_t> ids, View dtable, FaultSite fault) {
  const int64_t first = blockIdx.x;
  const int64_t id = ids[first];
  if (id < 0 || id >= V) {
    if (threadIdx.x == 0)
      fault.raise(static_cast<double>(id), static_cast<double>(first), static_cast<double>(V));
    return;
  }
  int seen = 0;
  for (int64_t t = threadIdx.x; t < first; t += blockDim.x) seen |= ids[t] == id ? 1 : 0;
  if (__syncthreads_or(seen) != 0) return;
  for (int64_t t = first; t < T; ++t) {
    if (ids[t] != id) continue;
    for (int64_t j = threadIdx.x; j < D; j += blockDim.x) {
      const int64_t at = id * dtable.stride0 + j;
      dtable.put(at, dtable.get<R>(at) + dx.get<R>(t * dx.stride0 + j));
    }
  }
}

constexpr const char* kIdOutside =
    "token id {0} at position {1} is outside the vocabulary of {2} ids";

}  // namespace

void cast(Context& ctx, In x, Out y) {
  const int64_t n = x.num_elements();
  with_arithmetic({x.dtype(), y.dtype()}, [&]<class R>(R) {
    cast_kernel<R>
        <<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(n, Elements(x), Elements(y));
  });
  check_launch(ctx, "cast", x);
}

void add(Context& ctx, In a, In b, Out c) {
  const int64_t n = c.num_elements();
  with_arithmetic({a.dtype(), b.dtype(), c.dtype()}, [&]<class R>(R) {
    add_kernel<R><<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(
        n, Elements(a), Elements(b), Elements(c));
  });
  check_launch(ctx, "add", c);
}

void add_acc(Context& ctx, In x, Acc y) { add(ctx, x, y, Out(static_cast<Tensor&>(y))); }

void fill(Context& ctx, double value, Out x) {
  const int64_t n = x.num_elements();
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
  with_arithmetic({dx.dtype(), dtable.dtype()}, [&]<class R>(R) {
    embed_backward_kernel<R><<<static_cast<unsigned>(T), kThreads, 0, stream_of(ctx)>>>(
        T, D, V, View(dx), Array<const int32_t>(ids), View(dtable), FaultSite(ctx, kIdOutside));
  });
  check_launch(ctx, "embed_backward_acc", dx);
}

}  // namespace hadal::ops::cuda
