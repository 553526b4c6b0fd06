// hadal env: the environment variables that hadal reads.
// SPDX-License-Identifier: Apache-2.0
#include "core/env.h"

#include <fmt/core.h>

#include "cli/options.h"

namespace hadal::cli {

void add_env_command(CLI::App& app) {
  auto* command = app.add_subcommand("env", "list the environment variables that hadal reads");
  command->footer("Example: hadal env");
  command->callback([] {
    for (const env::Variable& v : env::table())
      fmt::print("{:<16} default {:<8} {}\n", v.name, fmt::format("\"{}\"", v.fallback), v.meaning);
  });
}

}  // namespace hadal::cli
