// hadal report: the HTML page of a training run, whether it still runs or not.
// SPDX-License-Identifier: Apache-2.0
#include "train/report.h"

#include <fmt/core.h>

#include "cli/options.h"

namespace hadal::cli {

void add_report_command(CLI::App& app) {
  auto dir = std::make_shared<std::string>();
  auto* command = app.add_subcommand("report", "write the report page of a training run");
  command->add_option("dir", *dir, "train.output of the run")->required();
  command->footer("Example: hadal report runs/quickstart");
  command->callback([dir] {
    train::write_report(*dir);
    fmt::print("{}/report.html\n", *dir);
  });
}

}  // namespace hadal::cli
