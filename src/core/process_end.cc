// The functions of this process, in the order in which they came.
// SPDX-License-Identifier: Apache-2.0
#include "core/process_end.h"

#include <cstdlib>
#include <utility>
#include <vector>

namespace hadal {
namespace {

std::vector<void (*)()>& list() {
  static std::vector<void (*)()> functions;
  return functions;
}

}  // namespace

void at_process_end(void (*fn)()) {
  if (list().empty()) std::atexit(run_process_end);
  list().push_back(fn);
}

void run_process_end() {
  for (void (*const fn)() : std::exchange(list(), {})) fn();
}

}  // namespace hadal
