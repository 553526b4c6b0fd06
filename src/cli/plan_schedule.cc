// hadal plan schedule: plays a pipeline schedule and draws it.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "cli/plan.h"
#include "core/check.h"
#include "io/atomic.h"
#include "plan/schedule_report.h"

namespace hadal::cli {
namespace {

struct Options {
  std::string kind = "dualpipe", out;
  int pp = 8, microbatches = 20, stages_per_rank = 2;
  double overlap = 3.0;
  bool json = false;
};

void run(const Options& o) {
  HADAL_CHECK(o.overlap > 0.0 && o.overlap < 1e6, "--overlap is ", o.overlap,
              "; it has to be above 0");
  const Schedule schedule = make_schedule({.kind = parse_schedule(o.kind),
                                           .num_ranks = o.pp,
                                           .num_microbatches = o.microbatches,
                                           .stages_per_rank = o.stages_per_rank});
  const plan::Timeline timeline = plan::play(schedule, plan::unit_times(o.overlap));
  if (o.json) {
    fmt::print("{}", io::to_text(plan::timeline_json(schedule, timeline)));
    return;
  }
  const std::string title =
      fmt::format("{}: {} ranks, {} micro-batches, makespan {:g}, bubble {:g}", o.kind, o.pp,
                  o.microbatches, timeline.makespan, plan::largest_bubble(timeline));
  const std::string path =
      o.out.empty() ? fmt::format("{}-pp{}-mb{}.svg", o.kind, o.pp, o.microbatches) : o.out;
  io::write_file_atomic(path,
                        plan::draw_timeline(schedule, timeline, {.title = title}).file(title));
  fmt::print("{}\n{:.1f}% of the time is bubble; picture in {}\n", title,
             100.0 * plan::largest_bubble(timeline) / timeline.makespan, path);
}

}  // namespace

void add_plan_schedule_command(CLI::App& plan) {
  auto o = std::make_shared<Options>();
  auto* command = plan.add_subcommand(
      "schedule", "play a pipeline schedule in units F = B = W = 1 and draw it");
  command->add_option("--kind", o->kind, "1f1b, interleaved, zb1p, dualpipe or dualpipev")
      ->capture_default_str();
  command->add_option("--pp", o->pp, "pipeline ranks")->capture_default_str();
  command->add_option("--microbatches", o->microbatches, "micro-batches of a step")
      ->capture_default_str();
  command->add_option("--stages-per-rank", o->stages_per_rank, "of interleaved")
      ->capture_default_str();
  command->add_option("--overlap", o->overlap, "time of an overlapped forward and backward")
      ->capture_default_str();
  command->add_option("--out", o->out, "picture; KIND-ppN-mbN.svg if not given");
  command->add_flag("--json", o->json, "print JSON, draw nothing");
  command->footer("Example: hadal plan schedule --kind dualpipe --pp 8 --microbatches 20");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
