// Windows of GPUs, by CUDA's handles for other processes; of the CPU too.
// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "core/check.h"
#include "core/device_window.h"
#include "core/host_window.h"

namespace hadal::device {
namespace {

bool is_cpu(Device device) { return device.kind == DeviceKind::kCpu; }
void check(cudaError_t status, const char* what) {
  HADAL_CHECK(status == cudaSuccess, "a window of a GPU: ", what,
              " failed: ", cudaGetErrorString(status));
}

}  // namespace

// NOTE: by cudaMalloc: a handle is of a whole allocation, which pieces of a pool are not.
void* allocate_window(Device device, size_t bytes, WindowHandle* handle) {
  if (is_cpu(device)) return host_window(bytes, handle);
  void* window = nullptr;
  check(cudaSetDevice(device.index), "cudaSetDevice");
  check(cudaMalloc(&window, bytes), "cudaMalloc");
  check(cudaMemset(window, 0, bytes), "cudaMemset");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  cudaIpcMemHandle_t ipc;
  check(cudaIpcGetMemHandle(&ipc, window), "cudaIpcGetMemHandle");
  static_assert(sizeof(ipc) == sizeof(handle->bytes));
  std::memcpy(handle->bytes.data(), &ipc, sizeof(ipc));
  return window;
}

void* open_window(Device device, const WindowHandle& handle) {
  if (is_cpu(device)) return address_of(handle);
  cudaIpcMemHandle_t ipc;
  std::memcpy(&ipc, handle.bytes.data(), sizeof(ipc));
  void* window = nullptr;
  check(cudaSetDevice(device.index), "cudaSetDevice");
  check(cudaIpcOpenMemHandle(&window, ipc, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
  return window;
}

void close_window(Device device, void* window) noexcept {
  if (!is_cpu(device)) static_cast<void>(cudaIpcCloseMemHandle(window));
}

void release_window(Device device, void* window) noexcept {
  if (is_cpu(device))
    std::free(window);
  else
    static_cast<void>(cudaFree(window));
}

}  // namespace hadal::device
