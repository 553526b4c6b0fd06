// hadal: the command line. Parses, runs one subcommand, turns an Error into one sentence and
// exit 1 (2 for a command line that cannot be parsed).
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "cli/convert.h"
#include "cli/options.h"
#include "cli/serve.h"
#include "core/check.h"
#include "core/env.h"

namespace {

constexpr int kUsageError = 2;

// The subcommand that was being parsed: "hadal tokenizer train".
std::string command_of(const CLI::App& app) {
  std::string name = "hadal";
  for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
    at = at->get_subcommands().front();
    name += " " + at->get_name();
  }
  return name;
}

// NOTE: CLI11 reports an unknown first word as a missing subcommand.
std::string usage_message(const CLI::App& app, const CLI::ParseError& e, int argc, char** argv) {
  const std::string command = command_of(app), what = e.what();
  std::string message = what;
  if (command == "hadal" && argc > 1)
    message =
        std::string("there is no ") + (argv[1][0] == '-' ? "option " : "subcommand ") + argv[1];
  else if (what.starts_with("The following argument"))
    message = "unexpected argument " + what.substr(what.find(": ") + 2);
  return message + "; see: " + command + " --help";
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("hadal trains and serves DeepSeek-V3-architecture models");
  app.require_subcommand(1);
  app.set_version_flag("--version", HADAL_VERSION);
  app.footer("Each subcommand has --help with an example.");
  hadal::cli::add_train_command(app);
  hadal::cli::add_generate_command(app);
  hadal::cli::add_chat_command(app);
  hadal::cli::add_serve_command(app);
  hadal::cli::add_eval_command(app);
  hadal::cli::add_verify_command(app);
  hadal::cli::add_info_command(app);
  hadal::cli::add_init_command(app);
  hadal::cli::add_convert_command(app);
  hadal::cli::add_tokenizer_command(app);
  hadal::cli::add_data_command(app);
  hadal::cli::add_report_command(app);
  hadal::cli::add_plan_command(app);
  hadal::cli::add_bench_command(app);
  hadal::cli::add_check_command(app);
  hadal::cli::add_env_command(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help and --version
    std::fprintf(stderr, "hadal: %s\n", usage_message(app, e, argc, argv).c_str());
    return kUsageError;
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
