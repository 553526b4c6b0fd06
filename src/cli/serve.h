// hadal serve, and the loads that measure it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>

namespace hadal::cli {

void add_serve_command(CLI::App& app);
void add_bench_serve_command(CLI::App& bench);
void add_bench_frontend_command(CLI::App& bench);

}  // namespace hadal::cli
