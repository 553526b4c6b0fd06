// hadal plan train: memory, time and cost of a training run, and a search over meshes.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "cli/plan.h"
#include "core/check.h"
#include "io/atomic.h"
#include "plan/search.h"
#include "plan/train_report.h"

namespace hadal::cli {
namespace {

struct Options {
  std::string plan, report;
  std::vector<std::string> assignments;
  std::vector<int> devices;
  bool json = false, search = false;
};

void run_search(const Options& o, const plan::TrainPlan& p) {
  const plan::SearchResult result = plan::search(p, {.devices = o.devices});
  if (!o.report.empty()) io::write_file_atomic(o.report, plan::search_html(p, result));
  fmt::print("{}",
             o.json ? io::to_text(plan::search_json(result)) : plan::search_text(p, result, 40));
}

void run(const Options& o) {
  const plan::TrainPlan p = plan::read_train_plan(o.plan, o.assignments);
  HADAL_CHECK(o.devices.empty() || o.search, "--devices is for --search; give both");
  if (o.search) {
    run_search(o, p);
    return;
  }
  const plan::TrainResult result = plan::plan_step(p);
  if (!o.report.empty()) io::write_file_atomic(o.report, plan::train_html(p, result));
  fmt::print("{}", o.json ? io::to_text(plan::train_json(p, result)) : plan::train_text(p, result));
}

}  // namespace

void add_plan_train_command(CLI::App& plan) {
  auto o = std::make_shared<Options>();
  auto* command = plan.add_subcommand("train", "memory, time and cost of a training run");
  command->add_option("plan", o->plan, "plan file, as in configs/plans")->required();
  command->add_option("--set", o->assignments, "override, as mesh.pp=8; may be repeated");
  command->add_option("--report", o->report, "write a report page (HTML)");
  command->add_flag("--search", o->search,
                    "try every mesh, schedule, micro-batch size and recompute choice");
  command->add_option("--devices", o->devices, "with --search: device counts to try")
      ->delimiter(',');
  command->add_flag("--json", o->json, "print JSON");
  command->footer("Example: hadal plan train configs/plans/v3_h800.json --report v3.html");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
