// Context: where an op runs and what it may use. Passed to every call, never global.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/device.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace hadal {

// What fixes the order of a sum. On the CPU kInvariant is the only one.
enum class Numerics : uint8_t {
  kInvariant,  // shapes of weights and the length of the context: never the rest of the batch
  kFastest,    // the number of rows and sequences of the call as well
};

struct Context {
  Device device;
  Stream stream;
  ThreadPool& threads;
  Pool& memory;
  Numerics numerics = Numerics::kInvariant;
  int spare_sms = 0;  // of a GPU: left to what runs beside this work (core/side_stream.h)
};

}  // namespace hadal
