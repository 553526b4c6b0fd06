// Device, Stream, Event: the only names for a processor outside ops/cuda.
//
// On the CPU work is done when the call returns: streams are empty and events always complete.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace hadal {

enum class DeviceKind : uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
};

struct Stream {
  void* handle = nullptr;  // cudaStream_t on CUDA
};

struct Event {
  void* handle = nullptr;  // cudaEvent_t on CUDA
};

}  // namespace hadal
