// What the subcommands of hadal tokenizer share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "io/tokenizer.h"

namespace hadal::cli {

// A tokenizer.json, a directory that holds one, or the output directory of a training run.
io::Tokenizer open_tokenizer(const std::string& path);

void add_tokenizer_bench(CLI::App& app);

}  // namespace hadal::cli
