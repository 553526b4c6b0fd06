// Context: where an op runs and what it may use. Passed to every call, never global.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/device.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace hadal {

struct Context {
  Device device;
  Stream stream;
  ThreadPool& threads;
  Pool& memory;
};

}  // namespace hadal
