// What the CUDA bench programs share: device buffers, random data, graph timing, result rows.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "core/check.h"
#include "ops/cuda/detail/tensor_map.h"

namespace hadal::bench {

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count) {
    HADAL_CHECK_CUDA(
        cudaMalloc(&data_, static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T)));
  }
  Buffer(int64_t count, const std::vector<T>& host) : Buffer(count) { copy_from(host); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  int64_t count() const { return count_; }
  void fill_bytes(int value) const {
    HADAL_CHECK_CUDA(cudaMemset(data_, value, static_cast<size_t>(count_) * sizeof(T)));
  }
  void copy_from(const std::vector<T>& host) const {
    HADAL_CHECK_CUDA(
        cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> to_host() const { return to_host(0, count_); }
  std::vector<T> to_host(int64_t first, int64_t count) const {
    std::vector<T> host(static_cast<size_t>(count));
    HADAL_CHECK_CUDA(
        cudaMemcpy(host.data(), data_ + first, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  int64_t count_;
};

__device__ inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
__device__ inline float gaussian(uint64_t seed, int64_t i) {
  const uint64_t bits = mix(seed * 0x100000001B3ull + static_cast<uint64_t>(i));
  const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
  const float v = static_cast<float>(bits & 0xFFFFFF) * 0x1p-24f;
  return sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
}
template <class T>
__global__ void fill_gaussian_kernel(T* data, int64_t count, float mean, float deviation,
                                     uint64_t seed) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    data[i] = static_cast<T>(mean + deviation * gaussian(seed, i));
  }
}
template <class T>
void fill_gaussian(const Buffer<T>& buffer, float mean, float deviation, uint64_t seed) {
  fill_gaussian_kernel<<<1056, 256>>>(buffer.get(), buffer.count(), mean, deviation, seed);
  HADAL_CHECK_CUDA(cudaGetLastError());
}
template <class T>
__global__ void fill_uniform_kernel(T* data, int64_t count, float low, float high, uint64_t seed) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const uint64_t bits = mix(seed * 0x100000001B3ull + static_cast<uint64_t>(i));
    data[i] = static_cast<T>(low + (high - low) * static_cast<float>(bits >> 40) * 0x1p-24f);
  }
}
template <class T>
void fill_uniform(const Buffer<T>& buffer, float low, float high, uint64_t seed) {
  fill_uniform_kernel<<<1056, 256>>>(buffer.get(), buffer.count(), low, high, seed);
  HADAL_CHECK_CUDA(cudaGetLastError());
}

// Microseconds a call: the median over replays of a graph of `calls` calls, divided by `calls`.
// call(i, stream) should use data set i of a rotation larger than the L2.
inline double time_graph(int calls, int replays,
                         const std::function<void(int, cudaStream_t)>& call) {
  cudaStream_t stream;
  HADAL_CHECK_CUDA(cudaStreamCreate(&stream));
  call(0, stream);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  HADAL_CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) call(i, stream);
  HADAL_CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  HADAL_CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  HADAL_CHECK_CUDA(cudaEventCreate(&begin));
  HADAL_CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < replays + 3; ++i) {
    HADAL_CHECK_CUDA(cudaEventRecord(begin, stream));
    HADAL_CHECK_CUDA(cudaGraphLaunch(exec, stream));
    HADAL_CHECK_CUDA(cudaEventRecord(end, stream));
    HADAL_CHECK_CUDA(cudaEventSynchronize(end));
    float ms;
    HADAL_CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms);
  }
  HADAL_CHECK_CUDA(cudaGetLastError());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e3 / calls;
}

// Microseconds of single calls, events around each, the L2 flushed before: the median.
inline double time_single(int repeats, const std::function<void(int, cudaStream_t)>& call) {
  Buffer<uint8_t> flush(128 << 20);
  cudaEvent_t begin, end;
  HADAL_CHECK_CUDA(cudaEventCreate(&begin));
  HADAL_CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < repeats + 3; ++i) {
    HADAL_CHECK_CUDA(cudaMemsetAsync(flush.get(), i, static_cast<size_t>(flush.count()), nullptr));
    HADAL_CHECK_CUDA(cudaEventRecord(begin, nullptr));
    call(i, nullptr);
    HADAL_CHECK_CUDA(cudaEventRecord(end, nullptr));
    HADAL_CHECK_CUDA(cudaEventSynchronize(end));
    float ms;
    HADAL_CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e3;
}

inline int num_sms() {
  int device = 0, count = 0;
  HADAL_CHECK_CUDA(cudaGetDevice(&device));
  HADAL_CHECK_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

inline void print_device() {
  int device = 0, driver = 0, runtime = 0;
  cudaDeviceProp prop;
  HADAL_CHECK_CUDA(cudaGetDevice(&device));
  HADAL_CHECK_CUDA(cudaGetDeviceProperties(&prop, device));
  HADAL_CHECK_CUDA(cudaDriverGetVersion(&driver));
  HADAL_CHECK_CUDA(cudaRuntimeGetVersion(&runtime));
  std::printf("device %s, %d SMs, L2 %d MB; driver for CUDA %d, runtime %d\n", prop.name,
              prop.multiProcessorCount, prop.l2CacheSize >> 20, driver, runtime);
}

__global__ void copy_kernel(const int4* from, int4* to, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    const int4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
    to[i] = a, to[i + step] = b, to[i + 2 * step] = c, to[i + 3 * step] = d;
  }
  for (; i < count; i += step) to[i] = from[i];
}

// Terabytes a second, read plus written, of the better of our copy kernel and the driver's copy.
inline double copy_ceiling() {
  const int64_t bytes = int64_t{1} << 30;
  Buffer<uint8_t> a(bytes), b(bytes);
  fill_uniform(a, 0.0f, 255.0f, 3);
  const double kernel = time_graph(4, 10, [&](int, cudaStream_t stream) {
    copy_kernel<<<num_sms() * 8, 256, 0, stream>>>(reinterpret_cast<const int4*>(a.get()),
                                                   reinterpret_cast<int4*>(b.get()), bytes / 16);
  });
  const double driver = time_graph(4, 10, [&](int, cudaStream_t stream) {
    HADAL_CHECK_CUDA(cudaMemcpyAsync(b.get(), a.get(), static_cast<size_t>(bytes),
                                     cudaMemcpyDeviceToDevice, stream));
  });
  return 2.0 * static_cast<double>(bytes) / std::min(kernel, driver) * 1e-6;
}

// ||got - want|| / ||want||, accumulated over calls.
struct Distance {
  double error = 0.0, norm = 0.0, worst = 0.0;
  int64_t bad = 0;  // not finite
  void add(double got, double want) {
    if (!std::isfinite(got)) ++bad;
    error += (got - want) * (got - want);
    norm += want * want;
    worst = std::max(worst, std::abs(got - want));
  }
  double relative() const { return bad > 0 ? INFINITY : std::sqrt(error / std::max(norm, 1e-300)); }
};

}  // namespace hadal::bench
