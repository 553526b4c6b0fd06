// What a process does last, in a program that forks ranks: those end without the exit of a program,
// whose handlers are the parent's.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace hadal {

// Calls fn once when this process ends well: at exit, or where run_process_end() is called.
void at_process_end(void (*fn)());
// For a process that is about to _exit().
void run_process_end();

}  // namespace hadal
