// hadal train: a training run from a config, or the rest of one.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <atomic>
#include <csignal>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "train/trainer.h"

namespace hadal::cli {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> assignments;
  bool resume = false;
};

std::atomic<bool> stop_requested{false};

// The first signal asks for a clean stop; a second one ends the process as usual.
void request_stop(int signal) {
  stop_requested.store(true);
  std::signal(signal, SIG_DFL);
}

void run(const Options& o) {
  const train::RunConfig config = train::read_run_config(o.config, o.assignments);
  fmt::print("{}\n", train::to_json(config).dump(2));
  Machine machine(static_cast<int>(config.train.threads),
                  parse_device(config.train.device, "train.device"));
  Context ctx = machine.context();
  std::signal(SIGTERM, request_stop);
  std::signal(SIGINT, request_stop);
  const train::TrainReport report = train::run_training(
      ctx, config, {.resume = o.resume, .should_stop = [] { return stop_requested.load(); }});
  if (!report.finished) {
    std::string command = "hadal train " + o.config;
    for (const std::string& assignment : o.assignments) command += " --set '" + assignment + "'";
    fmt::print("stopped after step {}; go on with: {} --resume\n", report.steps, command);
    return;
  }
  fmt::print("trained {} steps in {:.0f} s: {:.4f} bits per byte held out, MaxVio {:.3f}\n",
             report.steps, report.seconds, report.held_out_bits_per_byte, report.max_violation);
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("train", "train a model, or go on training");
  command->add_option("config", o->config, "run config: model, data, train")->required();
  command->add_option("--set", o->assignments, "override a value: train.steps=100");
  command->add_flag("--resume", o->resume, "go on from the newest checkpoint of the run");
  command->footer("Example: hadal train configs/quickstart.json --set train.steps=100 --resume");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
