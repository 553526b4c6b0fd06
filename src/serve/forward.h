// Engine::Forward: a step that the host waits for.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/timer.h"
#include "serve/engine.h"

namespace hadal::serve {

struct Engine::Forward {
  Block memory;
  Tensor h;                     // [T, D]
  std::vector<int64_t> offset;  // of each run: its first row of h
  std::vector<int32_t> rows;    // [R] rows of h
  Block logits_memory;
  Tensor logits;               // [R, V]
  std::vector<int64_t> first;  // of each run: its first row of logits, or -1
  Timer timer;
  double now = 0.0;
};

}  // namespace hadal::serve
