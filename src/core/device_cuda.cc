// The device functions of a build with CUDA; the only file of core that includes its headers.
// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "core/check.h"
#include "core/device.h"
#include "core/env.h"
#include "core/pinned.h"
#include "core/stream_state.h"

namespace hadal::device {
namespace {

void check(cudaError_t status, const char* call) {
  HADAL_CHECK(status == cudaSuccess, call, " failed: ", cudaGetErrorString(status));
}
#define CHECK_CALL(call) check((call), #call)

bool is_cpu(Device device) { return device.kind == DeviceKind::kCpu; }
void use(Device device) { CHECK_CALL(cudaSetDevice(device.index)); }
cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }
cudaEvent_t native(Event event) { return static_cast<cudaEvent_t>(event.handle); }

void replace(std::string& text, const std::string& mark, double value) {
  const size_t at = text.find(mark);
  if (at != std::string::npos) text.replace(at, mark.size(), concat(value));
}

// Throws the fault that a finished kernel recorded, once.
void throw_fault(Device device) {
  Fault* record = fault(device);
  if (record->written == 0) return;
  const Fault found = *record;
  *record = {};
  record->number = found.number + 1;
  std::string sentence = found.sentence;
  for (int i = 0; i < 3; ++i) replace(sentence, concat("{", i, "}"), found.values[i]);
  HADAL_FAIL(sentence);
}

}  // namespace

int num_devices(DeviceKind kind) {
  if (kind == DeviceKind::kCpu) return 1;
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string why_no_cuda() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver)
    return "no NVIDIA driver for CUDA " + std::to_string(CUDART_VERSION / 1000) + " is installed";
  return status == cudaSuccess ? "no GPU was found" : cudaGetErrorString(status);
}

std::string name(Device device) {
  if (is_cpu(device)) return "CPU";
  cudaDeviceProp properties;
  CHECK_CALL(cudaGetDeviceProperties(&properties, device.index));
  return properties.name;
}

Stream make_stream(Device device) {
  if (is_cpu(device)) return {};
  use(device);
  cudaStream_t stream = nullptr;
  CHECK_CALL(cudaStreamCreate(&stream));
  return {stream};
}

namespace {

Stream make_stream_of_most_priority(Device device, unsigned flags) {
  if (is_cpu(device)) return {};
  use(device);
  int least = 0, greatest = 0;
  CHECK_CALL(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  cudaStream_t stream = nullptr;
  CHECK_CALL(cudaStreamCreateWithPriority(&stream, flags, greatest));
  return {stream};
}

}  // namespace

Stream make_urgent_stream(Device device) {
  return make_stream_of_most_priority(device, cudaStreamDefault);
}

Stream make_message_stream(Device device) {
  return make_stream_of_most_priority(device, cudaStreamNonBlocking);
}

void destroy(Device device, Stream stream) {
  if (!is_cpu(device) && stream.handle != nullptr) cudaStreamDestroy(native(stream));
}

void synchronize(Device device, Stream stream) {
  if (is_cpu(device)) return;
  CHECK_CALL(cudaStreamSynchronize(native(stream)));
  throw_fault(device);
}

bool is_idle(Device device, Stream stream) {
  if (is_cpu(device)) return true;
  use(device);  // this may be a thread of its own
  return cudaStreamQuery(native(stream)) != cudaErrorNotReady;
}

bool is_recording(Device device, Stream stream) {
  if (is_cpu(device)) return false;
  use(device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CHECK_CALL(cudaStreamIsCapturing(native(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

namespace {
std::mutex begins_recording;
}  // namespace

void look_unless_recording(Device device, Stream stream, const std::function<void()>& look) {
  const std::lock_guard<std::mutex> lock(begins_recording);
  if (!is_recording(device, stream)) look();
}

void* allocate_pinned(Device device, size_t bytes) {
  if (is_cpu(device)) return std::malloc(bytes);
  use(device);
  void* data = nullptr;
  CHECK_CALL(cudaHostAlloc(&data, bytes, cudaHostAllocPortable));
  return data;
}

void release_pinned(Device device, void* data) noexcept {
  if (is_cpu(device))
    std::free(data);
  else
    static_cast<void>(cudaFreeHost(data));
}

void set_bytes(Device device, void* data, int value, size_t bytes) {
  if (is_cpu(device)) {
    std::memset(data, value, bytes);
    return;
  }
  CHECK_CALL(cudaMemset(data, value, bytes));
}

void copy_to_device(Device device, Stream stream, const void* from, void* to, size_t bytes) {
  if (bytes == 0) return;
  if (is_cpu(device)) {
    std::memcpy(to, from, bytes);
    return;
  }
  // NOTE: pageable memory: the call returns when `from` was read.
  CHECK_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(stream)));
}

void copy_to_host(Device device, Stream stream, const void* from, void* to, size_t bytes) {
  if (is_cpu(device)) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return;
  }
  if (bytes > 0)
    CHECK_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(stream)));
  synchronize(device, stream);
}

void copy_on_device(Device device, Stream stream, const void* from, void* to, size_t bytes) {
  if (bytes == 0) return;
  if (is_cpu(device)) {
    std::memcpy(to, from, bytes);
    return;
  }
  CHECK_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(stream)));
}

void copy_to_pinned(Device device, Stream stream, const void* from, void* to, size_t bytes) {
  if (is_cpu(device)) return copy_to_host(device, stream, from, to, bytes);
  if (bytes > 0)
    CHECK_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(stream)));
}

Event make_event(Device device) {
  if (is_cpu(device)) return {};
  use(device);
  cudaEvent_t event = nullptr;
  CHECK_CALL(cudaEventCreate(&event));
  return {event};
}

Event make_mark(Device device) {
  if (is_cpu(device)) return {};
  use(device);
  cudaEvent_t event = nullptr;
  CHECK_CALL(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return {event};
}

void await(Device device, Stream stream, Event event) {
  if (!is_cpu(device)) CHECK_CALL(cudaStreamWaitEvent(native(stream), native(event), 0));
}

void await_outside(Device device, Stream stream, Event event) {
  if (!is_recording(device, stream)) return await(device, stream, event);
  CHECK_CALL(cudaStreamWaitEvent(native(stream), native(event), cudaEventWaitExternal));
}

void destroy(Device device, Event event) {
  if (!is_cpu(device) && event.handle != nullptr) cudaEventDestroy(native(event));
}

void record(Device device, Stream stream, Event event) {
  if (!is_cpu(device)) CHECK_CALL(cudaEventRecord(native(event), native(stream)));
}

void wait(Device device, Event event) {
  if (!is_cpu(device)) CHECK_CALL(cudaEventSynchronize(native(event)));
}

void wait_checked(Device device, Event event) {
  if (is_cpu(device)) return;
  wait(device, event);
  throw_fault(device);
}

double elapsed_ms(Device device, Event begin, Event end) {
  if (is_cpu(device)) return 0.0;
  CHECK_CALL(cudaEventSynchronize(native(end)));
  float ms = 0.0f;
  CHECK_CALL(cudaEventElapsedTime(&ms, native(begin), native(end)));
  return static_cast<double>(ms);
}

bool can_record(Device device) {
#ifdef NDEBUG
  return !is_cpu(device) && !env::debug_sync() && !env::profile();
#else
  static_cast<void>(device);
  return false;
#endif
}

void begin_recording(Device device, Stream stream) {
  HADAL_CHECK(can_record(device), "this device cannot record work");
  const std::lock_guard<std::mutex> lock(begins_recording);
  // NOTE: relaxed, so that a pool may ask the driver for memory meanwhile.
  CHECK_CALL(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeRelaxed));
}

namespace {

// NOTE: a graph has 2 to 5 KB of memory for each kernel, outside of all pools.
void check_graph(cudaError_t status, const char* call) {
  HADAL_CHECK(status != cudaErrorMemoryAllocation,
              "the GPU has no memory left for recorded work: use smaller batches or a smaller "
              "model, or parallel.record=false in training");
  check(status, call);
}

}  // namespace

Graph end_recording(Device, Stream stream) {
  cudaGraph_t graph = nullptr;
  CHECK_CALL(cudaStreamEndCapture(native(stream), &graph));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  check_graph(status, "cudaGraphInstantiate");
  return {exec};
}

void launch(Device, Stream stream, Graph graph) {
  check_graph(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.handle), native(stream)),
              "cudaGraphLaunch");
}

void destroy(Device device, Graph graph) {
  if (!is_cpu(device) && graph.handle != nullptr)
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph.handle));
}

// One record per device for the life of the process: mapped host memory, which a kernel can write
// and the host can read without a copy.
Fault* fault(Device device) {
  if (is_cpu(device)) return nullptr;
  static std::mutex mutex;
  static std::map<int, Fault*> records;
  const std::lock_guard<std::mutex> lock(mutex);
  Fault*& record = records[device.index];
  if (record == nullptr) {
    use(device);
    void* memory = nullptr;
    CHECK_CALL(cudaHostAlloc(&memory, sizeof(Fault), cudaHostAllocMapped | cudaHostAllocPortable));
    record = new (memory) Fault{};
  }
  return record;
}

}  // namespace hadal::device
