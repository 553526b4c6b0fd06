// Launching kernels: block counts, the check after each launch, faults, and the choice of R.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "core/context.h"
#include "core/env.h"
#include "ops/cuda/detail/programmatic_launch.h"
#include "ops/cuda/profile.h"

namespace hadal::ops::cuda {

inline constexpr int kThreads = 256;  // of a block, unless a kernel says otherwise

inline cudaStream_t stream_of(const Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.handle);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int attribute_of(const Context& ctx, cudaDeviceAttr attribute) {
  int value = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&value, attribute, ctx.device.index);
  HADAL_CHECK(status == cudaSuccess, "cudaDeviceGetAttribute failed: ", cudaGetErrorString(status));
  return value;
}
// SMs that a kernel of this context may fill: all but those that are left to transfers.
inline int num_sms(const Context& ctx) {
  return attribute_of(ctx, cudaDevAttrMultiProcessorCount) - ctx.spare_sms;
}
// Whether kernels written for Hopper run here and are wanted.
inline bool has_sm90(const Context& ctx) {
  static const bool plain = env::cuda_plain();
  return !plain && attribute_of(ctx, cudaDevAttrComputeCapabilityMajor) == 9;
}

// Blocks for `count` items of which a block takes `per_block`; kernels loop where that is too many.
inline unsigned blocks_for(int64_t count, int64_t per_block) {
  constexpr int64_t kMostBlocks = int64_t{1} << 20;
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(count, per_block), 1, kMostBlocks));
}

// A launch that may overlap the end of the kernel before. Errors are left to check_launch().
template <class... Params>
void launch_programmatic(const Context& ctx, void (*kernel)(Params...), dim3 grid, int threads,
                         int64_t shared_bytes, const std::type_identity_t<Params>&... args) {
  const hadal::cuda::ProgrammaticLaunch launch(grid, threads, shared_bytes, stream_of(ctx));
  static_cast<void>(launch.start(kernel, args...));
}

// After each launch: an error names the op and what it worked on.
inline void check_launch(const Context& ctx, const char* op, const Tensor& on) {
  cudaError_t status = cudaGetLastError();
  static const bool wait = env::debug_sync();
  static const bool profile = env::profile();
  if (status == cudaSuccess && profile) profile_launch(op, stream_of(ctx));
  if (status == cudaSuccess && wait) status = cudaStreamSynchronize(stream_of(ctx));
  HADAL_CHECK(status == cudaSuccess, op, " on ", on.str(), ": ", cudaGetErrorString(status));
}

// Calls fn(R{}) with the arithmetic type of the tensors: double if one of them is f64.
template <class Fn>
void with_arithmetic(std::initializer_list<DType> dtypes, const Fn& fn) {
  if (std::find(dtypes.begin(), dtypes.end(), DType::kF64) != dtypes.end())
    fn(double{});
  else
    fn(float{});
}

// Calls fn(constant), so that a kernel exists for either value.
template <class Fn>
void with_constant(bool value, const Fn& fn) {
  if (value)
    fn(std::true_type{});
  else
    fn(std::false_type{});
}

// Number of the last fault that a kernel of this file wrote.
static __device__ unsigned int last_fault = 0;

// Where a kernel says that its data is wrong; the host throws the sentence when it next waits
// (core/device.h). The first fault is kept.
class FaultSite {
 public:
  FaultSite(const Context& ctx, const char* sentence)
      : record_(device::fault(ctx.device)), sentence_(sentence) {}

  __device__ void raise(double a, double b = 0, double c = 0) const {
    const unsigned int number = *const_cast<const volatile unsigned int*>(&record_->number);
    if (atomicMax(&last_fault, number) >= number) return;
    record_->sentence = sentence_;
    record_->values[0] = a;
    record_->values[1] = b;
    record_->values[2] = c;
    __threadfence_system();
    record_->written = 1;
  }

 private:
  device::Fault* record_;
  const char* sentence_;
};

}  // namespace hadal::ops::cuda
