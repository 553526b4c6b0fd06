// hadal: the command line. Parses, runs one subcommand, turns an Error into one sentence and
// exit 1.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "cli/options.h"
#include "core/check.h"
#include "core/env.h"

int main(int argc, char** argv) {
  CLI::App app("hadal trains and serves DeepSeek-V3-architecture models");
  app.require_subcommand(1);
  app.set_version_flag("--version", HADAL_VERSION);
  app.footer("Each subcommand has --help with an example.");
  hadal::cli::add_train_command(app);
  hadal::cli::add_generate_command(app);
  hadal::cli::add_verify_command(app);
  hadal::cli::add_info_command(app);
  hadal::cli::add_init_command(app);
  hadal::cli::add_tokenizer_command(app);
  hadal::cli::add_env_command(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  } catch (const hadal::Error& e) {
    std::fflush(stdout);
    std::fprintf(stderr, "hadal: %s\n", e.what());
    if (hadal::env::trace()) std::fprintf(stderr, "  at %s\n", e.where().c_str());
  } catch (const std::exception& e) {
    std::fflush(stdout);
    std::fprintf(stderr, "hadal: %s\n", e.what());
  }
  return 1;
}
