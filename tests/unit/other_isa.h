// Running a test program's other tests with each instruction set that this processor has.
//
// The choice is made once in a process, so each set is another run of the program, told by the
// variable that users have too.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "ops/cpu/isa.h"
#include "tests/unit/expect_error.h"

namespace hadal::test {

// Runs the tests of this program, but those named EveryInstructionSet, with HADAL_ISA set.
inline void expect_same_tests_pass_on_every_isa() {
  using ops::cpu::Isa;
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (!ops::cpu::isa_available(isa) || isa == ops::cpu::active_isa()) continue;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      setenv("HADAL_ISA", ops::cpu::isa_name(isa), 1);
      execl("/proc/self/exe", "test", "--gtest_filter=-*.EveryInstructionSet", "--gtest_brief=1",
            nullptr);
      _exit(127);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "with HADAL_ISA=" << ops::cpu::isa_name(isa);
  }
}

}  // namespace hadal::test
