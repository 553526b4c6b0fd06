// The program of one rank of a schedule: its steps and messages. Use make_schedule().
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "parallel/schedule.h"

namespace hadal::detail {

struct RankProgram {
  std::vector<ScheduleStep> steps;
  std::vector<Transfer> last_transfers;
};

// REQUIRES: check_schedule() passed for the shape that `schedule` was made of; its steps are not
// read.
RankProgram make_program(const Schedule& schedule, int rank);

}  // namespace hadal::detail
