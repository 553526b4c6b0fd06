// The device functions of a build without CUDA: the CPU, and one sentence for everything else.
// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <cstring>

#include "core/check.h"
#include "core/device.h"
#include "core/pinned.h"
#include "core/stream_state.h"

namespace hadal::device {
namespace {

constexpr const char* kWhy = "this build has no CUDA backend; configure with the preset cuda";

void check_cpu(Device device) {
  HADAL_CHECK(device.kind == DeviceKind::kCpu, "there is no CUDA device: ", kWhy);
}

}  // namespace

int num_devices(DeviceKind kind) { return kind == DeviceKind::kCpu ? 1 : 0; }
std::string why_no_cuda() { return kWhy; }
std::string name(Device device) {
  check_cpu(device);
  return "CPU";
}
Stream make_stream(Device device) {
  check_cpu(device);
  return {};
}
void destroy(Device, Stream) {}
void synchronize(Device device, Stream) { check_cpu(device); }
bool is_idle(Device, Stream) { return true; }
bool is_recording(Device, Stream) { return false; }
Stream make_urgent_stream(Device device) { return make_stream(device); }
Stream make_message_stream(Device device) { return make_stream(device); }
Event make_mark(Device device) { return make_event(device); }
void await(Device, Stream, Event) {}
void look_unless_recording(Device, Stream, const std::function<void()>& look) { look(); }
void await_outside(Device, Stream, Event) {}
void* allocate_pinned(Device device, size_t bytes) {
  check_cpu(device);
  return std::malloc(bytes);
}
void release_pinned(Device, void* data) noexcept { std::free(data); }
void set_bytes(Device device, void* data, int value, size_t bytes) {
  check_cpu(device);
  std::memset(data, value, bytes);
}
void copy_to_device(Device device, Stream, const void* from, void* to, size_t bytes) {
  check_cpu(device);
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void copy_to_host(Device device, Stream, const void* from, void* to, size_t bytes) {
  check_cpu(device);
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void copy_on_device(Device device, Stream, const void* from, void* to, size_t bytes) {
  check_cpu(device);
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void copy_to_pinned(Device device, Stream stream, const void* from, void* to, size_t bytes) {
  copy_to_host(device, stream, from, to, bytes);
}
Event make_event(Device device) {
  check_cpu(device);
  return {};
}
void destroy(Device, Event) {}
void record(Device device, Stream, Event) { check_cpu(device); }
void wait(Device device, Event) { check_cpu(device); }
void wait_checked(Device device, Event) { check_cpu(device); }
double elapsed_ms(Device device, Event, Event) {
  check_cpu(device);
  return 0.0;
}
bool can_record(Device) { return false; }
void begin_recording(Device, Stream) { HADAL_FAIL("the CPU cannot record work"); }
Graph end_recording(Device, Stream) { return {}; }
void launch(Device, Stream, Graph) { HADAL_FAIL("the CPU cannot record work"); }
void destroy(Device, Graph) {}
Fault* fault(Device) { return nullptr; }

}  // namespace hadal::device
