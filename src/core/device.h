// Device, Stream, Event: the only names for a processor outside ops/cuda.
//
// On the CPU work is done when the call returns: streams are empty and events always complete. On
// CUDA ops run in the order of their stream and return before they are done; synchronize() waits.
// A build without CUDA has one body of these functions (device_cpu.cc), a build with it another
// (device_cuda.cc), which starts where no driver is installed: num_devices() is then 0.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

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

// Recorded work of a stream, to be launched again and again at the cost of one launch.
struct Graph {
  void* handle = nullptr;  // cudaGraphExec_t on CUDA
};

namespace device {

// What a kernel found wrong in its data: a sentence with {0}, {1}, {2} for the values. The first
// one stays until it is reported; the kernel leaves out the work and goes on. The record lies in
// the host's memory, where a GPU has no atomics: who writes is decided by a counter of its own.
struct Fault {
  unsigned int number = 1;         // of the fault that comes next, from 1
  unsigned int written = 0;        // 1 once the rest is there
  const char* sentence = nullptr;  // static text of the host
  double values[3] = {};
};

// Devices of a kind that this build can use here; 1 for the CPU.
int num_devices(DeviceKind kind);
// Why num_devices(kCuda) is 0, as the end of a sentence.
std::string why_no_cuda();
std::string name(Device device);  // "NVIDIA H100 80GB HBM3"; "CPU"

Stream make_stream(Device device);
void destroy(Device device, Stream stream);
// Waits for all work of the stream; throws what its kernels found wrong.
void synchronize(Device device, Stream stream);

// Sets every byte, in the order of the default stream and after all earlier work.
void set_bytes(Device device, void* data, int value, size_t bytes);

// Host memory that the device reads by itself: copies from it overlap the host's work.
void* allocate_pinned(Device device, size_t bytes);
void release_pinned(Device device, void* data) noexcept;

// In stream order. `from` may be changed on return, unless it is pinned.
void copy_to_device(Device device, Stream stream, const void* from, void* to, size_t bytes);
// Waits until the bytes are there, and throws what kernels found wrong before.
void copy_to_host(Device device, Stream stream, const void* from, void* to, size_t bytes);

// Time marks in a stream. On the CPU an event is empty and elapsed_ms is 0.
Event make_event(Device device);
void destroy(Device device, Event event);
void record(Device device, Stream stream, Event event);
void wait(Device device, Event event);
double elapsed_ms(Device device, Event begin, Event end);  // waits for `end`

// Whether work can be recorded: not on the CPU, nor where each kernel is waited for or memory is
// poisoned (HADAL_DEBUG_SYNC, builds with assertions).
bool can_record(Device device);
// What ops put into the stream from here on is recorded and not done, up to end_recording. They
// must not wait, copy from the host, or take memory that the pool would get from the system.
void begin_recording(Device device, Stream stream);
Graph end_recording(Device device, Stream stream);
void launch(Device device, Stream stream, Graph graph);
void destroy(Device device, Graph graph);

// The device's record, visible to host and kernels; null on the CPU.
Fault* fault(Device device);

}  // namespace device
}  // namespace hadal
