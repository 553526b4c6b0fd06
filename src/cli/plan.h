// Subcommands of `hadal plan`: each adds itself to the command.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>

namespace hadal::cli {

void add_plan_schedule_command(CLI::App& plan);
void add_plan_train_command(CLI::App& plan);
void add_plan_network_command(CLI::App& plan);
void add_plan_serve_command(CLI::App& plan);

}  // namespace hadal::cli
