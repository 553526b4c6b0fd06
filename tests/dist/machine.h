// One device and what a rank runs on it, with one thread.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "core/device.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace hadal::testing {

struct Machine {
  explicit Machine(Device where = {})
      : device(where), stream(device::make_stream(where)), memory(where) {}
  ~Machine() { device::destroy(device, stream); }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  Device device;
  Stream stream;
  ThreadPool threads{1};
  Pool memory;
  Context ctx{.device = device, .stream = stream, .threads = threads, .memory = memory};
};

}  // namespace hadal::testing
