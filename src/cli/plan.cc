// hadal plan: what a run would need and take, before anybody rents a cluster.
// SPDX-License-Identifier: Apache-2.0
#include "cli/plan.h"

#include "cli/options.h"

namespace hadal::cli {

void add_plan_command(CLI::App& app) {
  auto* plan = app.add_subcommand("plan", "plan a run: schedules, memory, time, cost");
  plan->require_subcommand(1);
  plan->footer("Example: hadal plan schedule --kind dualpipe --pp 8 --microbatches 20");
  add_plan_schedule_command(*plan);
  add_plan_train_command(*plan);
  add_plan_network_command(*plan);
  add_plan_serve_command(*plan);
}

}  // namespace hadal::cli
