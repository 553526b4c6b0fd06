// GpuStage: what the fake library needs of a GPU's driver: copies between a stream and pinned
// memory, and a call of the host's in the stream, as NCCL's kernels would stand there. The driver
// is loaded when it is there; without it all memory is the host's.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dlfcn.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>
#include <type_traits>

class GpuStage {
 public:
  using Stream = void*;
  using Call = void (*)(void* argument);
  static constexpr size_t kBytes = size_t{1} << 30;

  GpuStage() {
    void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver == nullptr) return;
    const auto find = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(driver, name));
      return function != nullptr;
    };
    has_driver_ = find("cuPointerGetAttribute", attribute_) && find("cuMemHostAlloc", allocate_) &&
                  find("cuMemcpyDtoHAsync_v2", to_host_) && find("cuMemcpyHtoDAsync_v2", to_gpu_) &&
                  find("cuLaunchHostFunc", call_) && find("cuStreamIsCapturing", is_capturing_) &&
                  find("cuStreamWaitValue32_v2", await_number_) &&
                  find("cuStreamWriteValue32_v2", write_number_) &&
                  find("cuEventCreate", create_event_) && find("cuEventRecord", record_) &&
                  find("cuStreamWaitEvent", await_);
  }
  GpuStage(const GpuStage&) = delete;
  GpuStage& operator=(const GpuStage&) = delete;

  bool is_gpu_memory(const void* data) const {
    unsigned type = 0;
    return has_driver_ && attribute_(&type, 2, reinterpret_cast<uint64_t>(data)) == 0 && type == 2;
  }
  bool is_capturing(Stream stream) const {
    int status = 0;
    return is_capturing_(stream, &status) == 0 && status != 0;
  }
  // Pinned memory, before anything is recorded: a recording may not allocate.
  bool reserve() {
    if (!has_driver_ || base_ != nullptr) return true;
    void* all = nullptr;
    if (allocate_(&all, kBytes, 0) != 0) return false;
    base_ = static_cast<char*>(all);
    free_[0] = kBytes;
    return true;
  }
  // Groups of a communicator run in the order of their calls, whatever their streams. `order`: its
  // event behind the group before.
  bool begin_group(Stream stream, void*& order) const {
    if (order == nullptr) return create_event_(&order, kNoTiming) == 0;
    return await_(stream, order, 0) == 0;
  }
  bool end_group(Stream stream, void* order) const { return record_(order, stream) == 0; }
  // Goes on when the number, in memory of take(), is this one or a later one.
  bool await_number(Stream stream, const uint32_t* at, uint32_t number) const {
    return await_number_(stream, reinterpret_cast<uint64_t>(at), number, kAtLeast) == 0;
  }
  bool write_number(Stream stream, const uint32_t* at, uint32_t number) const {
    return write_number_(stream, reinterpret_cast<uint64_t>(at), number, 0) == 0;
  }
  // Waits for room; null where nothing under way will make some.
  char* take(size_t bytes, bool may_wait) {
    bytes = (bytes + 255) / 256 * 256;
    for (int tries = 0; tries < (may_wait ? 20000 : 1); ++tries) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto it = free_.begin(); it != free_.end(); ++it) {
          const size_t at = it->first, size = it->second;
          if (size < bytes) continue;
          free_.erase(it);
          if (size > bytes) free_[at + bytes] = size - bytes;
          return base_ + at;
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return nullptr;
  }
  void give_back(const char* place, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto at = free_.emplace(static_cast<size_t>(place - base_), (bytes + 255) / 256 * 256).first;
    const auto next = std::next(at);
    if (next != free_.end() && at->first + at->second == next->first) {
      at->second += next->second;
      free_.erase(next);
    }
    if (at == free_.begin()) return;
    const auto before = std::prev(at);
    if (before->first + before->second != at->first) return;
    before->second += at->second;
    free_.erase(at);
  }
  bool to_host(void* to, const void* from, size_t bytes, Stream stream) const {
    return to_host_(to, reinterpret_cast<uint64_t>(from), bytes, stream) == 0;
  }
  bool to_gpu(void* to, const void* from, size_t bytes, Stream stream) const {
    return to_gpu_(reinterpret_cast<uint64_t>(to), from, bytes, stream) == 0;
  }
  bool call(Stream stream, Call function, void* argument) const {
    return call_(stream, function, argument) == 0;
  }

 private:
  static constexpr unsigned kNoTiming = 2, kAtLeast = 0;

  bool has_driver_ = false;
  int (*attribute_)(void* value, int attribute, uint64_t pointer) = nullptr;
  int (*allocate_)(void** to, size_t bytes, unsigned flags) = nullptr;
  int (*to_host_)(void* to, uint64_t from, size_t bytes, Stream stream) = nullptr;
  int (*to_gpu_)(uint64_t to, const void* from, size_t bytes, Stream stream) = nullptr;
  int (*call_)(Stream stream, Call function, void* argument) = nullptr;
  int (*create_event_)(void** event, unsigned flags) = nullptr;
  int (*record_)(void* event, Stream stream) = nullptr;
  int (*await_)(Stream stream, void* event, unsigned flags) = nullptr;
  int (*await_number_)(Stream stream, uint64_t at, uint32_t number, unsigned flags) = nullptr;
  int (*write_number_)(Stream stream, uint64_t at, uint32_t number, unsigned flags) = nullptr;
  int (*is_capturing_)(Stream stream, int* status) = nullptr;
  std::mutex mutex_;
  char* base_ = nullptr;
  std::map<size_t, size_t> free_;  // offset -> bytes
};
