// The subcommands of weights and speed: hadal convert and hadal bench.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>

namespace hadal::cli {

void add_convert_command(CLI::App& app);
void add_bench_command(CLI::App& app);

}  // namespace hadal::cli
