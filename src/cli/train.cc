// hadal train: a training run from a config, or the rest of one.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/options.h"
#include "cli/others.h"
#include "cli/train_rank.h"
#include "core/check.h"
#include "core/env.h"
#include "parallel/launch.h"
#include "train/checkpoint.h"
#include "train/trainer.h"

namespace hadal::cli {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> assignments;
  bool resume = false;
};

std::atomic<bool> stop_requested{false}, report_requested{false};

// The first signal asks for a clean stop; a second one ends the process as usual.
void request_stop(int signal) {
  stop_requested.store(true);
  std::signal(signal, SIG_DFL);
}

void request_report(int) { report_requested.store(true); }

// How to go on with what was stopped.
std::string resume_command(const Options& o) {
  std::string command = "hadal train " + o.config;
  for (const std::string& assignment : o.assignments) command += " --set '" + assignment + "'";
  return command + " --resume";
}

// The run as one rank of a world sees it; `world` is none where it is alone. False if it was
// stopped.
bool run_rank(const Options& o, const train::RunConfig& config, bool resume, World* world) {
  TrainRank rank(config, world);
  const train::TrainReport report =
      train::run_training(rank.context(), config,
                          {.resume = resume,
                           .team = &rank.team(),
                           .should_stop = [] { return stop_requested.load(); },
                           .should_report = [] { return report_requested.exchange(false); }});
  if (!rank.team().is_first()) return report.finished;
  if (!report.finished) {
    fmt::print("stopped after step {}; go on with: {}\n", report.steps, resume_command(o));
    return false;
  }
  fmt::print("trained {} steps in {:.0f} s: {:.4f} bits per byte held out, MaxVio {:.3f}\n",
             report.steps, report.seconds, report.held_out_bits_per_byte, report.max_violation);
  return true;
}

// False if it was stopped.
bool run_one(const Options& o, const train::RunConfig& config, bool resume) {
  const ParallelConfig& parallel = config.parallel;
  const int num_ranks = parallel.mesh.num_ranks();
  const std::string text = train::to_json(config).dump(2);
  const WorldOptions options{.num_ranks = num_ranks,
                             .heartbeat_seconds = parallel.heartbeat_seconds,
                             .timeout_seconds = parallel.timeout_seconds};
  const std::optional<env::Place> place = env::place();
  HADAL_CHECK(!place || place->size == num_ranks, "mesh: pp * dp * tp = ", num_ranks, ", but ",
              place ? place->size : 1, " processes were started; start ", num_ranks,
              ", or change \"parallel\"");
  if (!place || place->rank == 0) fmt::print("{}\n", text);
  if (num_ranks == 1) return run_rank(o, config, resume, nullptr);
  if (!place || place->rank == 0)
    fmt::print("{} ranks: {}, schedule {}\n", num_ranks, to_string(parallel.mesh),
               schedule_name(parallel.schedule));
  if (place) {
    World world(options, meet_others(*place, text));
    if (place->rank == 0) fmt::print("{}", describe_hosts(world));
    bool finished = false;
    take_part(world, [&](int) { finished = run_rank(o, config, resume, &world); });
    return finished;
  }
  World world(options);
  launch(world, [&](int) { run_rank(o, config, resume, &world); });
  return train::is_finished(config);
}

void run(const Options& o) {
  const std::vector<train::Phase> phases = train::read_phases(o.config, o.assignments);
  std::signal(SIGTERM, request_stop);
  std::signal(SIGINT, request_stop);
  std::signal(SIGUSR1, request_report);
  if (phases[0].name.empty()) {
    run_one(o, phases[0].run, o.resume);
    return;
  }
  const std::optional<env::Place> place = env::place();
  bool found = false;
  for (const train::Phase& phase : phases) {
    const bool begun = train::latest_checkpoint(phase.run.train.output).has_value();
    found = found || begun;
    if (!place || place->rank == 0) fmt::print("phase {}\n", phase.name);
    if (o.resume && train::is_finished(phase.run)) continue;
    HADAL_CHECK(found || !o.resume, phase.run.train.output,
                " has no checkpoint to resume from; start the run without --resume");
    if (!run_one(o, phase.run, o.resume && begun)) return;
  }
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("train", "train a model, or go on training");
  command->add_option("config", o->config, "run config: model, data, train, parallel")->required();
  command->add_option("--set", o->assignments, "override a value: train.steps=100");
  command->add_flag("--resume", o->resume, "go on from the newest checkpoint of the run");
  command->footer(
      "SIGUSR1 writes OUTPUT/report.html while it runs; SIGTERM stops it cleanly.\n"
      "Example: hadal train configs/quickstart.json --set train.steps=100 --resume");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
