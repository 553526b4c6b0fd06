// hadal serve.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>

namespace hadal::cli {

void add_serve_command(CLI::App& app);

}  // namespace hadal::cli
